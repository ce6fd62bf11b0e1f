"""Implicit neural positional embedding: a point on the sphere, its Fourier features, and a small MLP."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def sphere(y: Tensor, x: Tensor) -> Tensor:
    """Places coordinates on the unit sphere.

    They cover a quarter of a turn from north to south and half a turn around. This avoids the poles and a full turn, so
    no two positions coincide.

    Args:
        y: [n] in [0, 1].
        x: [m] in [0, 1].

    Returns:
        [n, m, 3].
    """
    latitude = ((y - 0.5) * (math.pi / 2))[:, None]
    longitude = ((x - 0.5) * math.pi)[None, :]
    around = torch.cos(latitude)
    return torch.stack(
        torch.broadcast_tensors(around * torch.cos(longitude), around * torch.sin(longitude), torch.sin(latitude)),
        dim=-1,
    )


class INPE(nn.Module):
    """Embeds positions and scale as [n, m, width]. It always computes in float32.

    Reduced precision ruins Fourier features of coordinates (relative errors of tens of percent in bfloat16), so
    autocast is switched off here.
    """

    frequencies: Tensor

    def __init__(self, features: int, sigma: float, width: int) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.randn(3, features) * sigma)
        self.mlp = nn.Sequential(nn.Linear(2 * features + 2, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, y: Tensor, x: Tensor, scale: Tensor) -> Tensor:
        """Embeds the grid of positions y [n] by x [m] in [0, 1], at a ``scale`` [2] where 1 is one token per cell."""
        with torch.autocast(y.device.type, enabled=False):
            angles = sphere(y.float(), x.float()) @ self.frequencies
            log_scale = torch.log2(scale.float()).expand(y.shape[0], x.shape[0], 2)
            return self.mlp(torch.cat([torch.cos(angles), torch.sin(angles), log_scale], dim=-1))
