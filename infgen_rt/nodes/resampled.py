"""The node for pictures beyond the scales that the model was trained for, which are resampled by Lanczos.

The pixels of a region are those of the whole picture, up to the rounding of float32.
"""

from collections.abc import Iterator
from math import ceil, floor

import numpy as np

from infgen_rt.common.pixels import FloatArray, fetch
from infgen_rt.geometry.shapes import Box, Size
from infgen_rt.nodes.decoded import Decoded
from infgen_rt.nodes.node import Step

SUPPORT = 3
"""The reach of Pillow's Lanczos filter to either side, in pixels of the source, or of the result if that is smaller."""


class Resampled:
    """A decoded picture at another size, float32 planes [3, h, w], about [0, 1].

    Args:
        source: the decoded picture.
        size: the width and height of the result, in pixels.
    """

    def __init__(self, source: Decoded, size: Size) -> None:
        self._source, self._size = source, size

    @property
    def size(self) -> Size:
        """Width and height in pixels."""
        return self._size

    def prepare(self) -> Iterator[Step]:
        """Prepare the decoded picture; see `Node`."""
        return self._source.prepare()

    def load_shared(self) -> None:
        """See `Decoded.load_shared`."""
        self._source.load_shared()

    def read(self, box: Box, shared: bool = False) -> FloatArray:
        """The pixels of a box; see `Decoded.read`."""
        part = source_of(box, self._size, self._source.size)
        pixels: FloatArray = fetch(self._source.read(part, shared), np.float32)
        return resample(pixels, part, box, self._size, self._source.size)


def source_of(box: Box, resampled: Size, source: Size) -> Box:
    """The box of a picture's pixels that a box of the resampled picture depends on.

    Args:
        box: the box in pixels of the result.
        resampled: the width and height of the whole result.
        source: the width and height of the whole picture.
    """
    edges = []
    for start, length, side, count in zip(box[:2], box[2:], resampled, source, strict=True):
        step = count / side
        reach = SUPPORT * max(1.0, step) + 1
        first = max(0, floor((start + 0.5) * step - reach))
        edges.append((first, min(count, ceil((start + length - 0.5) * step + reach))))
    (left, right), (top, bottom) = edges
    return Box(left, top, right - left, bottom - top)


def resample(pixels: FloatArray, part: Box, box: Box, resampled: Size, source: Size) -> FloatArray:
    """Resample a picture to a box of the result.

    Args:
        pixels: float32 [3, h, w], the part of the picture from `source_of`.
        part: the position of that part in the picture.
        box: the requested box, in pixels of the result.
        resampled: the width and height of the whole result.
        source: the width and height of the whole picture.

    Returns:
        float32 [3, height, width] of the box.
    """
    from PIL import Image

    steps = [count / side for side, count in zip(resampled, source, strict=True)]
    left, top = box.x * steps[0] - part.x, box.y * steps[1] - part.y
    window = (left, top, left + box.width * steps[0], top + box.height * steps[1])
    planes = [Image.fromarray(np.ascontiguousarray(plane)) for plane in pixels]
    return np.stack([np.asarray(plane.resize(box.size, Image.Resampling.LANCZOS, window)) for plane in planes])
