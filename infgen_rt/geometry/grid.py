"""The positions of a picture's tokens and of a latent's cells, which are inputs of every decode."""

from dataclasses import dataclass
from math import ceil, floor

import numpy as np

from infgen_rt.common.pixels import FloatArray
from infgen_rt.geometry.shapes import Box, Size


@dataclass(frozen=True)
class Grid:
    """The tokens of a picture over the cells of a latent.

    Coordinates are in cells, with the origin at the latent's top-left corner. Cell i covers [i, i + 1).

    Attributes:
        cells: the latent's width and height in cells.
        picture: the picture's width and height in pixels.
        patch: the side of a token in pixels, which is also the side of a cell at scale 1.
    """

    cells: Size
    picture: Size
    patch: int

    @property
    def tokens(self) -> Size:
        """Width and height of the token grid, which may reach past the picture's right and bottom edges."""
        return Size(-(-self.picture.width // self.patch), -(-self.picture.height // self.patch))

    @property
    def scale(self) -> tuple[float, float]:
        """Picture pixels per cell, divided by those at scale 1: (vertical, horizontal)."""
        return (
            self.picture.height / (self.patch * self.cells.height),
            self.picture.width / (self.patch * self.cells.width),
        )

    def is_at(self, scale: int) -> bool:
        """Whether the picture has exactly this scale, horizontally and vertically."""
        return self.picture == Size(*(scale * self.patch * side for side in self.cells))

    def tokens_of(self, pixels: Box) -> Box:
        """The tokens that cover a box of pixels."""
        x, y = pixels.x // self.patch, pixels.y // self.patch
        return Box(x, y, -(-pixels.right // self.patch) - x, -(-pixels.bottom // self.patch) - y)

    def pixels_of(self, tokens: Box) -> Box:
        """The pixels that a box of tokens covers, clipped to the picture."""
        scaled = Box(*(side * self.patch for side in tokens))
        return scaled.intersect(self.picture.box)

    def token_centres(self, tokens: Box) -> tuple[FloatArray, FloatArray]:
        """Centres of a box of tokens, in cells: (y float32 [h], x float32 [w])."""
        step_y, step_x = self._steps
        return _centres(tokens.y, tokens.height, step_y), _centres(tokens.x, tokens.width, step_x)

    def cell_centres(self, cells: Box) -> tuple[FloatArray, FloatArray]:
        """Centres of a box of cells, in cells: (y float32 [h], x float32 [w])."""
        return _centres(cells.y, cells.height, 1.0), _centres(cells.x, cells.width, 1.0)

    def context_of(self, tokens: Box, radius: float | None) -> Box:
        """The cells that a box of tokens sees.

        Args:
            tokens: the tokens that are decoded, halo included.
            radius: the distance from its centre up to which a token sees cells, in cells. None for the whole latent.
        """
        if radius is None:
            return self.cells.box
        step_y, step_x = self._steps
        y, bottom = _cells_near(tokens.y, tokens.bottom, step_y, radius, self.cells.height)
        x, right = _cells_near(tokens.x, tokens.right, step_x, radius, self.cells.width)
        return Box(x, y, right - x, bottom - y)

    def most_context(self, tokens: Size, radius: float | None) -> Size:
        """The largest width and height, in cells, of what any box of so many tokens sees; see `context_of`."""
        if radius is None:
            return self.cells
        steps = reversed(self._steps)
        reach = (
            ceil((count - 1) * step + 2 * _reach(step, radius)) + 2 for count, step in zip(tokens, steps, strict=True)
        )
        return Size(*(min(most, cells) for most, cells in zip(reach, self.cells, strict=True)))

    @property
    def _steps(self) -> tuple[float, float]:
        scale_y, scale_x = self.scale
        return 1.0 / scale_y, 1.0 / scale_x


def _centres(start: int, count: int, step: float) -> FloatArray:
    # Computed in float64, because a tile far from the origin must get exactly the coordinates of the whole picture.
    return ((np.arange(start, start + count, dtype=np.float64) + 0.5) * step).astype(np.float32)


def _cells_near(start: int, stop: int, step: float, radius: float, limit: int) -> tuple[int, int]:
    """The first cell whose centre is within reach of the tokens' centres, and the one after the last such cell."""
    reach = _reach(step, radius)
    first = floor((start + 0.5) * step - reach - 0.5)
    last = ceil((stop - 0.5) * step + reach - 0.5)
    first = min(max(first, 0), limit - 1)
    return first, max(min(last + 1, limit), first + 1)


def _reach(step: float, radius: float) -> float:
    # Whatever the radius is, a token also needs the cells that the context is interpolated from at its pixels. These
    # are up to half a step away from its centre. Bilinear interpolation reaches one cell further, and Lanczos
    # interpolation three pixels further. A token is eight pixels wide.
    return max(radius, step / 2 + max(1.0, 3 / 8 * step))
