"""Samples and resamples grids at any positions."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def bilinear(
    grid: Tensor, y: Tensor, x: Tensor, ends: tuple[Tensor, Tensor], shape: tuple[int, int] | None = None
) -> Tensor:
    """Samples a grid bilinearly at positions. Beyond its ends, the grid continues with its outermost values.

    The grid is multiplied by a matrix of hat functions for each axis, because runtimes multiply fast.
    Values out of reach have a weight of exactly zero, so a crop of the grid gives the same result as the whole grid.

    Args:
        grid: [B, C, h, w], with value i of an axis at position i + 0.5.
        y: Vertical positions [n].
        x: Horizontal positions [m].
        ends: Number of valid rows and columns, [] or [1] each. The grid may be padded beyond them, or be a crop that
            ends before them.
        shape: (h, w), if it is known without the grid. The weights then depend only on coordinates, so that an exported
            graph can compute them in higher precision than the grid.

    Returns:
        [B, C, n, m].

    Examples:
        >>> grid = torch.tensor([[[[0.0, 10.0]]]])
        >>> ends = (torch.tensor(1.0), torch.tensor(2.0))
        >>> bilinear(grid, torch.tensor([0.5]), torch.tensor([0.0, 0.5, 0.75, 1.5]), ends)
        tensor([[[[ 0.0000,  0.0000,  2.5000, 10.0000]]]])
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


LOBES = 3
"""Number of lobes of the Lanczos window, as in Pillow's filter. ``_windows`` works for this number only."""


def lanczos(
    grid: Tensor,
    y: Tensor,
    x: Tensor,
    ends: tuple[Tensor, Tensor],
    reduction: tuple[Tensor, Tensor],
    shape: tuple[int, int],
) -> Tensor:
    """Resamples a picture at positions by Lanczos. Like ``bilinear``, it consists of matrix products.

    If the reduction is 1 and the positions are those of the grid's values, the result is the grid itself.

    Args:
        grid: [B, C, h, w], with value i of an axis at position i + 0.5.
        y: Vertical positions [n].
        x: Horizontal positions [m].
        ends: Number of valid rows and columns, [] or [1] each.
        reduction: Number of the grid's values per position, vertically and horizontally, [] or [1] each. A number
            below 1 counts as 1.
        shape: (h, w), which has to be known without the grid.

    Returns:
        [B, C, n, m].
    """
    # These are the picture's pixels and not features, so they are computed in float32 even under autocast.
    with torch.autocast(grid.device.type, enabled=False):
        rows, columns = (
            _windows(place, count, end, step)
            for place, count, end, step in zip((y, x), shape, ends, reduction, strict=True)
        )
        return rows @ (grid.to(rows.dtype) @ columns.T)


def _windows(place: Tensor, count: int, end: Tensor, reduction: Tensor) -> Tensor:
    """Weights [n, count] of the Lanczos window around each place. They add up to 1."""
    centre = torch.arange(count, device=place.device, dtype=torch.float32) + 0.5
    # Pixels beyond the last value are cropped later. Until then, they have to be finite.
    place = torch.minimum(torch.clamp(place, min=0.5), end - 0.5)
    third = torch.abs(place[:, None] - centre) * (math.pi / LOBES / torch.clamp(reduction, min=1.0))
    # A tiny angle instead of 0 gives the same weight, and avoids a division by 0. At half a turn, the window ends.
    third = torch.clamp(third, 1e-4, math.pi)
    # The window is sin(3 t) sin(t) / (3 t**2), and sin(3 t) = sin(t) (3 - 4 sin(t)**2). One sine is enough, which saves
    # time in OpenVINO.
    square = torch.sin(third).square()
    window = torch.where(centre < end, square * (0.75 - square) / third.square(), 0.0)
    return window / window.sum(1, keepdim=True)
