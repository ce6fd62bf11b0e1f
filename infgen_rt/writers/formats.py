"""What a format is, and what it is given to write."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from infgen_rt.common.pixels import Bits, LevelArray
from infgen_rt.errors import OutputError
from infgen_rt.geometry.shapes import Size

TileFormat = Literal["jpg", "png"]


@dataclass(frozen=True)
class Layer:
    """A picture at one size, made while it is iterated.

    Attributes:
        size: width and height.
        bits: of a level.
        bands: its rows from top to bottom, uint8 or uint16 [rows, width, 3]. A format takes every one, and keeps
            none for longer than until it takes the one after the next.
    """

    size: Size
    bits: Bits
    bands: Iterator[LevelArray]


class Format(ABC):
    """A format that pictures are written in, tagged as sRGB.

    Attributes:
        name: for people, and Pillow's where Pillow writes it.
        max_side: the longest side that it can hold, in pixels.
        bits: of a level that it can hold.
    """

    name: str
    max_side: int
    bits: tuple[int, ...] = (8,)

    def available(self) -> bool:
        """Whether this installation can write it."""
        return True

    def with_tiles(self, tile_format: TileFormat) -> "Format":
        """The same format with tiles of another; itself if it has none that are pictures of their own."""
        return self

    def encoded(self, quality: int | None, lossless: bool) -> "Format":
        """The same format encoded as asked for; itself if nothing is.

        Args:
            quality: from 1 to 100; None for the format's own choice.
            lossless: keep every level.

        Raises:
            OutputError: the format has no such choice.
        """
        if quality is not None:
            raise OutputError(f"{self.name} is always without loss and has no quality: write .jpg, .webp or .avif")
        return self

    def outputs(self, path: Path) -> tuple[Path, ...]:
        """What is written for a file of this name; the first is the file, which refers to the others."""
        return (path,)

    def replaces(self, output: Path) -> bool:
        """Whether an existing output may be replaced, if the user says so."""
        return not output.is_dir()

    def sizes(self, size: Size) -> list[Size]:
        """The sizes that a picture is held in, largest first."""
        return [size]

    @abstractmethod
    def memory(self, size: Size, bits: Bits) -> int:
        """Bytes that writing takes, at most, besides two bands."""

    @abstractmethod
    def write(self, path: Path, layers: Sequence[Layer]) -> None:
        """Write the outputs of `path`, which do not exist.

        Args:
            path: the file.
            layers: the first of `sizes`, one at least; what is missing of `sizes` is made from the last layer.

        Raises:
            OSError: writing failed.
        """
