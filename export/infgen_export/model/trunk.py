"""Prefill: what sees the whole latent, once. Global statistics live here and nowhere else."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from infgen_export.model.config import DecoderConfig
from infgen_export.model.inpe import INPE
from infgen_export.model.layers import TripleBlock


class Trunk(nn.Module):
    """Latent [B, C, h, w] to features at every level's resolution, coarsest first."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.enter = nn.Conv2d(config.latent_channels, config.trunk[0].width, 3, padding=1)
        self.grow = nn.ModuleList(
            nn.Conv2d(before.width, level.width, 3, padding=1, bias=False)
            for before, level in zip(config.trunk, config.trunk[1:], strict=False)
        )
        self.levels = nn.ModuleList(
            nn.Sequential(*(TripleBlock(level.width, pooled=index == 0) for _ in range(level.blocks)))
            for index, level in enumerate(config.trunk)
        )

    def forward(self, latent: Tensor) -> list[Tensor]:
        """See the class."""
        features = [self.levels[0](F.relu(self.enter(latent)))]
        for grow, level in zip(self.grow, self.levels[1:], strict=True):
            features.append(level(grow(F.interpolate(features[-1], scale_factor=2))))
        return features


class Prefill(nn.Module):
    """Latent [B, C, h, w] to context [B, D, h, w]: channels for attention, then the fine grid, folded into cells."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.trunk = Trunk(config) if config.trunk else None
        channels = config.trunk[0].width if config.trunk else config.latent_channels
        self.to_context = nn.Conv2d(channels, config.width, 1)
        self.to_detail = nn.Conv2d(config.trunk[-1].width, config.detail, 1) if config.detail else None
        self.fold = nn.PixelUnshuffle(config.detail_factor)
        # In the cell frame every cell's centre has the same place, so there is nothing to embed.
        self.inpe = INPE(config.inpe_features, config.inpe_sigma, config.width) if config.frame == "image" else None

    def forward(self, latent: Tensor) -> Tensor:
        """See the class."""
        height, width = latent.shape[2:]
        # Latents reach 4 standard deviations and more; far outliers must not blow up what follows.
        latent = 3 * torch.tanh(latent / 3)
        features = [latent] if self.trunk is None else self.trunk(latent)
        context = self.to_context(features[0])
        if self.inpe is not None:
            y = (torch.arange(height, device=latent.device, dtype=torch.float32) + 0.5) / height
            x = (torch.arange(width, device=latent.device, dtype=torch.float32) + 0.5) / width
            context = context + self.inpe(y, x, torch.ones(2, device=latent.device)).permute(2, 0, 1)
        if self.to_detail is None:
            return context
        return torch.cat([context, self.fold(self.to_detail(features[-1]))], dim=1)
