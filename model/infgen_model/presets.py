"""Configurations of models that are meant to be trained."""

from __future__ import annotations

import math

from infgen_model.config import DecoderConfig, Enlargement, Level


def edge(latent_space: str = "flux2", latent_channels: int = 32) -> DecoderConfig:
    """The default, which ships: the trunk of a tiny decoder, an enlarger after it, and light tokens for any scale."""
    return DecoderConfig(
        name=f"infgen-edge-{latent_space}",
        latent_space=latent_space,
        latent_channels=latent_channels,
        width=64,
        trunk=(Level(64, 3), Level(64, 3), Level(64, 3), Level(64, 1)),
        enlargements=(Enlargement(1, 0), Enlargement(2, 7), Enlargement(4, 14, finish=16, polish=32)),
        detail=16,
        frame="cell",
        start="sampled",
        inpe_features=32,
        inpe_sigma=3.0,
        blocks=1,
        heads=4,
        key_width=32,
        mlp_ratio=2,
        radius=1.5,
        rotary=(math.pi / 4, 2 * math.pi),
        token_blocks=0,
        levels=(Level(32, 0), Level(16, 1)),
        channel_norm=False,
        scale_range=(1.0, 4.0),
    )


def paper(latent_space: str = "sdxl", latent_channels: int = 4) -> DecoderConfig:
    """InfGen as published: mask tokens, positions in the whole image, and attention to every latent cell."""
    return DecoderConfig(
        name=f"infgen-paper-{latent_space}",
        latent_space=latent_space,
        latent_channels=latent_channels,
        width=512,
        trunk=(),
        enlargements=(),
        detail=0,
        frame="image",
        start="mask",
        inpe_features=256,
        inpe_sigma=16.0,
        blocks=8,
        heads=8,
        key_width=512,
        mlp_ratio=4,
        radius=None,
        rotary=(math.pi / 64, math.pi),
        token_blocks=1,
        levels=(Level(256, 2), Level(128, 2), Level(64, 2)),
        channel_norm=True,
    )


PRESETS = {"edge": edge, "paper": paper}
