"""Prefill: what sees the whole latent, once. Global statistics live here and nowhere else."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from infgen_export.model.config import DecoderConfig
from infgen_export.model.inpe import INPE
from infgen_export.model.layers import ResidualBlock


class GlobalBlock(nn.Module):
    """A residual block beside a branch whose GroupNorm spans the whole latent.

    FLUX.2's and SD's autoencoders carry global statistics; a decoder that cannot see them stays many dB behind.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.local = ResidualBlock(width)
        self.widen = nn.Conv2d(width, 2 * width, 1, bias=False)
        self.norm = nn.GroupNorm(4, 2 * width)
        self.narrow = nn.Conv2d(2 * width, width, 1, bias=False)
        with torch.no_grad():
            self.narrow.weight.mul_(0.3)

    def forward(self, x: Tensor) -> Tensor:
        """[B, width, h, w] to the same."""
        x = x + self.narrow(F.relu(self.norm(self.widen(x))))
        return self.local(x)


class Prefill(nn.Module):
    """Latent [B, C, h, w] to context [B, D, h, w]."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        if config.trunk_blocks:
            self.trunk: nn.Module = nn.Sequential(
                nn.Conv2d(config.latent_channels, config.trunk_width, 3, padding=1),
                *(GlobalBlock(config.trunk_width) for _ in range(config.trunk_blocks)),
                nn.Conv2d(config.trunk_width, config.width, 1),
            )
        else:
            self.trunk = nn.Conv2d(config.latent_channels, config.width, 1)
        # In the cell frame every cell's centre has the same place, so there is nothing to embed.
        self.inpe = INPE(config.inpe_features, config.inpe_sigma, config.width) if config.frame == "image" else None

    def forward(self, latent: Tensor) -> Tensor:
        """See the class."""
        # Latents reach 4 standard deviations and more; far outliers must not blow up what follows.
        context = self.trunk(4 * torch.tanh(latent / 4))
        if self.inpe is None:
            return context
        height, width = latent.shape[2:]
        y = (torch.arange(height, device=latent.device, dtype=torch.float32) + 0.5) / height
        x = (torch.arange(width, device=latent.device, dtype=torch.float32) + 0.5) / width
        place = self.inpe(y, x, torch.ones(2, device=latent.device))
        return context + place.permute(2, 0, 1)
