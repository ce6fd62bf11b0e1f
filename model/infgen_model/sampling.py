"""Sampling and resampling of grids at any positions."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def bilinear(
    grid: Tensor, y: Tensor, x: Tensor, ends: tuple[Tensor, Tensor], shape: tuple[int, int] | None = None
) -> Tensor:
    """Samples a grid bilinearly at positions. Its outermost values extend outwards.

    It multiplies by a matrix of hat functions per axis instead of gathering, because runtimes are good at products.
    Values out of reach are multiplied by exactly zero, so a crop of the grid gives the same result as the whole grid.

    Args:
        grid: [B, C, h, w], with value i of an axis at position i + 0.5.
        y: [n] positions.
        x: [m] positions.
        ends: Rows and columns at which the valid values end, [] each. The grid may be padded beyond them, or be a crop
            that ends before them.
        shape: (h, w), if it is known from the source of the positions. The weights then do not depend on the grid, not
            even on its shape, and can be computed separately in higher precision.

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


LOBES = 3
"""Number of lobes of the Lanczos window, the same as Pillow's filter has. ``_windows`` is written for it."""


def lanczos(
    grid: Tensor,
    y: Tensor,
    x: Tensor,
    ends: tuple[Tensor, Tensor],
    reduction: tuple[Tensor, Tensor],
    shape: tuple[int, int],
) -> Tensor:
    """Resamples a picture at positions by Lanczos, as products like ``bilinear``.

    If the reduction is 1 and the positions are those of the grid's values, the result is these values.

    Args:
        grid: [B, C, h, w], with value i of an axis at position i + 0.5.
        y: [n] positions.
        x: [m] positions.
        ends: Rows and columns at which the valid values end, [] each.
        reduction: Values of the grid per position, vertically and horizontally, [] each. Less than 1 counts as 1.
        shape: (h, w).

    Returns:
        [B, C, n, m].
    """
    # In float32 even under autocast, because these are the picture's pixels and not features.
    with torch.autocast(grid.device.type, enabled=False):
        rows, columns = (
            _windows(place, count, end, step)
            for place, count, end, step in zip((y, x), shape, ends, reduction, strict=True)
        )
        return rows @ (grid.to(rows.dtype) @ columns.T)


def _windows(place: Tensor, count: int, end: Tensor, reduction: Tensor) -> Tensor:
    """Weights [n, count] of the Lanczos window around each place. They add up to 1."""
    centre = torch.arange(count, device=place.device, dtype=torch.float32) + 0.5
    # Positions beyond the last value are cropped later, but have to stay finite until then.
    place = torch.minimum(torch.clamp(place, min=0.5), end - 0.5)
    distance = (place[:, None] - centre) / torch.clamp(reduction, min=1.0)
    # Where the distance is 0, a tiny angle gives the same weight without a division by 0.
    third = torch.clamp(torch.abs(distance), min=1e-4) * (math.pi / LOBES)
    # The product of both sines, with sin(3 t) = sin(t) (3 - 4 sin(t)**2). OpenVINO computes sines slowly.
    sine = torch.sin(third)
    window = (sine / third).square() * (1 - 4 / 3 * sine * sine)
    window = torch.where((torch.abs(distance) < LOBES) & (centre < end), window, torch.zeros_like(window))
    return window / window.sum(1, keepdim=True)
