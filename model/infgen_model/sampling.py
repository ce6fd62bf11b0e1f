"""Resamples grids over the context crop at the positions of tokens and of their pixels."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from infgen_model.grid import Axis

LOBES = 3
"""Number of lobes of the Lanczos window, as in Pillow's filter. ``_window`` works for this number only."""


def bilinear(grid: Tensor, axes: tuple[Axis, Axis], positions: int, fine: int) -> Tensor:
    """Samples a grid bilinearly. Beyond the latent's ends, the grid continues with its outermost values.

    The grid is multiplied by a matrix of hat functions for each axis, because runtimes multiply fast.
    Values out of reach have a weight of exactly zero, so a crop of the grid gives the same result as the whole grid.

    Args:
        grid: [B, C, fine * hk, fine * wk].
        axes: The tokens and the cells.
        positions: Number of positions per token, along each axis.
        fine: Number of the grid's values per cell, along each axis.

    Returns:
        [B, C, positions * ht, positions * wt].

    Examples:
        >>> from infgen_model.grid import Grid
        >>> grid = Grid.whole((1, 2), size=(8, 32))
        >>> bilinear(torch.tensor([[[[0.0, 10.0]]]]), grid.axes, 1, 1)
        tensor([[[[ 0.0000,  2.5000,  7.5000, 10.0000]]]])
    """
    rows, columns = (_hats(axis, positions, fine).to(grid.dtype) for axis in axes)
    return rows @ (grid @ columns.T)


def _hats(axis: Axis, positions: int, fine: int) -> Tensor:
    """Weights [positions * n, fine * k] of linear interpolation."""
    # They depend only on coordinates, so that an exported graph can compute them in higher precision than the grid.
    centre = torch.arange(fine * axis.key.shape[0], device=axis.key.device, dtype=torch.float32) + 0.5
    return torch.clamp(1 - torch.abs(axis.places(positions, fine)[:, None] - centre), min=0)


def lanczos(grid: Tensor, axes: tuple[Axis, Axis], positions: int, fine: int, widest: float) -> Tensor:
    """Resamples a picture by Lanczos, in float32.

    If the positions are those of the grid's values, the result is the grid itself.

    Args:
        grid: [B, C, fine * hk, fine * wk].
        axes: The tokens and the cells.
        positions: Number of positions per token, along each axis.
        fine: Number of the grid's values per cell, along each axis.
        widest: The window grows with the number of the grid's values per position, but no further than for this number.

    Returns:
        [B, C, positions * ht, positions * wt].
    """
    # These are the picture's pixels and not features, so they are computed in float32 even under autocast.
    with torch.autocast(grid.device.type, enabled=False):
        rows, columns = (_Band.of(axis, positions, fine, max(widest, 1.0)) for axis in axes)
        across = columns.along(grid.to(columns.weights.dtype).transpose(2, 3))
        return rows.along(across.transpose(2, 3))


@dataclass(frozen=True)
class _Band:
    """How the values at the positions of one axis are computed from a grid's values.

    The positions are split into groups that lie side by side, and all positions of a group are sums over the same
    window of the grid. The product with the weights is several times smaller than with a matrix over the whole grid.

    Attributes:
        index: [groups * window] int64, the windows' places in the grid.
        weights: [groups, n, window], the weights of a window's values for each of a group's n positions.
    """

    index: Tensor
    weights: Tensor

    @classmethod
    def of(cls, axis: Axis, positions: int, fine: int, widest: float) -> _Band:
        """Makes as many groups as a token has positions; see ``lanczos``."""
        place, values = axis.places(positions, fine).reshape(positions, -1), fine * axis.key.shape[0]
        # A window has the grid's values from the first to the last position of its group, and what these two reach
        # beyond. All tokens but the last lie within the latent, so the distance from the first to the last position is
        # at most the grid's length divided by the number of groups.
        reach = math.ceil(LOBES * widest)
        window = -(-fine // positions) * axis.key.shape[0] + (2 * reach + math.ceil(widest) + 1)
        first = torch.clamp(torch.floor(place[:, :1] - reach), min=0)
        taps = first + torch.arange(window, device=place.device, dtype=torch.float32)
        step = torch.clamp(fine / positions / axis.scale, 1.0, widest)
        centre = taps[:, None] + 0.5
        weights = torch.where(centre < axis.end(fine), _window((place[:, :, None] - centre) / step), 0.0)
        index = torch.clamp(taps, max=values - 1).to(torch.int64)
        return cls(index.flatten(), weights / weights.sum(2, keepdim=True))

    def along(self, grid: Tensor) -> Tensor:
        """Resamples the third axis of a grid [B, C, k, l] and returns [B, C, groups * n, l]."""
        windows = grid.index_select(2, self.index).unflatten(2, (self.weights.shape[0], -1))
        return (self.weights @ windows).flatten(2, 3)


def _window(distance: Tensor) -> Tensor:
    """The Lanczos window. It is 0 from a distance of ``LOBES`` on."""
    # A tiny angle instead of 0 gives the same weight, and avoids a division by 0. At half a turn, the window ends.
    third = torch.clamp(torch.abs(distance) * (math.pi / LOBES), 1e-4, math.pi)
    # The window is sin(3 t) sin(t) / (3 t**2), and sin(3 t) = sin(t) (3 - 4 sin(t)**2). One sine is enough, which saves
    # time in OpenVINO.
    square = torch.sin(third).square()
    return square * (0.75 - square) / third.square()
