"""Tokens to pixels: convolutions and pixel shuffles with a bounded reach."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from infgen_export.model.config import DecoderConfig
from infgen_export.model.layers import residual_blocks


class Upsampler(nn.Module):
    """Tokens [B, D, ht, wt] to an image [B, 3, 8 ht, 8 wt], about [0, 1].

    No normalisation across positions and a reach of ``DecoderConfig.halo_tokens``: the same pixels whatever the tile.
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        layers: list[nn.Module] = [residual_blocks(config.width, config.token_blocks, config.channel_norm)]
        width = config.width
        for level in config.levels:
            layers += [
                nn.Conv2d(width, 4 * level.width, 1),
                nn.PixelShuffle(2),
                residual_blocks(level.width, level.blocks, config.channel_norm),
            ]
            width = level.width
        self.layers = nn.Sequential(*layers)
        self.to_pixels = nn.Conv2d(width, 3 * config.final_factor**2, 3, padding=1)
        self.shuffle = nn.PixelShuffle(config.final_factor)
        with torch.no_grad():
            self.to_pixels.weight.mul_(0.3)
            if self.to_pixels.bias is not None:
                self.to_pixels.bias.fill_(0.5)  # mid-grey

    def forward(self, tokens: Tensor) -> Tensor:
        """See the class."""
        return self.shuffle(self.to_pixels(self.layers(tokens)))
