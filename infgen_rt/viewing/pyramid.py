"""Reads any tile of a picture at any of its levels."""

from threading import Lock

import numpy as np

from infgen_rt.common.arguments import FUNCTION, WHOLE, instance
from infgen_rt.common.cancellation import Cancel
from infgen_rt.common.pixels import ByteArray
from infgen_rt.common.progress import Tell
from infgen_rt.errors import PlanError
from infgen_rt.geometry.levels import TILE, TILES, Level, Tile, levels_of
from infgen_rt.geometry.shapes import Box, parse_box
from infgen_rt.picture import Picture
from infgen_rt.viewing.frames import Frame, Order

PICTURE = instance(Picture, "a Picture")


class Pyramid:
    """The levels of a picture, which is decoded separately at the size of each level.

    Only the pixels that are read are computed. Where a level is too small for the model, the next larger level is
    decoded and reduced. A picture that is made in several stages is made in one stage at the smaller levels.

    A pyramid keeps no tiles. Several threads may use it at once.

    Args:
        picture: the picture, which is the last level.
        tile: the side of a tile in pixels. With the default, a tile is decoded in one piece, unless memory is short.

    Attributes:
        picture: the picture.
        levels: the levels, from the whole picture in one tile up to the picture's own size.
    """

    def __init__(self, picture: Picture, tile: int = TILE) -> None:
        PICTURE.check(picture=picture)
        self.picture = picture
        self.levels: tuple[Level, ...] = levels_of(picture.size, tile)
        # A level is planned when it is first read, because planning loads graphs. None marks a level that is too small
        # for the model and is reduced from the next larger one.
        self._planned: dict[int, Picture | None] = {}
        self._lock = Lock()

    def box(self, tile: Tile) -> Box:
        """The box that a tile covers, in pixels of its level.

        Raises:
            PlanError: the pyramid has no such tile.
        """
        TILES.check(tile=tile)
        if 0 <= tile.level < len(self.levels):
            box = self.levels[tile.level].box(tile.column, tile.row)
            if box.width:
                return box
        raise PlanError(f"there is no tile {tuple(tile)} of (level, column, row): expected one that the levels have")

    def read(self, tile: Tile, order: Order = "rgb", *, cancel: Cancel | None = None) -> Frame:
        """Decode a tile.

        Args:
            tile: the level, column and row of the tile.
            order: the order of the channels in the frame.
            cancel: as for `Picture.save`.

        Returns:
            The pixels of the tile, which is smaller at the right and the bottom edge of the level.

        Raises:
            PlanError: the pyramid has no such tile, or the order is unknown.
            BackendError: a graph, which is loaded when it is first needed, cannot be loaded.
            DecodeError: decoding failed, or the decoder is closed.
            Cancelled: the work was cancelled with `cancel`.
        """
        box = self.box(tile)
        return self.region(tile.level, box, order, cancel=cancel)

    def region(
        self, level: int, box: Box, order: Order = "rgb", *, progress: Tell | None = None, cancel: Cancel | None = None
    ) -> Frame:
        """Decode a region of a level.

        Args:
            level: the number of the level.
            box: the region, in pixels of the level.
            order: the order of the channels in the frame.
            progress: as for `Picture.read`.
            cancel: as for `Picture.read`.

        Raises:
            PlanError: there is no such level, the region is not inside it, or the order is unknown.
            BackendError: a graph, which is loaded when it is first needed, cannot be loaded.
            DecodeError: decoding failed, or the decoder is closed.
            Cancelled: the work was cancelled with `cancel`.
        """
        WHOLE.check(level=level)
        FUNCTION.or_none(progress=progress)
        if not 0 <= level < len(self.levels):
            raise PlanError(f"there is no level {level}: expected one from 0 to {len(self.levels) - 1}")
        box = parse_box(box, self.levels[level].size)
        frame = Frame.empty(box.size, order)
        self._read(level, box, frame.pixels, progress, cancel)
        return frame

    def _read(self, level: int, box: Box, out: ByteArray, progress: Tell | None, cancel: Cancel | None) -> None:
        picture = self._picture(level)
        if picture is not None:
            picture.read(box, out=out, progress=progress, cancel=cancel)
            return
        from PIL import Image

        # Each pixel is the mean of four pixels of the next larger level, or of fewer at the right and the bottom edge.
        doubled = Box(*(2 * side for side in box)).intersect(self.levels[level + 1].size.box)
        larger = np.empty((doubled.height, doubled.width, 3), np.uint8)
        self._read(level + 1, doubled, larger, progress, cancel)
        out[:] = np.asarray(Image.fromarray(larger).reduce(2))

    def _picture(self, level: int) -> Picture | None:
        with self._lock:
            if level not in self._planned:
                try:
                    last = level == len(self.levels) - 1
                    picture = self.picture if last else self.picture.resized(self.levels[level].size)
                    self._planned[level] = picture.without_tiles()
                except PlanError:
                    self._planned[level] = None
            return self._planned[level]
