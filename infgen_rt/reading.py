"""Reads a region of a picture into an array, as a whole or tile by tile."""

from collections.abc import Callable, Iterator
from contextlib import closing
from math import ceil
from typing import Any

import numpy as np
import numpy.typing as npt

from infgen_rt.common.arguments import Kind
from infgen_rt.common.cancellation import Cancellation
from infgen_rt.common.pixels import ByteArray, interleaved, to_floats
from infgen_rt.common.progress import Counter, Tell
from infgen_rt.common.shortages import Shortages
from infgen_rt.errors import DecodeError, PlanError
from infgen_rt.geometry.grid import Grid
from infgen_rt.geometry.shapes import Box, Size
from infgen_rt.plan.plan import Plan
from infgen_rt.source import Stage

Dtype = type[np.uint8] | type[np.float32]

# The least number of rows of a picture that is reduced while it is read.
_BAND = 256


_TYPE = Kind("numpy.uint8 or numpy.float32", lambda value: value is np.uint8 or value is np.float32)


def pixel_type(dtype: Any) -> Dtype:
    """The type of pixels that is requested, which may also be given as `numpy.dtype`. TypeError for any other."""
    kind: Dtype = dtype.type if isinstance(dtype, np.dtype) else dtype
    _TYPE.check(dtype=kind)
    return kind


def preview_sizes(longest: int, whole: Size, grid: Grid, least_scale: float) -> tuple[Size, Size]:
    """The size of a picture's preview, and the size to decode for it.

    They differ if the preview is smaller than what the model was trained for. It is then reduced from a larger picture.

    Args:
        longest: the maximum length of the preview's longer side in pixels.
        whole: the picture's size in pixels.
        grid: the grid of the first stage.
        least_scale: the smallest scale that the model was trained for.

    Raises:
        PlanError: `longest` is below 1.
    """
    if longest < 1:
        raise PlanError(f"a preview of {longest} pixels is not possible: expected 1 or more")
    share = min(1.0, longest / max(whole))
    size = Size(*(max(1, round(side * share)) for side in whole))
    least = (least_scale * grid.patch * side for side in grid.cells)
    grow = max(1.0, *(low / side for low, side in zip(least, size, strict=True)))
    return size, size if grow == 1.0 else Size(*(ceil(side * grow) for side in size))


def reduced(read: Callable[[Box], ByteArray], whole: Size, size: Size) -> ByteArray:
    """Read a picture in bands, and reduce it.

    Args:
        read: a function that reads a box, uint8 [height, width, 3].
        whole: the picture's size in pixels.
        size: the size to reduce it to. It is smaller than the whole.

    Returns:
        uint8 [height, width, 3] of that size.
    """
    from PIL import Image

    # Each band is reduced by a whole factor as soon as it is read. The rest is reduced at the end.
    factor = max(1, min(side // small for side, small in zip(whole, size, strict=True)))
    coarse = np.empty((ceil(whole.height / factor), ceil(whole.width / factor), 3), np.uint8)
    rows = factor * ceil(_BAND / factor)
    for top in range(0, whole.height, rows):
        band = read(Box(0, top, whole.width, min(rows, whole.height - top)))
        part = np.asarray(Image.fromarray(band).reduce(factor))
        coarse[top // factor :][: len(part)] = part
    return np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC))


def read_into(
    out: npt.NDArray[Any] | None,
    stage: Stage,
    plan: Plan,
    box: Box,
    dtype: Dtype,
    tell: Tell | None,
    cancellation: Cancellation,
) -> npt.NDArray[Any]:
    """Decode a box of a picture. The result and the errors are those of `Picture.read`.

    Args:
        out: the array to write to, with any strides. None for a new one.
        stage: the picture.
        plan: its plan.
        box: the box, in pixels.
        dtype: the type of the pixels.
        tell: called after each step.
        cancellation: checked between steps.
    """
    shape = (box.height, box.width, 3)
    with Shortages(DecodeError):
        pixels: npt.NDArray[Any] = np.empty(shape, dtype) if out is None else out
    if not (isinstance(pixels, np.ndarray) and pixels.flags.writeable):
        raise PlanError(f"out is {type(out).__name__}, which cannot be written to: pass a writable NumPy array")
    if pixels.shape != shape or pixels.dtype != dtype:
        given, needed = f"{pixels.dtype} {list(pixels.shape)}", f"{np.dtype(dtype)} {list(shape)}"
        raise PlanError(f"out is {given}, and the region needs {needed}: pass an array of this type and shape")
    parts = list(stage.plan.parts(box))
    counter = Counter(plan.preparation + len(parts), tell, cancellation)
    each = stage.tiles.read_each(parts, dtype)
    with Shortages(DecodeError), cancellation.watched(), closing(each) as pictures:
        if tell is not None:
            stage.prepare(plan.preparation, counter)
        for part in parts:
            cancellation.check()
            planes = next(pictures)
            made = planes.transpose(1, 2, 0) if dtype is np.uint8 else to_floats(planes)
            pixels[part.relative_to(box).slices] = made
            counter.step("decode")
    return pixels


def read_tiles(
    stage: Stage, start: tuple[int, int] | None, box: Box, dtype: Dtype, cancellation: Cancellation
) -> Iterator[tuple[Box, npt.NDArray[Any]]]:
    """Decode a box of a picture tile by tile. The result and the errors are those of `Picture.tiles`.

    Args:
        stage: the picture.
        start: the pixel around which decoding starts. None for the middle of the box.
        box: the box, in pixels.
        dtype: the type of the pixels.
        cancellation: checked between tiles.
    """
    x, y = start if start is not None else (box.x + box.width // 2, box.y + box.height // 2)

    def distance(tile: Box) -> float:
        return (tile.x + tile.width / 2 - x) ** 2 + (tile.y + tile.height / 2 - y) ** 2

    tiles = sorted((tile.intersect(box) for tile in stage.plan.tiles(box)), key=distance)
    with closing(stage.tiles.read_each(tiles, dtype, waits=False)) as pictures:
        for tile in tiles:
            # The block ends before the caller gets the tile, because the current cancellation belongs to the thread.
            with Shortages(DecodeError), cancellation.watched():
                cancellation.check()
                planes = next(pictures)
            yield tile, interleaved(planes, dtype)
