"""Makes a context from a latent, by statistics of the whole latent, and by prefill and refine, which are local."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from infgen_model.config import DecoderConfig, Enlargement
from infgen_model.enlarger import Enlarger, fold_of
from infgen_model.inpe import INPE
from infgen_model.layers import TripleBlock, TripleBlocks, fold


class Prefill(nn.Module):
    """Makes features [B, F, h, w] from a latent [B, C, h, w].

    The features are those of the trunk's first resolution. In a model without detail, they are the context. Prefill is
    the only part that uses global statistics. If these are given, it is local, with a reach of
    ``DecoderConfig.prefill_halo`` cells.
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.enter, channels = None, config.latent_channels
        if config.trunk:
            channels = config.trunk[0].width
            self.enter = nn.Conv2d(config.latent_channels, channels, 3, padding=1)
        self.blocks = TripleBlocks(channels, config.trunk[0].blocks if config.trunk else 0, config.pooled)
        self.to_context = None if config.detail else nn.Conv2d(channels, config.width, 1)
        # In the cell frame, every cell's centre has the same position, so there is nothing to embed.
        self.inpe = INPE(config.inpe_features, config.inpe_sigma, config.width) if config.frame == "image" else None

    def first(self, latent: Tensor) -> Tensor:
        """The input of the blocks: [B, F, h, w], or [B, C, h, w] without a trunk."""
        # Values of 4 standard deviations and more occur in latents. Outliers must not make the next layers overflow.
        x = 3 * torch.tanh(latent / 3)
        return x if self.enter is None else F.relu(self.enter(x))

    def forward(self, latent: Tensor, moments: Tensor | None = None) -> Tensor:
        """Makes features; see the class.

        Args:
            latent: The whole latent, or a part of it if the moments are given.
            moments: [2, blocks, groups] from ``Statistics``. If omitted, those of ``latent`` are used.
        """
        features: Tensor = self.blocks(self.first(latent), moments)
        if self.to_context is not None:
            features = self.to_context(features)
        if self.inpe is not None:
            height, width = latent.shape[2:]
            y = (torch.arange(height, device=latent.device, dtype=torch.float32) + 0.5) / height
            x = (torch.arange(width, device=latent.device, dtype=torch.float32) + 0.5) / width
            features = features + self.inpe(y, x, torch.ones(2, device=latent.device)).permute(2, 0, 1)
        return features


class Statistics(nn.Module):
    """Computes the moments [2, blocks, groups] of a latent [1, C, h, w], or of a part of one.

    The moments are means and variances, with which each of prefill's blocks normalises its groups. The moments of a
    block depend on those of the blocks before it. A latent that is split into parts therefore takes one pass per block.
    After each pass, the moments of the parts are merged.
    """

    def __init__(self, prefill: Prefill) -> None:
        super().__init__()
        self.prefill = prefill

    def forward(self, latent: Tensor, share_y: Tensor, share_x: Tensor, known: Tensor) -> Tensor:
        """Computes moments; see the class.

        Args:
            latent: [1, C, h, w], the whole latent, or a part with ``DecoderConfig.prefill_halo`` cells around it.
            share_y: [h], the weight of each row; see ``TripleBlocks.moments``.
            share_x: [w], the weight of each column.
            known: [2, blocks, groups], moments of the whole latent that are already known.
        """
        return self.prefill.blocks.moments(self.prefill.first(latent), share_y, share_x, known)


class Refine(nn.Module):
    """Makes the context [B, D, h, w] from features [B, F, h, w].

    The context of a cell has the channels for attention, then the fine grid, and then the enlarged picture. The fine
    grid and the picture are folded into cells. Refine consists of the trunk's finer resolutions and of the enlarger
    after them. It is local, with a reach of ``DecoderConfig.refine_halo`` cells, so it can make a context in parts.
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        width = config.trunk[-1].width
        self.to_context = nn.Conv2d(config.trunk[0].width, config.width, 1)
        self.grow = nn.ModuleList(
            nn.Conv2d(before.width, level.width, 3, padding=1, bias=False)
            for before, level in zip(config.trunk, config.trunk[1:], strict=False)
        )
        self.levels = nn.ModuleList(
            nn.Sequential(*(TripleBlock(level.width) for _ in range(level.blocks))) for level in config.trunk[1:]
        )
        self.adapt = nn.Conv2d(width, width, 1) if config.adapted else None
        self.to_detail = nn.Conv2d(width, config.detail, 1)
        self.enlarger = Enlarger(width, config.enlargements)
        self.fold = config.detail_factor

    def grown(self, features: Tensor) -> Tensor:
        """Computes the trunk's finer resolutions.

        Args:
            features: [B, F, h, w] from prefill.

        Returns:
            [B, T, 8 * h, 8 * w]: features for the enlarger and the detail, and the picture in the last three channels.
        """
        for grow, level in zip(self.grow, self.levels, strict=True):
            features = level(grow(F.interpolate(features, scale_factor=2)))
        picture = self.enlarger.to_picture(features)
        if self.adapt is not None:
            features = F.relu(self.adapt(features))
        return torch.cat([features, picture], dim=1)

    def forward(self, features: Tensor, enlargement: Enlargement) -> Tensor:
        """Makes the context for an enlargement; see the class."""
        return self.enlarged(features, self.grown(features), enlargement)

    def enlarged(self, features: Tensor, fine: Tensor, enlargement: Enlargement) -> Tensor:
        """Makes the context from what prefill and the trunk have computed. No parameter of the trunk is used.

        Args:
            features: [B, F, h, w] from prefill.
            fine: [B, T, 8 * h, 8 * w] from ``grown``.
            enlargement: The enlargement to make the context for.

        Returns:
            [B, D, h, w].
        """
        picture = self.enlarger.folded(fine[:, :-3], fine[:, -3:], enlargement)
        return self.with_picture(features, fine, fold(picture, self.fold * enlargement.factor, fold_of(enlargement)))

    def with_picture(self, features: Tensor, fine: Tensor, enlarged: Tensor) -> Tensor:
        """Makes the context as ``enlarged`` does, with an enlarged picture that is folded into cells already."""
        return torch.cat([self.to_context(features), fold(self.to_detail(fine[:, :-3]), self.fold), enlarged], dim=1)
