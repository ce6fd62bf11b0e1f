"""The base class of formats, and the layers that they write."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from infgen_rt.common.pixels import Bits, LevelArray
from infgen_rt.errors import OutputError
from infgen_rt.geometry.shapes import Size
from infgen_rt.writers.metadata import Metadata

TileFormat = Literal["jpg", "png"]
"""The format of the tiles of a Deep Zoom pyramid."""


@dataclass(frozen=True)
class Layer:
    """A picture at one size. It is decoded while a format iterates over its bands.

    Attributes:
        size: the width and height in pixels.
        bits: the bits per channel, 8 or 16.
        bands: groups of whole rows from top to bottom, uint8 or uint16 [rows, width, 3]. A format must take all bands,
            and keep at most two of them at the same time.
    """

    size: Size
    bits: Bits
    bands: Iterator[LevelArray]


class Format(ABC):
    """A file format for pictures. Files are tagged as sRGB.

    Attributes:
        name: the name for people. If Pillow writes the format, it is also Pillow's name.
        max_side: the longest supported side in pixels.
        bits: the supported numbers of bits per channel.
    """

    name: str
    max_side: int
    bits: tuple[int, ...] = (8,)

    def available(self) -> bool:
        """Whether this installation can write it."""
        return True

    def with_tiles(self, tile_format: TileFormat) -> "Format":
        """The same format with tiles in another format.

        Raises:
            OutputError: the format has no separate files for tiles.
        """
        raise OutputError(f"{self.name} has no tiles in files of their own: leave out the tile format, or write .dzi")

    def encoded(self, quality: int | None, lossless: bool) -> "Format":
        """The same format with the given encoding. If none is given, it returns itself.

        Args:
            quality: the quality from 1 to 100. None for the format's default.
            lossless: whether to keep every level exactly.

        Raises:
            OutputError: the format does not support this.
        """
        if quality is not None:
            raise OutputError(f"{self.name} is always without loss and has no quality: write .jpg, .webp or .avif")
        return self

    def with_metadata(self, metadata: Metadata) -> "Format":
        """The same format with text that is stored in each file.

        Args:
            metadata: the result of `check_metadata`. It may be empty.

        Raises:
            OutputError: the format cannot store text, or not so much of it.
        """
        if metadata:
            raise OutputError(f"{self.name} keeps no metadata: leave it out, or write .png")
        return self

    def outputs(self, path: Path) -> tuple[Path, ...]:
        """The paths of everything that is written. The first is the file itself, which refers to the others."""
        return (path,)

    def replaces(self, output: Path) -> bool:
        """Whether an existing output may be replaced if the user requests it."""
        return not output.is_dir()

    def sizes(self, size: Size) -> list[Size]:
        """The sizes at which the format stores the picture, largest first."""
        return [size]

    @abstractmethod
    def memory(self, size: Size, bits: Bits) -> int:
        """The peak memory of writing in bytes, without the two bands that a format may keep.

        Args:
            size: the picture's width and height.
            bits: the bits per channel.
        """

    @abstractmethod
    def write(self, path: Path, layers: Sequence[Layer]) -> None:
        """Write the outputs of `path`, which do not exist yet.

        Args:
            path: the file.
            layers: one layer or more, at the first of `sizes`. The format makes the other sizes from the last layer.

        Raises:
            OSError: writing failed.
        """
