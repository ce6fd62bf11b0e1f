"""A picture that is cut into tiles of tokens."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

from infgen_rt.geometry.grid import Grid
from infgen_rt.geometry.shapes import Box, Size
from infgen_rt.geometry.tiling import Tiling


@dataclass(frozen=True)
class PictureTiles:
    """A picture and its tiles, in pixels.

    Attributes:
        grid: the picture over the cells of a latent.
        tiling: the tiling of the picture, in tokens.
    """

    grid: Grid
    tiling: Tiling

    @property
    def tile(self) -> Size:
        """The largest tile, in tokens."""
        return self.tiling.largest

    @property
    def count(self) -> int:
        """The number of tiles."""
        return self.tiling.count

    @property
    def bands(self) -> int:
        """The bytes of two rows of 8-bit tiles. A writer compresses one row while the next is decoded."""
        return 2 * 3 * self.grid.picture.width * min(self.tile.height * self.grid.patch, self.grid.picture.height)

    def tiles(self, region: Box) -> Iterator[Box]:
        """The tiles that a region touches.

        Args:
            region: in pixels, inside the picture.

        Yields:
            Whole tiles in pixels, row by row.
        """
        for tile in self.tiling.touching(self.grid.tokens_of(region)):
            yield self.grid.pixels_of(tile)

    def fits_a_tile(self, box: Box) -> bool:
        """Whether a box of pixels covers no more tokens than the largest tile, in both directions."""
        tokens, tile = self.grid.tokens_of(box), self.tile
        return tokens.width <= tile.width and tokens.height <= tile.height

    def parts(self, box: Box) -> Iterator[Box]:
        """Cut a box into the parts in which it is decoded.

        Args:
            box: in pixels, inside the picture.

        Yields:
            The box itself if it fits in a tile. Otherwise, its parts between the edges of the tiles, row by row.
        """
        if self.fits_a_tile(box):
            yield box
        else:
            yield from (tile.intersect(box) for tile in self.tiles(box))

    def rows(self, box: Box) -> list[list[Box]]:
        """The parts of a box, as one list per row of tiles."""
        return [list(row) for _, row in groupby(self.parts(box), key=lambda part: part.y)]
