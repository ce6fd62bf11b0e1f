"""Makes pixels from tokens, with convolutions and pixel shuffles that have a bounded reach."""

from __future__ import annotations

from typing import cast

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
        for index, blocks in enumerate(list(self.levels)[:-1]):
            if not cast(ResidualBlocks, blocks):
                merged = _merged(self.enlarge[index], self.enlarge[index + 1])
                self.enlarge[index], self.enlarge[index + 1] = nn.Identity(), merged


def _merged(first: nn.Module, second: nn.Module) -> nn.Sequential:
    """One 1x1 convolution and pixel shuffle with the same results as two such pairs."""
    (before, outer), (after, inner) = cast(nn.Sequential, first), cast(nn.Sequential, second)
    assert isinstance(before, nn.Conv2d) and isinstance(after, nn.Conv2d)
    assert before.bias is not None and after.bias is not None
    o, i = (cast(nn.PixelShuffle, shuffle).upscale_factor for shuffle in (outer, inner))
    made = nn.Conv2d(before.in_channels, after.out_channels * o**2, 1)
    assert made.bias is not None
    # A pixel's place in both shuffles together is i times its place in the first, plus that in the second.
    weight = after.weight.flatten(1).unflatten(0, (-1, i, i))
    bias = torch.einsum("dklc,cij->dikjl", weight, before.bias.unflatten(0, (-1, o, o)))
    weight = torch.einsum("dklc,cijm->dikjlm", weight, before.weight.flatten(1).unflatten(0, (-1, o, o)))
    with torch.no_grad():
        made.weight.copy_(weight.flatten(0, 4)[..., None, None])
        made.bias.copy_((bias + after.bias.unflatten(0, (-1, 1, i, 1, i))).flatten())
    return nn.Sequential(made, nn.PixelShuffle(o * i))
