"""What viewers of large pictures need, without a window: levels, tiles, requests that can be dropped, and geometry.

from infgen_rt.viewing import Tile, TileReader, Viewport

with TileReader(picture) as reader:
    whole = reader.read(Tile(0, 0, 0))  # the whole picture in one tile
    view = Viewport.fitting(picture.size, Size(1280, 800)).zoomed(1.0)
    reader.want(view.wanted(reader.levels), done=show)  # from the middle outwards; what is not in the list is dropped
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
