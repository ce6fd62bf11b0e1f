"""The geometry of a window over a picture: the visible part, its level, and the order in which its tiles are needed."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil, floor

from infgen_rt.geometry.levels import Level, Tile
from infgen_rt.geometry.shapes import Box, Size

LARGEST_ZOOM = 32.0
"""The highest zoom, in window pixels per picture pixel."""
# A level is enlarged by up to this factor instead of decoding the next level, which has four times as many pixels.
_SOFT = 1.25


@dataclass(frozen=True)
class Viewport:
    """A window that shows a part of a picture. Coordinates in the window are in physical pixels of the display.

    Attributes:
        picture: the picture's width and height in pixels.
        window: the window's width and height in pixels.
        zoom: the number of window pixels per picture pixel.
        x: the horizontal position in the picture, in pixels, that is in the middle of the window. It may be fractional.
        y: the vertical position of that point.
    """

    picture: Size
    window: Size
    zoom: float
    x: float
    y: float

    @classmethod
    def fitting(cls, picture: Size, window: Size) -> "Viewport":
        """A viewport that shows the whole picture, reduced to the size of the window if it is larger."""
        return cls(picture, window, _fit(picture, window), picture.width / 2, picture.height / 2)

    @property
    def fits(self) -> bool:
        """Whether the whole picture is visible."""
        return self.zoom <= _fit(self.picture, self.window)

    def zoomed(self, zoom: float, at: tuple[float, float] | None = None) -> "Viewport":
        """The viewport at another zoom, limited to the range from that of the whole picture to `LARGEST_ZOOM`.

        Args:
            zoom: the number of window pixels per picture pixel.
            at: the x and y in the window of the point that keeps its position. None for the middle.
        """
        wx, wy = at if at is not None else (self.window.width / 2, self.window.height / 2)
        zoom = min(max(zoom, _fit(self.picture, self.window)), LARGEST_ZOOM)
        px, py = self.to_picture(wx, wy)
        x, y = px - (wx - self.window.width / 2) / zoom, py - (wy - self.window.height / 2) / zoom
        return replace(self, zoom=zoom, x=x, y=y)._inside()

    def moved(self, dx: float, dy: float) -> "Viewport":
        """The viewport after the picture was moved by `dx` window pixels to the right and `dy` downwards."""
        return replace(self, x=self.x - dx / self.zoom, y=self.y - dy / self.zoom)._inside()

    def resized(self, window: Size) -> "Viewport":
        """The viewport for a window of another size. If the whole picture was visible, it still is."""
        if self.fits:
            return Viewport.fitting(self.picture, window)
        return replace(self, window=window).zoomed(self.zoom)

    def to_picture(self, wx: float, wy: float) -> tuple[float, float]:
        """The position in the picture, in fractional pixels, of the point (`wx`, `wy`) of the window."""
        return (
            self.x + (wx - self.window.width / 2) / self.zoom,
            self.y + (wy - self.window.height / 2) / self.zoom,
        )

    @property
    def seen(self) -> Box:
        """The pixels of the picture that are at least partly visible."""
        return self._seen(1.0, 1.0, self.picture)

    def seen_at(self, level: Level) -> Box:
        """The pixels of a level that are at least partly visible."""
        return self._seen(*level.scale, level.size)

    def level(self, levels: Sequence[Level]) -> Level:
        """The smallest level that has enough detail, or the last one."""
        return next((each for each in levels if max(each.scale) * _SOFT >= self.zoom), levels[-1])

    def wanted(self, levels: Sequence[Level]) -> list[Tile]:
        """The tiles to show: first the one of the whole picture, then the visible ones from the middle outwards."""
        level = self.level(levels)
        middle = self.x * level.scale[0], self.y * level.scale[1]

        def distance(tile: Tile) -> float:
            box = level.box(tile.column, tile.row)
            return (box.x + box.width / 2 - middle[0]) ** 2 + (box.y + box.height / 2 - middle[1]) ** 2

        tiles = sorted(level.touching(self.seen_at(level)), key=distance)
        return tiles if level.number == 0 else [Tile(0, 0, 0), *tiles]

    def place(self, level: Level, box: Box) -> Box:
        """The box in the window, in window pixels, where a box of a level is shown.

        The edges are rounded in such a way that adjacent tiles touch but do not overlap.
        """
        left, top = self._place(level, box.x, box.y)
        right, bottom = self._place(level, box.right, box.bottom)
        return Box(left, top, right - left, bottom - top)

    def _place(self, level: Level, x: int, y: int) -> tuple[int, int]:
        across, down = level.scale
        left = (x / across - self.x) * self.zoom + self.window.width / 2
        top = (y / down - self.y) * self.zoom + self.window.height / 2
        # `round` is not used, because it rounds halves to even numbers, which would make tiles of different widths.
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
        """Move the picture so that it fills the window, or centre it along an axis where it is smaller."""
        places = []
        for place, side, shown in zip((self.x, self.y), self.picture, self.window, strict=True):
            half = shown / self.zoom / 2
            places.append(side / 2 if 2 * half >= side else min(max(place, half), side - half))
        return replace(self, x=places[0], y=places[1])


def _fit(picture: Size, window: Size) -> float:
    """The zoom at which the whole picture is visible, at most 1."""
    return min(1.0, *(max(1, shown) / side for shown, side in zip(window, picture, strict=True)))
