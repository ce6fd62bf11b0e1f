"""The positions of the tokens and cells of one decode call, as tensors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from infgen_model.config import DecoderConfig
from infgen_rt.geometry import grid as coordinates
from infgen_rt.geometry.shapes import Size


@dataclass(frozen=True)
class Axis:
    """The positions along one axis of a ``Grid``.

    Attributes:
        key: [k] centres of the context crop's cells, in cells of the whole latent.
        token: [n] centres of the tokens, in cells of the whole latent.
        extent: [1] number of cells of the whole latent.
        scale: [1] output pixels per cell, divided by 8.
    """

    key: Tensor
    token: Tensor
    extent: Tensor
    scale: Tensor

    @property
    def corner(self) -> Tensor:
        """[1] where the context crop begins, in cells of the whole latent."""
        return self.key[:1] - 0.5  # a slice, because exported graphs have an operation more for every scalar

    def places(self, positions: int, fine: int) -> Tensor:
        """Positions in a grid over the context crop, in values of that grid from the crop's beginning.

        Positions beyond the latent's ends are moved to its outermost values, because pixels beyond the picture's end
        have to be finite until they are cropped.

        Args:
            positions: Number of positions per token.
            fine: Number of the grid's values per cell.

        Returns:
            [n * positions] float32, in rising order.
        """
        offset = (torch.arange(positions, device=self.token.device, dtype=torch.float32) + 0.5) / positions - 0.5
        place = ((self.token - self.corner) * fine)[:, None] + offset * fine / self.scale
        return torch.minimum(torch.clamp(place.flatten(), min=0.5), self.end(fine) - 0.5)

    def end(self, fine: int) -> Tensor:
        """[1] where the latent ends in such a grid."""
        return fine * (self.extent - self.corner)


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

    @property
    def axes(self) -> tuple[Axis, Axis]:
        """The vertical and the horizontal axis."""
        (height, width), (vertical, horizontal) = self.extent.split(1), self.scale.split(1)
        return Axis(self.key_y, self.token_y, height, vertical), Axis(self.key_x, self.token_x, width, horizontal)

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


@dataclass(frozen=True)
class Places:
    """Where tokens lie in a cell, if they lie at the same places in every cell: when a scale is a whole number.

    Attributes:
        of_tokens: [n] centres of the tokens along each axis, in cells from the cell's corner. n is the scale.
    """

    of_tokens: Tensor

    @classmethod
    def at(cls, scale: int, device: torch.device) -> Places:
        """The places at a scale.

        Examples:
            >>> Places.at(2, torch.device("cpu")).of_tokens
            tensor([0.2500, 0.7500])
        """
        return cls((torch.arange(scale, device=device, dtype=torch.float32) + 0.5) / scale)

    @property
    def scale(self) -> Tensor:
        """[2] output pixels per cell, divided by 8, as in ``Grid``."""
        return torch.full((2,), float(len(self.of_tokens)), device=self.of_tokens.device)

    # Tensors have at most five dimensions here, because Core ML takes no more.

    def added(self, tokens: Tensor, values: Tensor) -> Tensor:
        """Adds values [n, n, D], which are the same in every cell, to tokens [B, n * h, n * w, D]."""
        return (self._by_line(tokens) + values.flatten(1).unsqueeze(1)).reshape(tokens.shape)

    def by_cell(self, tokens: Tensor) -> Tensor:
        """Values of tokens [B, n * h, n * w, D], cell by cell: [B * h * w, n * n, D]."""
        return self._by_line(tokens).transpose(1, 2).reshape(-1, len(self.of_tokens) ** 2, tokens.shape[3])

    def by_row(self, tokens: Tensor, width: int, batch: int) -> Tensor:
        """The inverse of ``by_cell``, for B latents of ``width`` cells w."""
        count = len(self.of_tokens)
        lines = tokens.reshape(-1, width, count, count * tokens.shape[2]).transpose(1, 2)
        return lines.reshape(batch, -1, count * width, tokens.shape[2])

    def _by_line(self, tokens: Tensor) -> Tensor:
        """[B * h, n, w, n * D]: the cells of a row, one line of their tokens after another."""
        count = len(self.of_tokens)
        return tokens.reshape(-1, count, tokens.shape[2] // count, count * tokens.shape[3])

    def around(self, reach: int) -> Tensor:
        """[2 * reach + 1] centres of the cells around a cell, from that cell's corner."""
        return torch.arange(-reach, reach + 1, device=self.of_tokens.device, dtype=torch.float32) + 0.5
