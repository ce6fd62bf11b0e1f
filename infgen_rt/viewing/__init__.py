"""Building blocks of viewers for large pictures: levels, tiles, requests that can be cancelled, and geometry.

Nothing here opens a window. For example:

    from infgen_rt import Size
    from infgen_rt.viewing import Tile, TileReader, Viewport

    with TileReader(picture) as reader:
        whole = reader.read(Tile(0, 0, 0))  # the whole picture in one tile
        view = Viewport.fitting(picture.size, Size(1280, 800)).zoomed(1.0)
        # The tiles are requested from the middle outwards. Requests for all other tiles are cancelled.
        reader.want(view.wanted(reader.levels), done=show)
"""

from infgen_rt.geometry.levels import Level, Tile, levels_of
from infgen_rt.viewing.frames import Frame, Order
from infgen_rt.viewing.opening import Opened, Opener
from infgen_rt.viewing.pyramid import Pyramid
from infgen_rt.viewing.reader import TileReader
from infgen_rt.viewing.requests import Request
from infgen_rt.viewing.viewport import Viewport

__all__ = [
    "Frame",
    "Level",
    "Opened",
    "Opener",
    "Order",
    "Pyramid",
    "Request",
    "Tile",
    "TileReader",
    "Viewport",
    "levels_of",
]
