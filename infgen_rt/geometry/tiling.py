"""Tilings of tokens or cells, and the halos that tiles need."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from math import prod

from infgen_rt.geometry.shapes import Box, Size, split

# Sides of tiles, in tokens. Larger tiles do not fit into the processor's caches, and smaller ones are mostly halo. A
# backend may have another largest side, because each run of a graph also costs time.
LARGEST_TILE = 64
SMALLEST_TILE = 8
# Sides of tiles that are decoded at the same time, in tokens. Cancelling may have to wait until one thread has finished
# such a tile, so it must not be too large. In smaller tiles, the halos cost more than decoding in parallel gains.
LARGEST_SHARED_TILE = 48
SMALLEST_SHARED_TILE = 32
# The side of encode's tiles in cells, relative to that of decode's in tokens. It is larger because encode's halo is.
ENCODED = 2


@dataclass(frozen=True)
class Tiling:
    """A grid cut into columns and rows.

    Attributes:
        columns: edges of the columns of tiles, ascending from 0 to the grid's width.
        rows: edges of the rows of tiles, ascending from 0 to the grid's height.
    """

    columns: tuple[int, ...]
    rows: tuple[int, ...]

    @classmethod
    def of(cls, size: Size, longest: Size) -> "Tiling":
        """The fewest tiles that are no larger than `longest`, balanced so that none is a sliver."""
        return cls(split(size.width, longest.width), split(size.height, longest.height))

    @property
    def box(self) -> Box:
        """The whole grid."""
        return Box(0, 0, self.columns[-1], self.rows[-1])

    @property
    def largest(self) -> Size:
        """The largest width and height of a tile."""
        return Size(*(max(stop - start for start, stop in pairwise(edges)) for edges in (self.columns, self.rows)))

    @property
    def across(self) -> int:
        """The number of tiles per row."""
        return len(self.columns) - 1

    @property
    def count(self) -> int:
        """The number of tiles."""
        return self.across * (len(self.rows) - 1)

    def touching(self, box: Box) -> Iterator[Box]:
        """The whole tiles that a box touches, row by row."""
        for top, bottom in _parts(self.rows, box.y, box.bottom):
            for left, right in _parts(self.columns, box.x, box.right):
                yield Box(left, top, right - left, bottom - top)


@dataclass(frozen=True)
class HaloTiling:
    """A tiling of cells in which each tile is computed with a halo around it.

    Attributes:
        tiling: the tiling, in cells.
        halo: the number of cells on each side of a tile that the tile's own cells depend on.
    """

    tiling: Tiling
    halo: int

    @property
    def window(self) -> Size:
        """The largest width and height, in cells, of a tile with its halo."""
        sides = zip(self.tiling.largest, self.tiling.box.size, strict=True)
        return Size(*(min(side + 2 * self.halo, whole) for side, whole in sides))

    @property
    def computed(self) -> int:
        """The number of cells that are computed for all tiles, halos included."""
        sides = zip((self.tiling.columns, self.tiling.rows), self.tiling.box.size, strict=True)
        return prod(
            sum(min(stop + self.halo, whole) - max(start - self.halo, 0) for start, stop in pairwise(edges))
            for edges, whole in sides
        )

    def window_of(self, tile: Box) -> Box:
        """The cells that have to be computed for a tile: the tile and its halo, clipped to the grid."""
        return tile.grow(self.halo, self.tiling.box)

    def windows(self) -> Iterator[tuple[Box, Box]]:
        """Each tile and its window (see `window_of`), row by row."""
        for tile in self.tiling.touching(self.tiling.box):
            yield tile, self.window_of(tile)

    def __str__(self) -> str:
        count = self.tiling.count
        return f"{self.tiling.box.size} cells in {'1 tile' if count == 1 else f'{count} tiles'}"


def _parts(edges: tuple[int, ...], start: int, stop: int) -> Iterator[tuple[int, int]]:
    """The parts between edges that the half-open range from start to stop touches."""
    return pairwise(edges[bisect_right(edges, start) - 1 : bisect_left(edges, stop) + 1])
