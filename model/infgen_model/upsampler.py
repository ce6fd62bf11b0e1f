"""Makes pixels from tokens, with convolutions and pixel shuffles that have a bounded reach."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from infgen_model.config import DecoderConfig
from infgen_model.layers import ResidualBlocks, masked


class Upsampler(nn.Module):
    """Makes an image [B, 3, 8 * ht, 8 * wt], mostly in [0, 1], from tokens [B, D, ht, wt].

    It does not normalise over positions, and its reach is ``DecoderConfig.halo_tokens``. The pixels are therefore the
    same for every tiling.

    Attributes:
        factor: Number of positions per token, along each axis, at the last level. The detail is added there.
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.factor = 1 << len(config.levels)
        self.first = ResidualBlocks(config.width, config.token_blocks, config.channel_norm)
        widths = [config.width, *(level.width for level in config.levels)]
        self.enlarge = nn.ModuleList(
            nn.Sequential(nn.Conv2d(before, 4 * after, 1), nn.PixelShuffle(2))
            for before, after in zip(widths, widths[1:], strict=False)
        )
        self.levels = nn.ModuleList(
            ResidualBlocks(level.width, level.blocks, config.channel_norm) for level in config.levels
        )
        self.from_detail = nn.Conv2d(config.detail, widths[-1], 1) if config.detail else None
        self.to_pixels = nn.Conv2d(widths[-1], 3 * config.final_factor**2, 3, padding=1)
        self.shuffle = nn.PixelShuffle(config.final_factor)
        assert self.to_pixels.bias is not None
        with torch.no_grad():
            # In a new model, tokens that correct an enlarged picture do not change it. Without such a picture, the
            # pixels are close to mid-grey.
            self.to_pixels.weight.mul_(0.0 if config.enlargements else 0.3)
            self.to_pixels.bias.fill_(0.0 if config.enlargements else 0.5)

    def forward(self, tokens: Tensor, detail: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Makes an image; see the class.

        Args:
            tokens: [B, D, ht, wt].
            detail: [B, width, factor * ht, factor * wt], what ``from_detail`` makes of the context's fine grid, at the
                last level's positions. It is required if the model has detail.
            mask: [1, 1, ht, wt], which is 0 for tokens that only fill a fixed shape, and else 1. Convolutions see zeros
                in place of these tokens, as beyond the edge of a picture.
        """
        x = self.first(tokens, mask)
        for index, (enlarge, blocks) in enumerate(zip(self.enlarge, self.levels, strict=True), start=1):
            x = enlarge(x)
            if index == len(self.levels) and detail is not None:
                x = x + detail
            if mask is not None:
                mask = F.interpolate(mask, scale_factor=2)
            x = blocks(x, mask)
        return self.shuffle(self.to_pixels(masked(x, mask)))

    def merge(self) -> None:
        """Merges levels without blocks with the next one, which saves a pixel shuffle. The results are the same.

        Such a level is linear, so that its convolution and the next one are one convolution. This is for a model that
        is not trained any more.
        """
        for index, blocks in enumerate(self.levels[:-1]):
            if len(blocks):
                continue
            (first, outer), (second, inner) = self.enlarge[index], self.enlarge[index + 1]
            o, i = outer.upscale_factor, inner.upscale_factor
            # A pixel's place in both shuffles together is i times its place in the first, plus that in the second.
            weight = second.weight.flatten(1).unflatten(0, (-1, i, i))
            before = first.weight.flatten(1).unflatten(0, (-1, o, o))
            merged = nn.Conv2d(first.in_channels, second.out_channels * o**2, 1)
            merged.weight.data = torch.einsum("dklc,cijm->dikjlm", weight, before).flatten(0, 4)[..., None, None]
            bias = torch.einsum("dklc,cij->dikjl", weight, first.bias.unflatten(0, (-1, o, o)))
            merged.bias.data = (bias + second.bias.unflatten(0, (-1, 1, i, 1, i))).flatten()
            self.enlarge[index] = nn.Identity()
            self.enlarge[index + 1] = nn.Sequential(merged, nn.PixelShuffle(o * i))
