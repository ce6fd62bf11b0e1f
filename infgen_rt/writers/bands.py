"""Cuts bands, which are as tall as the decoder's tiles, into the rows that a format needs."""

from collections import deque
from collections.abc import Iterator

import numpy as np

from infgen_rt.common.pixels import LevelArray, level_type
from infgen_rt.writers.formats import Layer


def cut(layer: Layer, rows: int, overlap: int = 0) -> Iterator[LevelArray]:
    """Cut a layer into windows of equal height that may overlap.

    Args:
        layer: the picture. Its bands are taken one at a time and to the end.
        rows: the height of a window without its overlaps. The last window has the remaining rows.
        overlap: the number of rows that a window shares with the window above and with the window below.

    Yields:
        Windows, uint8 or uint16 [rows + up to 2 * overlap, width, 3], each a new array.
    """
    width, height = layer.size
    band = shared = np.empty((0, width, 3), level_type(layer.bits))
    used = 0
    for start in range(0, height, rows):
        top, bottom = max(0, start - overlap), min(height, start + rows + overlap)
        window = np.empty((bottom - top, width, 3), band.dtype)
        filled = len(shared)
        window[:filled] = shared
        while filled < len(window):
            if used == len(band):
                band, used = next(layer.bands), 0
            count = min(len(window) - filled, len(band) - used)
            window[filled : filled + count] = band[used : used + count]
            filled, used = filled + count, used + count
        # A copy, because a view would keep the whole window alive.
        shared = window[start + rows - overlap - top :].copy()
        yield window
    # The generator of the bands finishes only when it is asked for one more after the last.
    exhaust(layer.bands)


def exhaust(bands: Iterator[LevelArray]) -> None:
    """Iterate over the remaining bands for the side effects."""
    deque(bands, 0)
