"""Latent to context, in two parts: what needs the whole latent, and what does not."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from infgen_export.model.config import DecoderConfig
from infgen_export.model.inpe import INPE
from infgen_export.model.layers import TripleBlock


class Prefill(nn.Module):
    """Latent [B, C, h, w] to features [B, F, h, w]. Global statistics live here and nowhere else.

    The trunk's first resolution; without detail, the context itself.
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.enter, self.blocks, channels = None, nn.Sequential(), config.latent_channels
        if config.trunk:
            channels = config.trunk[0].width
            self.enter = nn.Conv2d(config.latent_channels, channels, 3, padding=1)
            self.blocks.extend(TripleBlock(channels, pooled=True) for _ in range(config.trunk[0].blocks))
        self.to_context = None if config.detail else nn.Conv2d(channels, config.width, 1)
        # In the cell frame every cell's centre has the same place, so there is nothing to embed.
        self.inpe = INPE(config.inpe_features, config.inpe_sigma, config.width) if config.frame == "image" else None

    def forward(self, latent: Tensor) -> Tensor:
        """See the class."""
        height, width = latent.shape[2:]
        # Latents reach 4 standard deviations and more; far outliers must not blow up what follows.
        features = 3 * torch.tanh(latent / 3)
        if self.enter is not None:
            features = self.blocks(F.relu(self.enter(features)))
        if self.to_context is not None:
            features = self.to_context(features)
        if self.inpe is not None:
            y = (torch.arange(height, device=latent.device, dtype=torch.float32) + 0.5) / height
            x = (torch.arange(width, device=latent.device, dtype=torch.float32) + 0.5) / width
            features = features + self.inpe(y, x, torch.ones(2, device=latent.device)).permute(2, 0, 1)
        return features


class Refine(nn.Module):
    """Features [B, F, h, w] to context [B, D, h, w]: channels for attention, then the fine grid, folded into cells.

    The trunk's finer resolutions. Local, with a reach of ``DecoderConfig.refine_halo`` cells, so that a large latent's
    context can be made a part at a time, where and when it is needed.
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.to_context = nn.Conv2d(config.trunk[0].width, config.width, 1)
        self.grow = nn.ModuleList(
            nn.Conv2d(before.width, level.width, 3, padding=1, bias=False)
            for before, level in zip(config.trunk, config.trunk[1:], strict=False)
        )
        self.levels = nn.ModuleList(
            nn.Sequential(*(TripleBlock(level.width) for _ in range(level.blocks))) for level in config.trunk[1:]
        )
        self.to_detail = nn.Conv2d(config.trunk[-1].width, config.detail, 1)
        self.fold = nn.PixelUnshuffle(config.detail_factor)

    def forward(self, features: Tensor) -> Tensor:
        """See the class."""
        x = features
        for grow, level in zip(self.grow, self.levels, strict=True):
            x = level(grow(F.interpolate(x, scale_factor=2)))
        return torch.cat([self.to_context(features), self.fold(self.to_detail(x))], dim=1)
