"""The levels of a picture: the picture at its own size and halved again and again, as in a Deep Zoom pyramid."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from infgen_rt.common.arguments import PAIR, WHOLE, Kind
from infgen_rt.errors import PlanError
from infgen_rt.geometry.shapes import Box, Size

TILE = 256
"""The usual side of a level's tile, in pixels."""


class Tile(NamedTuple):
    """The place of a tile: the number of its level, its column and its row, each counted from 0."""

    level: int
    column: int
    row: int


TILES = Kind("a Tile", lambda value: isinstance(value, Tile) and all(map(WHOLE.holds, value)))
"""The tiles, for checks of arguments."""


@dataclass(frozen=True)
class Level:
    """A picture at one size, cut into square tiles. The tiles at the right and at the bottom may be smaller.

    Attributes:
        number: its number. Level 0 is one tile, and the last level has the picture's own size.
        size: its width and height in pixels.
        scale: this level's width and height, divided by those of the last level. Both are at most 1.
        tile: the side of a tile in pixels.
    """

    number: int
    size: Size
    scale: tuple[float, float]
    tile: int

    @property
    def columns(self) -> int:
        """The number of tiles per row."""
        return -(-self.size.width // self.tile)

    @property
    def rows(self) -> int:
        """The number of rows of tiles."""
        return -(-self.size.height // self.tile)

    def box(self, column: int, row: int) -> Box:
        """The pixels of a tile, in this level. It is empty if the level has no such tile."""
        if not (0 <= column < self.columns and 0 <= row < self.rows):
            return Box(0, 0, 0, 0)
        return Box(column * self.tile, row * self.tile, self.tile, self.tile).intersect(self.size.box)

    def touching(self, box: Box) -> Iterator[Tile]:
        """The tiles that a box of this level's pixels touches, row by row. The box may reach outside the level."""
        seen = box.intersect(self.size.box)
        if seen.width < 1 or seen.height < 1:
            return
        for row in range(seen.y // self.tile, (seen.bottom - 1) // self.tile + 1):
            for column in range(seen.x // self.tile, (seen.right - 1) // self.tile + 1):
                yield Tile(self.number, column, row)


def halvings(size: Size, smallest: int = 1) -> Iterator[Size]:
    """Halve a size until no side is longer than `smallest` pixels. Sides are rounded up.

    Yields:
        The sizes, from `size` itself to the smallest.
    """
    yield size
    while max(size) > max(1, smallest):
        size = Size(*((side + 1) // 2 for side in size))
        yield size


def levels_of(size: Size, tile: int = TILE) -> tuple[Level, ...]:
    """The levels of a picture, from the whole picture in one tile up to its own size.

    Args:
        size: the picture's width and height in pixels.
        tile: the side of a tile in pixels.

    Raises:
        PlanError: `tile` is below 1.

    Examples:
        >>> from infgen_rt import Size, viewing
        >>> [str(level.size) for level in viewing.levels_of(Size(1000, 600), tile=256)]
        ['250x150', '500x300', '1000x600']
    """
    PAIR.check(size=size)
    WHOLE.check(tile=tile)
    if tile < 1:
        raise PlanError(f"a viewer's tile of {tile} pixels is not possible: expected 1 or more")
    size = Size(*size)
    sizes = list(halvings(size, tile))[::-1]
    return tuple(
        Level(number, each, (each.width / size.width, each.height / size.height), tile)
        for number, each in enumerate(sizes)
    )
