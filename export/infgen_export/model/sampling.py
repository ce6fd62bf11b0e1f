"""Values of a grid between its positions."""

from __future__ import annotations

import torch
from torch import Tensor


def bilinear(grid: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Samples a grid at positions; its outermost values extend outwards.

    A product with a matrix of hat functions an axis rather than a gather: runtimes are good at products, and values out
    of reach are multiplied by exactly zero, so a crop of the grid gives what the whole grid gives.

    Args:
        grid: [B, C, h, w], value i of an axis at position i + 0.5.
        y: [n] positions.
        x: [m] positions.

    Returns:
        [B, C, n, m].
    """
    rows, columns = (_hats(place, grid.shape[axis]).to(grid.dtype) for axis, place in ((2, y), (3, x)))
    return rows @ (grid @ columns.T)


def _hats(place: Tensor, count: int) -> Tensor:
    """Weights [n, count] of linear interpolation between values at i + 0.5."""
    centre = torch.arange(count, device=place.device, dtype=torch.float32) + 0.5
    place = torch.minimum(torch.clamp(place, min=0.5), centre[-1])
    return torch.clamp(1 - torch.abs(place[:, None] - centre), min=0)
