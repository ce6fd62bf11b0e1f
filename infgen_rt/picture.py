"""A picture: the latent's pixels at one size, decoded where and when they are wanted."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
import numpy.typing as npt

from .errors import Cancelled, OutputError
from .geometry import Box, Size, parse_box
from .memory import format_bytes
from .pixels import ByteArray, FloatArray, to_bytes, to_floats
from .plan import Plan
from .stage import Stage
from .writers import Format, check_output, open_writer

if TYPE_CHECKING:
    from PIL.Image import Image

# Bytes a pixel of the array that Pillow is given, of Pillow's own copy, and of its encoder.
_WHOLE_PICTURE = 3 + 4 + 1


@dataclass(frozen=True)
class Progress:
    """How far a `save` is; `print` shows it.

    Attributes:
        stage: what was just done: `prefill`, `decode` or `encode`.
        done: steps done.
        total: steps in all; the last is done when the file is complete under its name.
    """

    stage: Literal["prefill", "decode", "encode"]
    done: int
    total: int

    @property
    def fraction(self) -> float:
        """Share of the steps done, in [0, 1]."""
        return self.done / self.total

    def __str__(self) -> str:
        return f"{self.stage} {self.done}/{self.total} ({self.fraction:.0%})"


class Picture:
    """Made by `Decoder.picture`; nothing is decoded until it is asked for. Serves several threads.

    NumPy and Pillow take it as it is: `np.asarray(picture)` is uint8 [H, W, 3].
    """

    def __init__(self, stage: Stage, plan: Plan) -> None:
        self._stage = stage
        self._plan = plan

    @property
    def size(self) -> Size:
        """Width and height in pixels."""
        return self._stage.size

    @property
    def plan(self) -> Plan:
        """What decoding it takes: stages, tiles, bytes, backend."""
        return self._plan

    @overload
    def read(self, region: tuple[int, int, int, int] | None = None) -> ByteArray: ...

    @overload
    def read(self, region: tuple[int, int, int, int] | None, dtype: type[np.uint8]) -> ByteArray: ...

    @overload
    def read(self, region: tuple[int, int, int, int] | None = None, *, dtype: type[np.float32]) -> FloatArray: ...

    def read(
        self,
        region: tuple[int, int, int, int] | None = None,
        dtype: type[np.uint8] | type[np.float32] = np.uint8,
    ) -> ByteArray | FloatArray:
        """Decode a region; its pixels do not depend on how the picture is tiled.

        Args:
            region: (x, y, width, height) in pixels; None for the whole picture.
            dtype: `numpy.uint8`, or `numpy.float32` for values in [0, 1] that are not rounded.

        Returns:
            [height, width, 3] in sRGB.

        Raises:
            PlanError: the region is not inside the picture.
            DecodeError: decoding failed.
        """
        box = self._box(region)
        if dtype is np.float32:
            return to_floats(self._stage.read(box))
        if dtype is not np.uint8:
            raise TypeError(f"dtype is {dtype!r}, expected numpy.uint8 or numpy.float32")
        # Tile by tile, so that the floats of a large region are never all held at once.
        pixels = np.empty((box.height, box.width, 3), np.uint8)
        for part in self.parts(box):
            pixels[part.relative_to(box).slices] = to_bytes(self._stage.read(part))
        return pixels

    def tiles(self, start: tuple[int, int] | None = None) -> Iterator[tuple[Box, ByteArray]]:
        """Decode tile by tile, for a window that fills in.

        Args:
            start: the pixel (x, y) whose surroundings come first; None for the picture's middle.

        Yields:
            Each tile's box in pixels, and its pixels: uint8 [height, width, 3].
        """
        x, y = start if start is not None else (self.size.width // 2, self.size.height // 2)

        def distance(tile: Box) -> float:
            return (tile.x + tile.width / 2 - x) ** 2 + (tile.y + tile.height / 2 - y) ** 2

        for tile in sorted(self._plan.stages[-1].tiles(self.size.box), key=distance):
            yield tile, self.read(tile)

    def image(self) -> "Image":
        """The whole picture as a Pillow image."""
        from PIL import Image

        return Image.fromarray(self.read())

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[Any]:
        """The whole picture, uint8 [H, W, 3], cast to `dtype` if one is given."""
        if copy is False:
            raise ValueError("a picture is decoded into a new array: it cannot be an array without a copy")
        return self.read().astype(dtype or np.uint8, copy=False)

    def save(
        self,
        path: str | Path,
        *,
        region: tuple[int, int, int, int] | None = None,
        force: bool = False,
        progress: Callable[[Progress], object] | None = None,
        cancel: Event | Callable[[], bool] | None = None,
    ) -> None:
        """Decode into a file; it appears under its name only when it is complete.

        A .png is written as it is decoded, so that memory does not grow with the picture.

        Args:
            path: the file; its ending chooses the format: .png, .jpg, .webp or .tif.
            region: (x, y, width, height) in pixels to write instead of the whole picture.
            force: replace an existing file.
            progress: called after each step.
            cancel: stops the work before the next tile once it is set, or returns True.

        Raises:
            OutputError: the file cannot be written, found before anything is decoded.
            PlanError: the region is not inside the picture.
            DecodeError: decoding failed.
            WriteError: writing failed.
            Cancelled: `cancel` said so. As after any error, no file is left.
        """
        box, path = self._box(region), Path(path)
        self.check_save(path, region=box, force=force)
        parts = list(self.parts(box))
        # Steps: the prefill, each tile, and completing the file.
        steps = iter(range(1, len(parts) + 3))

        def step(stage: Literal["prefill", "decode", "encode"]) -> None:
            done = next(steps)
            if progress is not None:
                progress(Progress(stage, done, len(parts) + 2))

        with open_writer(path, box.size, force) as writer:
            _check(cancel)
            self._stage.prefill()
            step("prefill")
            for _, row in groupby(parts, key=lambda part: part.y):
                row_parts = list(row)
                band = np.empty((row_parts[0].height, box.width, 3), np.uint8)
                for part in row_parts:
                    _check(cancel)
                    left = part.x - box.x
                    band[:, left : left + part.width] = to_bytes(self._stage.read(part))
                    step("decode")
                writer.write(band)
            _check(cancel)
        step("encode")

    def check_save(
        self, path: str | Path, *, region: tuple[int, int, int, int] | None = None, force: bool = False
    ) -> Format:
        """Find what would keep `save` from starting; arguments as `save`'s.

        Returns:
            The format that would be written.

        Raises:
            OutputError: the file cannot be written.
            PlanError: the region is not inside the picture.
        """
        size = self._box(region).size
        form = check_output(Path(path), size, force)
        self._check_memory(form, size)
        return form

    def _box(self, region: tuple[int, int, int, int] | None) -> Box:
        return self.size.box if region is None else parse_box(region, self.size)

    def parts(self, box: Box) -> Iterator[Box]:
        """What a region is decoded in: itself if it fits in a tile, otherwise cut at the tiles' edges, row by row."""
        if self._stage.fits_a_tile(box):
            yield box
        else:
            yield from (tile.intersect(box) for tile in self._plan.stages[-1].tiles(box))

    def _check_memory(self, form: Format, size: Size) -> None:
        needed = self._plan.memory - self._plan.cache + _WHOLE_PICTURE * size.area
        if not form.streams and needed > self._plan.budget:
            raise OutputError(
                f"{form.name} is written from memory and needs {format_bytes(needed)} for {size}, of "
                f"{format_bytes(self._plan.budget)}: write .png, or allow more memory"
            )


def _check(cancel: Event | Callable[[], bool] | None) -> None:
    if cancel is not None and (cancel.is_set() if isinstance(cancel, Event) else cancel()):
        raise Cancelled("cancelled")
