"""Implicit neural positional embedding: a point on the sphere, its Fourier features, and a small MLP."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def sphere(y: Tensor, x: Tensor) -> Tensor:
    """Places coordinates on the unit sphere.

    The latitude covers a quarter of a turn, from -45 to 45 degrees, and the longitude half a turn. Neither reaches a
    pole or a full turn, so no two positions coincide.

    Args:
        y: Vertical coordinates [n] in [0, 1].
        x: Horizontal coordinates [m] in [0, 1].

    Returns:
        Points [n, m, 3] on the sphere.

    Examples:
        >>> sphere(torch.tensor([0.5]), torch.tensor([0.5]))
        tensor([[[1., 0., 0.]]])
    """
    # The point is (cos a cos b, cos a sin b, sin a). As cos(t) = sin(t + 90 degrees), each axis needs one sine.
    quarter = math.pi / 2
    latitude, longitude = ((y - 0.5) * (math.pi / 2))[:, None, None], ((x - 0.5) * math.pi)[:, None]
    shift_y, shift_x, turns = torch.tensor(
        [[quarter, quarter, 0.0], [quarter, 0.0, quarter], [1.0, 1.0, 0.0]], device=y.device
    )
    return torch.sin(latitude + shift_y) * torch.sin(longitude * turns + shift_x)


class INPE(nn.Module):
    """Embeds positions and a scale. It always computes in float32.

    Autocast is switched off, because lower precision ruins Fourier features of coordinates: in bfloat16, their relative
    errors are tens of percent.
    """

    frequencies: Tensor

    def __init__(self, features: int, sigma: float, width: int) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.randn(3, features) * sigma)
        self.mlp = nn.Sequential(nn.Linear(2 * features + 2, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, y: Tensor, x: Tensor, scale: Tensor) -> Tensor:
        """Embeds a grid of positions.

        Args:
            y: Vertical coordinates [n] in [0, 1].
            x: Horizontal coordinates [m] in [0, 1].
            scale: Vertical and horizontal scale [2]. A scale of 1 is one token per cell.

        Returns:
            [n, m, width].
        """
        with torch.autocast(y.device.type, enabled=False):
            angles = sphere(y.float(), x.float()) @ self.frequencies
            log_scale = torch.log2(scale.float()).expand(y.shape[0], x.shape[0], 2)
            return self.mlp(torch.cat([torch.cos(angles), torch.sin(angles), log_scale], dim=-1))
