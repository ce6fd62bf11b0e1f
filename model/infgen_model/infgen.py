"""The model and its decoder of tiles. ``docs/bundle.md`` describes the functions of a model."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from infgen_model.attention import CrossAttention
from infgen_model.config import DecoderConfig, Enlargement
from infgen_model.encode import Encode, EncodeStatistics
from infgen_model.grid import Grid, Places
from infgen_model.inpe import INPE
from infgen_model.prefill import Prefill, Refine, Statistics
from infgen_model.sampling import bilinear, lanczos
from infgen_model.upsampler import Upsampler


class DecoderBlock(nn.Module):
    """Cross-attention to the context, followed by an MLP. Tokens do not attend to each other."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        width = config.width
        self.norm = nn.LayerNorm(width)
        self.attention = CrossAttention(width, config.key_width, config.heads, config.rotary, config.radius)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, config.mlp_ratio * width),
            nn.GELU(),
            nn.Linear(config.mlp_ratio * width, width),
        )

    def forward(self, tokens: Tensor, context: Tensor, grid: Grid | Places) -> Tensor:
        """Updates tokens [B, ht, wt, D] from the context crop [B, hk, wk, D]."""
        tokens = tokens + self.attention(self.norm(tokens), context, grid)
        return tokens + self.mlp(tokens)


class Decode(nn.Module):
    """Makes the pixels of one tile of tokens from a context crop and coordinates."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.frame = config.frame
        self.width = config.width
        self.detail, self.detail_factor = config.detail, config.detail_factor
        self.unfold = nn.PixelShuffle(config.detail_factor) if config.detail else None
        self.least_scale = config.scale_range[0]
        self.inpe = INPE(config.inpe_features, config.inpe_sigma, config.width)
        self.mask_token = nn.Parameter(torch.zeros(config.width)) if config.start == "mask" else None
        self.context_norm = nn.LayerNorm(config.width)
        self.blocks = nn.ModuleList(DecoderBlock(config) for _ in range(config.blocks))
        self.upsampler = Upsampler(config)

    def forward(self, context: Tensor, grid: Grid, enlargement: Enlargement | None = None) -> Tensor:
        """Decodes a tile.

        Args:
            context: The crop of the context that the tile needs, [B, D, hk, wk].
            grid: Coordinates of the crop and of the tile.
            enlargement: The enlargement that the context was refined for, if the model has any.

        Returns:
            The pixels [B, 3, 8 * ht, 8 * wt], mostly in [0, 1]. They are not clamped.
        """
        coarse, detail, picture = self._unfolded(context, enlargement)
        cells = coarse.permute(0, 2, 3, 1)
        if self.frame == "image":
            y, x = grid.token_y / grid.extent[0], grid.token_x / grid.extent[1]
        else:
            y, x = grid.token_y - torch.floor(grid.token_y), grid.token_x - torch.floor(grid.token_x)
        tokens = self.inpe(y, x, grid.scale).unsqueeze(0)
        if self.mask_token is None:
            sampled = bilinear(coarse, grid.axes, 1, 1)
            tokens = tokens + sampled.permute(0, 2, 3, 1)
        else:
            tokens = (tokens + self.mask_token).expand(context.shape[0], -1, -1, -1)
        cells = self.context_norm(cells)
        for block in self.blocks:
            tokens = block(tokens, cells, grid)
        mask = grid.tokens_inside().to(context.dtype)[None, None] if grid.padded else None
        tokens = tokens.permute(0, 3, 1, 2)
        if detail is None or picture is None or enlargement is None:
            return self.upsampler(tokens, None, mask)
        detail = self._detail(
            detail, enlargement, lambda x: bilinear(x, grid.axes, self.upsampler.factor, self.detail_factor)
        )
        # The window is wide enough for scale 0.5, even if the model is trained for larger scales only.
        pixels = self.detail_factor * enlargement.factor
        widest = max(2.0, pixels / DecoderConfig.PATCH / self.least_scale)
        picture = lanczos(picture, grid.axes, DecoderConfig.PATCH, pixels, widest)
        return picture + self.upsampler(tokens, detail, mask)

    def whole_cells(self, context: Tensor, enlargement: Enlargement) -> Tensor:
        """Decodes whole cells, where the scale is the enlargement's factor, as ``forward`` does but in less time.

        Nothing depends on coordinates then: the tokens lie at the same places in every cell, and the enlarged picture
        has a pixel for each of theirs.

        Args:
            context: The context of some cells, [B, D, hk, wk]. What is beyond them is taken to be beyond the latent.
            enlargement: The enlargement that the context was refined for.

        Returns:
            The pixels [B, 3, 8 * factor * hk, 8 * factor * wk], mostly in [0, 1]. They are not clamped. Near
            the border of the cells, within the model's reach, they differ from those of a larger picture.
        """
        coarse, detail, picture = self._unfolded(context, enlargement)
        assert detail is not None and picture is not None, "only a model with detail decodes whole cells"
        factor = enlargement.factor
        places = Places.at(factor, context.device)
        embedded = self.inpe(places.of_tokens, places.of_tokens, places.scale)
        if self.mask_token is None:
            start = _resized(coarse, factor).permute(0, 2, 3, 1)
        else:
            start = self.mask_token.expand(coarse.shape[0], factor * coarse.shape[2], factor * coarse.shape[3], -1)
        tokens = places.added(start, embedded)
        cells = self.context_norm(coarse.permute(0, 2, 3, 1))
        for block in self.blocks:
            tokens = block(tokens, cells, places)
        density = factor * self.upsampler.factor / self.detail_factor
        detail = self._detail(detail, enlargement, lambda x: _resized(x, density))
        return picture + self.upsampler(tokens.permute(0, 3, 1, 2), detail)

    def _unfolded(
        self, context: Tensor, enlargement: Enlargement | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The parts of a context: what attention uses, the fine grid, and the enlarged picture."""
        coarse = context[:, : self.width]
        if self.unfold is None or enlargement is None:
            return coarse, None, None
        last = self.width + self.detail * self.detail_factor**2
        picture = F.pixel_shuffle(context[:, last:], self.detail_factor * enlargement.factor)
        return coarse, self.unfold(context[:, self.width : last]), picture

    def _detail(self, grid: Tensor, enlargement: Enlargement, sample: Callable[[Tensor], Tensor]) -> Tensor:
        """The detail for the upsampler, from the fine grid and a function that samples a grid."""
        # Both are linear, so the order does not matter. The layer comes first if the grid has fewer positions.
        layer = self.upsampler.from_detail
        assert layer is not None, "only a model with detail has a fine grid"
        first = enlargement.factor * self.upsampler.factor > self.detail_factor
        return sample(layer(grid)) if first else layer(sample(grid))


def _resized(grid: Tensor, factor: float) -> Tensor:
    """Samples a grid [B, C, H, W] bilinearly, ``factor`` times as densely. It continues with its outermost values."""
    if factor == 1:
        return grid
    return F.interpolate(grid, scale_factor=float(factor), mode="bilinear", align_corners=False)


class InfGen(nn.Module):
    """The decoder, and the encoder that iterative extrapolation needs.

    Attributes:
        config: The model's config.
        prefill: Makes features from a latent. It needs the whole latent, or a part of it and the whole latent's
            statistics.
        refine: Makes the context from features. It is local. ``None`` if the features are the context already.
        decode: Makes one tile of pixels from a context crop. It is local.
        encode: Makes a latent from an image. It is local, or has two local parts with statistics between them; see
            ``Encode``.
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.prefill = Prefill(config)
        self.refine = Refine(config) if config.detail else None
        self.decode = Decode(config)
        self.encode = Encode(config)

    @property
    def statistics(self) -> Statistics | None:
        """A module that computes a latent's statistics with prefill's weights. ``None`` if prefill needs none."""
        return Statistics(self.prefill) if self.config.moments else None

    @property
    def encode_statistics(self) -> EncodeStatistics | None:
        """A module that computes a picture's statistics with encode's weights. ``None`` if encode needs none."""
        return EncodeStatistics(self.encode) if self.config.encoder_moments else None

    def context(self, latent: Tensor, enlargement: Enlargement | None = None) -> Tensor:
        """Makes the context, from which all tiles of a picture are decoded.

        Args:
            latent: Whole latents [B, C, h, w].
            enlargement: The enlargement for the picture's scale. It is required if the model has any.

        Returns:
            [B, D, h, w].
        """
        features: Tensor = self.prefill(latent)
        return features if self.refine is None else self.refine(features, enlargement)

    def forward(self, latent: Tensor, size: tuple[int, int]) -> Tensor:
        """Decodes whole latents to images.

        Args:
            latent: [B, C, h, w].
            size: Height H and width W of the images in pixels.

        Returns:
            [B, 3, H, W], mostly in [0, 1]. The values are not clamped.
        """
        grid = Grid.whole((latent.shape[2], latent.shape[3]), size).to(latent.device)
        enlargement = self.config.enlargement_for((float(grid.scale[0]), float(grid.scale[1])))
        return self.decode(self.context(latent, enlargement), grid, enlargement)[:, :, : size[0], : size[1]]
