"""The encoder, which makes a latent from an image."""

from __future__ import annotations

from torch import Tensor, nn

from infgen_model.config import DecoderConfig
from infgen_model.layers import TripleBlock, TripleBlocks


class Encode(nn.Module):
    """Encodes an image [B, 3, 8h, 8w] in [0, 1] to a latent [B, C, h, w].

    Without pooled blocks, a cell depends only on the pixels within ``DecoderConfig.encode_halo`` around it. An image
    that is encoded in tiles therefore gives the same latent.

    With pooled blocks, the encoder has two local parts. ``features`` makes everything before the pooled blocks from the
    image, with a reach of ``DecoderConfig.encode_halo`` pixels. ``latent`` makes the latent from these features and the
    statistics of the whole image, with a reach of ``DecoderConfig.encode_latent_halo`` cells. ``EncodeStatistics``
    computes the statistics between them.
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        factor = config.PATCH >> (len(config.encoder) - 1)
        widths = [level.width for level in config.encoder]
        counts = [level.blocks for level in config.encoder]
        counts[-1] -= config.encoder_pooled
        self.unshuffle = nn.PixelUnshuffle(factor)
        self.enter = nn.Conv2d(3 * factor**2, widths[0], 3, padding=1)
        self.shrink = nn.ModuleList(
            nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False)
            for before, after in zip(widths, widths[1:], strict=False)
        )
        self.levels = nn.ModuleList(
            nn.Sequential(*(TripleBlock(width) for _ in range(count)))
            for width, count in zip(widths, counts, strict=True)
        )
        self.pooled = TripleBlocks(widths[-1], config.encoder_pooled, pooled=True)
        self.leave = nn.Conv2d(widths[-1], config.latent_channels, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        """Encodes a whole image; see the class."""
        return self.latent(self.features(image))

    def features(self, image: Tensor) -> Tensor:
        """Computes everything before the pooled blocks: [B, E, h, w]."""
        x: Tensor = self.levels[0](self.enter(self.unshuffle(image)))
        for shrink, level in zip(self.shrink, self.levels[1:], strict=True):
            x = level(shrink(x))
        return x

    def latent(self, features: Tensor, moments: Tensor | None = None) -> Tensor:
        """Computes a latent [B, C, h, w] from features.

        Args:
            features: [B, E, h, w] of the whole image, or of a part of it if the moments are given.
            moments: [2, blocks, groups] from ``EncodeStatistics``. If omitted, those of ``features`` are used.
        """
        latent: Tensor = self.leave(self.pooled(features, moments))
        return latent


class EncodeStatistics(nn.Module):
    """Computes the moments [2, blocks, groups] of an image's features [1, E, h, w], or of a part of them.

    They are for the encoder's pooled blocks what ``Statistics`` computes for those of prefill.
    """

    def __init__(self, encode: Encode) -> None:
        super().__init__()
        self.encode = encode

    def forward(self, encoded: Tensor, share_y: Tensor, share_x: Tensor, known: Tensor) -> Tensor:
        """Computes moments; see ``TripleBlocks.moments``."""
        return self.encode.pooled.moments(encoded, share_y, share_x, known)
