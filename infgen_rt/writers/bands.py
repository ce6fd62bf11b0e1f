"""Cuts the bands of a layer, which are as tall as the decoder's tiles, into windows as tall as a format needs."""

from collections import deque
from collections.abc import Iterator

import numpy as np

from infgen_rt.common.pixels import LevelArray, level_type
from infgen_rt.writers.formats import Layer


def cut(layer: Layer, rows: int, overlap: int = 0) -> Iterator[LevelArray]:
    """Cut a layer into windows of equal height that may overlap.

    Args:
        layer: the picture. All of its bands are taken, one at a time.
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
        # A copy, because a view would keep the whole window in memory.
        shared = window[start + rows - overlap - top :].copy()
        yield window
    # A generator runs to its end only if it is asked for one more band after the last.
    exhaust(layer.bands)


def exhaust(bands: Iterator[LevelArray]) -> None:
    """Take the remaining bands and drop them, so that the generator runs to its end."""
    deque(bands, 0)
