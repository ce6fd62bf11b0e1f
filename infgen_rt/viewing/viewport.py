"""The geometry of a window over a picture: the visible part, its level, and the order in which its tiles are needed."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil, floor

from infgen_rt.geometry.levels import Level, Tile
from infgen_rt.geometry.shapes import Box, Size

LARGEST_ZOOM = 32.0
"""Window pixels per picture pixel at most."""
# A level is enlarged up to this factor before the next one is decoded, which costs four times as much.
_SOFT = 1.25


@dataclass(frozen=True)
class Viewport:
    """A window that shows a part of a picture. All coordinates in a window are in the display's own pixels.

    Attributes:
        picture: the picture's width and height in pixels.
        window: the window's width and height in pixels.
        zoom: the number of window pixels per picture pixel.
        x: the picture's column in the middle of the window, which is fractional.
        y: the picture's row there.
    """

    picture: Size
    window: Size
    zoom: float
    x: float
    y: float

    @classmethod
    def fitting(cls, picture: Size, window: Size) -> "Viewport":
        """The whole picture, as large as the window allows, but not enlarged."""
        return cls(picture, window, _fit(picture, window), picture.width / 2, picture.height / 2)

    @property
    def fits(self) -> bool:
        """Whether the whole picture is seen."""
        return self.zoom <= _fit(self.picture, self.window)

    def zoomed(self, zoom: float, at: tuple[float, float] | None = None) -> "Viewport":
        """Another zoom, between that of the whole picture and the largest one.

        Args:
            zoom: the number of window pixels per picture pixel.
            at: the point of the window that stays where it is. None for the middle.
        """
        wx, wy = at if at is not None else (self.window.width / 2, self.window.height / 2)
        zoom = min(max(zoom, _fit(self.picture, self.window)), LARGEST_ZOOM)
        px, py = self.to_picture(wx, wy)
        x, y = px - (wx - self.window.width / 2) / zoom, py - (wy - self.window.height / 2) / zoom
        return replace(self, zoom=zoom, x=x, y=y)._inside()

    def moved(self, dx: float, dy: float) -> "Viewport":
        """Move the picture by so many window pixels, to the right and downwards."""
        return replace(self, x=self.x - dx / self.zoom, y=self.y - dy / self.zoom)._inside()

    def resized(self, window: Size) -> "Viewport":
        """The same place in a window of another size. If the whole picture was seen, it still is."""
        if self.fits:
            return Viewport.fitting(self.picture, window)
        return replace(self, window=window).zoomed(self.zoom)

    def to_picture(self, wx: float, wy: float) -> tuple[float, float]:
        """The picture's column and row at a point of the window."""
        return (
            self.x + (wx - self.window.width / 2) / self.zoom,
            self.y + (wy - self.window.height / 2) / self.zoom,
        )

    @property
    def seen(self) -> Box:
        """The pixels of the picture that are seen, also in part."""
        return self._seen(1.0, 1.0, self.picture)

    def seen_at(self, level: Level) -> Box:
        """The pixels of a level that are seen, also in part."""
        return self._seen(*level.scale, level.size)

    def level(self, levels: Sequence[Level]) -> Level:
        """The smallest level that has enough detail, or the last one."""
        return next((each for each in levels if max(each.scale) * _SOFT >= self.zoom), levels[-1])

    def wanted(self, levels: Sequence[Level]) -> list[Tile]:
        """The tiles to show: the whole picture first, then those that are seen, from the middle outwards."""
        level = self.level(levels)
        middle = self.x * level.scale[0], self.y * level.scale[1]

        def distance(tile: Tile) -> float:
            box = level.box(tile.column, tile.row)
            return (box.x + box.width / 2 - middle[0]) ** 2 + (box.y + box.height / 2 - middle[1]) ** 2

        tiles = sorted(level.touching(self.seen_at(level)), key=distance)
        return tiles if level.number == 0 else [Tile(0, 0, 0), *tiles]

    def place(self, level: Level, box: Box) -> Box:
        """Where a box of a level's pixels is in the window.

        Edges are rounded, so that tiles beside each other touch and do not overlap.
        """
        left, top = self._place(level, box.x, box.y)
        right, bottom = self._place(level, box.right, box.bottom)
        return Box(left, top, right - left, bottom - top)

    def _place(self, level: Level, x: int, y: int) -> tuple[int, int]:
        across, down = level.scale
        left = (x / across - self.x) * self.zoom + self.window.width / 2
        top = (y / down - self.y) * self.zoom + self.window.height / 2
        # Not `round`, which rounds halves to even numbers and would make tiles of different widths.
        return floor(left + 0.5), floor(top + 0.5)

    def _seen(self, across: float, down: float, size: Size) -> Box:
        left, top = self.to_picture(0, 0)
        right, bottom = self.to_picture(*self.window)
        box = Box(
            floor(left * across),
            floor(top * down),
            ceil(right * across) - floor(left * across),
            ceil(bottom * down) - floor(top * down),
        )
        return box.intersect(size.box)

    def _inside(self) -> "Viewport":
        """Move the picture so that no empty space is beside it, or to the middle if it is smaller than the window."""
        places = []
        for place, side, shown in zip((self.x, self.y), self.picture, self.window, strict=True):
            half = shown / self.zoom / 2
            places.append(side / 2 if 2 * half >= side else min(max(place, half), side - half))
        return replace(self, x=places[0], y=places[1])


def _fit(picture: Size, window: Size) -> float:
    """The zoom at which the whole picture is seen, at most 1."""
    return min(1.0, *(max(1, shown) / side for shown, side in zip(window, picture, strict=True)))
