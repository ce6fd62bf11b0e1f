"""Values of a grid between its positions."""

from __future__ import annotations

import torch
from torch import Tensor


def bilinear(
    grid: Tensor, y: Tensor, x: Tensor, ends: tuple[Tensor, Tensor], shape: tuple[int, int] | None = None
) -> Tensor:
    """Samples a grid at positions; its outermost values extend outwards.

    A product with a matrix of hat functions an axis rather than a gather: runtimes are good at products, and values out
    of reach are multiplied by exactly zero, so a crop of the grid gives what the whole grid gives.

    Args:
        grid: [B, C, h, w], value i of an axis at position i + 0.5.
        y: [n] positions.
        x: [m] positions.
        ends: Rows and columns up to which values count, [] each; a grid may be padded beyond, or be a crop that ends
            before.
        shape: (h, w), from what gave the positions: weights that do not depend on the grid, not even on its shape, can
            be computed apart from it, in higher precision.

    Returns:
        [B, C, n, m].
    """
    counts = shape or (grid.shape[2], grid.shape[3])
    rows, columns = (
        _hats(place, count, end).to(grid.dtype) for place, count, end in zip((y, x), counts, ends, strict=True)
    )
    return rows @ (grid @ columns.T)


def _hats(place: Tensor, count: int, end: Tensor) -> Tensor:
    """Weights [n, count] of linear interpolation between values at i + 0.5."""
    centre = torch.arange(count, device=place.device, dtype=torch.float32) + 0.5
    place = torch.minimum(torch.clamp(place, min=0.5), end - 0.5)
    return torch.clamp(1 - torch.abs(place[:, None] - centre), min=0)
