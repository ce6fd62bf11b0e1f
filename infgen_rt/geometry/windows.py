"""What is decoded for a box of a picture's pixels: the box with its halo, and the cells whose context that needs."""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

from infgen_rt.geometry.grid import Grid
from infgen_rt.geometry.shapes import Box, Size


class Window(NamedTuple):
    """What is decoded at once.

    Attributes:
        tokens: the tokens whose pixels are computed.
        cells: the cells whose context is needed for them.
    """

    tokens: Box
    cells: Box


class Windows(Protocol):
    """A way of choosing what is decoded for a box, so that the box's own pixels are exact."""

    def of(self, tokens: Box) -> Window:
        """What is decoded for a box of tokens."""
        ...

    def largest(self, tokens: Size) -> Size:
        """The largest width and height, in tokens, of what is decoded for any box of so many tokens."""
        ...


@dataclass(frozen=True)
class TokenWindows:
    """Windows for any scale: a box of tokens with a halo of tokens, and all cells that these tokens see.

    Attributes:
        grid: the picture over the latent.
        halo: the number of tokens around a box that its pixels depend on.
        radius: the distance up to which a token sees cells, in cells. None for the whole latent.
    """

    grid: Grid
    halo: int
    radius: float | None

    def of(self, tokens: Box) -> Window:
        """See `Windows`."""
        grown = tokens.grow(self.halo, self.grid.tokens.box)
        return Window(grown, self.grid.context_of(grown, self.radius))

    def largest(self, tokens: Size) -> Size:
        """See `Windows`."""
        return Size(*(min(side + 2 * self.halo, whole) for side, whole in zip(tokens, self.grid.tokens, strict=True)))


@dataclass(frozen=True)
class CellWindows:
    """Windows for a scale that is a whole number: the whole cells that a box of tokens lies in, and those around them.

    All tokens of these cells are decoded, those of the outermost cells as if there were no cells beyond.

    Attributes:
        grid: the picture over the latent.
        halo: the number of tokens around a box that its pixels depend on.
        reach: the number of cells around a token's own cell that it sees.
        factor: the number of tokens along each side of a cell, which is the scale.
    """

    grid: Grid
    halo: int
    reach: int
    factor: int

    def of(self, tokens: Box) -> Window:
        """See `Windows`."""
        grown, factor = tokens.grow(self.halo, self.grid.tokens.box), self.factor
        x, y = grown.x // factor, grown.y // factor
        covered = Box(x, y, -(-grown.right // factor) - x, -(-grown.bottom // factor) - y)
        cells = covered.grow(self.reach, self.grid.cells.box)
        return Window(Box(*(factor * side for side in cells)), cells)

    def largest(self, tokens: Size) -> Size:
        """See `Windows`."""
        sides = []
        for side, whole in zip(tokens, self.grid.cells, strict=True):
            # Tokens that do not begin with a cell lie in one cell more.
            covered = -(-(side + 2 * self.halo - 1) // self.factor) + 1
            sides.append(self.factor * min(covered + 2 * self.reach, whole))
        return Size(*sides)
