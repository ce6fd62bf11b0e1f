"""Where the tokens and cells of one decode call lie, as tensors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from infgen_rt import grid as coordinates
from infgen_rt.geometry import Size


@dataclass(frozen=True)
class Grid:
    """Coordinates of a tile of tokens and of the context crop it looks at.

    Attributes:
        key_y: [hk] centres of the crop's cell rows, in cells of the whole latent.
        key_x: [wk] likewise for columns.
        token_y: [ht] centres of the token rows.
        token_x: [wt] likewise for columns.
        extent: [2] cells of the whole latent, height and width.
        scale: [2] output pixels a cell / 8, vertical and horizontal.
    """

    key_y: Tensor
    key_x: Tensor
    token_y: Tensor
    token_x: Tensor
    extent: Tensor
    scale: Tensor

    @classmethod
    def whole(cls, latent_size: tuple[int, int], size: tuple[int, int]) -> Grid:
        """The grid of a whole picture, on the CPU.

        Args:
            latent_size: Cells (h, w).
            size: Pixels (H, W); tokens cover them, rounded up to whole patches of 8.
        """
        cells, picture = (Size(width, height) for height, width in (latent_size, size))
        grid = coordinates.Grid(cells, picture, patch=8)
        vectors = (*grid.cell_centres(cells.box), *grid.token_centres(grid.tokens.box))
        key_y, key_x, token_y, token_x = (torch.from_numpy(vector) for vector in vectors)
        return cls(key_y, key_x, token_y, token_x, torch.tensor(latent_size).float(), torch.tensor(grid.scale))

    def places(self, factor: int = 1) -> tuple[Tensor, Tensor]:
        """Where the tokens are in the context crop, in cells from its top-left corner.

        Args:
            factor: Positions a token, each way.

        Returns:
            y [factor ht] and x [factor wt].
        """
        offset = (torch.arange(factor, device=self.scale.device, dtype=torch.float32) + 0.5) / factor - 0.5
        y, x = (
            (token - torch.floor(key[0]))[:, None] + offset / scale
            for token, key, scale in (
                (self.token_y, self.key_y, self.scale[0]),
                (self.token_x, self.key_x, self.scale[1]),
            )
        )
        return y.flatten(), x.flatten()

    def to(self, device: torch.device) -> Grid:
        """The same on a device."""
        return Grid(**{name: value.to(device) for name, value in vars(self).items()})

    def tile(self, rows: slice, columns: slice) -> Grid:
        """A part of the tokens over the same cells."""
        return Grid(self.key_y, self.key_x, self.token_y[rows], self.token_x[columns], self.extent, self.scale)
