"""A picture at all of its levels, read by tile."""

from threading import Lock

import numpy as np

from infgen_rt.common.cancellation import Cancel
from infgen_rt.common.pixels import ByteArray
from infgen_rt.common.progress import Tell
from infgen_rt.errors import PlanError
from infgen_rt.geometry.levels import TILE, Level, Tile, levels_of
from infgen_rt.geometry.shapes import Box
from infgen_rt.picture import Picture
from infgen_rt.viewing.frames import Frame, Order


class Pyramid:
    """The levels of a picture. Each is decoded at its own size, so only the pixels that are read are computed.

    Levels below the sizes that the model can decode are reduced from the next larger one. A picture that is made in
    several stages is made in one stage at the smaller levels. Several threads may use a pyramid. It keeps no tiles.

    Args:
        picture: the picture, which is the last level.
        tile: the side of a tile in pixels. A tile of the usual side is decoded at once, unless memory is short.

    Attributes:
        picture: the picture.
        levels: the levels, from the whole picture in one tile up to the picture's own size.
    """

    def __init__(self, picture: Picture, tile: int = TILE) -> None:
        self.picture = picture
        self.levels: tuple[Level, ...] = levels_of(picture.size, tile)
        # Planned when they are first read, because that loads graphs. None if a level is reduced from the next one.
        self._planned: dict[int, Picture | None] = {len(self.levels) - 1: picture}
        self._lock = Lock()

    def box(self, tile: Tile) -> Box:
        """The pixels of a tile in its level.

        Raises:
            PlanError: the pyramid has no such tile.
        """
        if 0 <= tile.level < len(self.levels):
            box = self.levels[tile.level].box(tile.column, tile.row)
            if box.width:
                return box
        raise PlanError(f"there is no tile {tuple(tile)} of (level, column, row): expected one that the levels have")

    def read(self, tile: Tile, order: Order = "rgb", *, cancel: Cancel | None = None) -> Frame:
        """Decode a tile.

        Args:
            tile: its level, column and row.
            order: the order of the channels.
            cancel: as for `Picture.save`.

        Raises:
            PlanError: the pyramid has no such tile.
            DecodeError: decoding failed.
            Cancelled: the work was cancelled with `cancel`.
        """
        return self.region(tile.level, self.box(tile), order, cancel=cancel)

    def region(
        self, level: int, box: Box, order: Order = "rgb", *, progress: Tell | None = None, cancel: Cancel | None = None
    ) -> Frame:
        """Decode a region of a level. Further arguments and errors are those of `Picture.read`.

        Args:
            level: the number of the level.
            box: the region, in pixels of the level.
            order: the order of the channels.
            progress: as for `Picture.read`.
            cancel: as for `Picture.read`.
        """
        frame = Frame.empty(box.size, order)
        self._read(level, box, frame.pixels, progress, cancel)
        return frame

    def _read(self, level: int, box: Box, out: ByteArray, progress: Tell | None, cancel: Cancel | None) -> None:
        picture = self._picture(level)
        if picture is not None:
            picture.read(box, out=out, progress=progress, cancel=cancel)
            return
        from PIL import Image

        # Each pixel is the mean of four of the next level, or of fewer at the right and at the bottom.
        doubled = Box(*(2 * side for side in box)).intersect(self.levels[level + 1].size.box)
        larger = np.empty((doubled.height, doubled.width, 3), np.uint8)
        self._read(level + 1, doubled, larger, progress, cancel)
        out[:] = np.asarray(Image.fromarray(larger).reduce(2))

    def _picture(self, level: int) -> Picture | None:
        with self._lock:
            if level not in self._planned:
                try:
                    picture = self.picture.at(self.levels[level].size)
                    picture.keep(0)
                    self._planned[level] = picture
                except PlanError:
                    self._planned[level] = None
            return self._planned[level]
