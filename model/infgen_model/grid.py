"""The positions of the tokens and cells of one decode call, as tensors."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from infgen_model.config import DecoderConfig
from infgen_rt.geometry import grid as coordinates
from infgen_rt.geometry.shapes import Size


@dataclass(frozen=True)
class Grid:
    """Coordinates of a tile of tokens and of the context crop that it sees.

    Attributes:
        key_y: [hk] centres of the crop's cell rows, in cells of the whole latent.
        key_x: [wk] centres of the crop's cell columns.
        token_y: [ht] centres of the token rows, in cells of the whole latent.
        token_x: [wt] centres of the token columns.
        extent: [2] height and width of the whole latent, in cells.
        scale: [2] output pixels per cell, divided by 8, vertically and horizontally.
        padded: Whether some cells and tokens only fill a fixed shape and lie beyond the latent. They are then masked,
            so that they do not change the others. Masking takes some time.
    """

    key_y: Tensor
    key_x: Tensor
    token_y: Tensor
    token_x: Tensor
    extent: Tensor
    scale: Tensor
    padded: bool = False

    @classmethod
    def whole(cls, latent_size: tuple[int, int], size: tuple[int, int]) -> Grid:
        """The grid of a whole picture, on the CPU.

        Args:
            latent_size: Height and width of the latent, in cells.
            size: Height and width of the picture, in pixels. The tokens cover it, rounded up to whole patches of 8.

        Examples:
            >>> grid = Grid.whole((4, 6), size=(64, 96))
            >>> grid.token_y.shape, grid.token_x.shape, grid.scale
            (torch.Size([8]), torch.Size([12]), tensor([2., 2.]))
        """
        cells, picture = (Size(width, height) for height, width in (latent_size, size))
        grid = coordinates.Grid(cells, picture, DecoderConfig.PATCH)
        vectors = (*grid.cell_centres(cells.box), *grid.token_centres(grid.tokens.box))
        key_y, key_x, token_y, token_x = (torch.from_numpy(vector) for vector in vectors)
        return cls(key_y, key_x, token_y, token_x, torch.tensor(latent_size).float(), torch.tensor(grid.scale))

    def places(self, factor: int = 1) -> tuple[Tensor, Tensor]:
        """Positions of the tokens in the context crop, in cells from its top-left corner.

        Args:
            factor: Number of positions per token, along each axis.

        Returns:
            The rows y [factor * ht] and the columns x [factor * wt], float32.
        """
        corner_y, corner_x = self._corner()
        y, x = self.token_y - corner_y, self.token_x - corner_x
        if factor == 1:
            return y, x
        offset = (torch.arange(factor, device=self.scale.device, dtype=torch.float32) + 0.5) / factor - 0.5
        y, x = (place[:, None] + offset / scale for place, scale in zip((y, x), self.scale.split(1), strict=True))
        return y.flatten(), x.flatten()

    def _corner(self) -> tuple[Tensor, Tensor]:
        """The context crop's top-left corner in cells, [1] each."""
        # Slices, because exported graphs have an operation more for every scalar.
        return torch.floor(self.key_y[:1]), torch.floor(self.key_x[:1])

    @property
    def keys(self) -> tuple[int, int]:
        """Number of rows and columns of the context crop."""
        return self.key_y.shape[0], self.key_x.shape[0]

    def ends(self) -> tuple[Tensor, Tensor]:
        """Number of rows and columns from the context crop's top-left corner to the latent's end, [1] each."""
        (end_y, end_x), (corner_y, corner_x) = self.extent.split(1), self._corner()
        return end_y - corner_y, end_x - corner_x

    def finer(self, factor: int) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
        """``ends`` and ``keys`` of a finer grid with ``factor`` positions per cell along each axis."""
        rows, columns = self.ends()
        return (factor * rows, factor * columns), (factor * self.keys[0], factor * self.keys[1])

    def keys_inside(self) -> Tensor:
        """[hk, wk] bool: whether each key is a cell of the latent."""
        return (self.key_y < self.extent[0])[:, None] & (self.key_x < self.extent[1])

    def tokens_inside(self) -> Tensor:
        """[ht, wt] bool: whether each token has a pixel in the picture."""
        # The first pixel's centre is compared, which is half a pixel inside of the token, so rounding does not matter.
        y, x = (
            token - (0.5 - 1 / 16) / scale < extent
            for token, scale, extent in zip((self.token_y, self.token_x), self.scale, self.extent, strict=True)
        )
        return y[:, None] & x

    def to(self, device: torch.device) -> Grid:
        """The same grid on a device."""
        tensors = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return Grid(**tensors, padded=self.padded)

    def tile(self, rows: slice, columns: slice) -> Grid:
        """The grid of a part of the tokens over the same cells."""
        return replace(self, token_y=self.token_y[rows], token_x=self.token_x[columns])
