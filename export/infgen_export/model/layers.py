"""Convolutional pieces that more than one part of the model is made of."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ChannelNorm(nn.Module):
    """Normalises each position of [B, C, H, W] over its channels: exact under tiling, unlike GroupNorm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Returns x over its root mean square, scaled a channel."""
        return x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-6) * self.gain


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside an identity."""

    def __init__(self, width: int, channel_norm: bool = False) -> None:
        super().__init__()
        self.norm = ChannelNorm(width) if channel_norm else nn.Identity()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        with torch.no_grad():
            self.second.weight.mul_(0.3)  # starts close to the identity

    def forward(self, x: Tensor) -> Tensor:
        """[B, width, H, W] to the same."""
        return x + self.second(F.relu(self.first(self.norm(x))))


def residual_blocks(width: int, count: int, channel_norm: bool = False) -> nn.Sequential:
    """A chain of residual blocks."""
    return nn.Sequential(*(ResidualBlock(width, channel_norm) for _ in range(count)))
