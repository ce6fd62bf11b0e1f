"""Re-encoding: the latent of a stage's picture, for the stage after it."""

from contextlib import closing

import numpy as np

from infgen_rt.backend.engine import Engine
from infgen_rt.geometry.tiling import HaloTiling
from infgen_rt.nodes.context import Making
from infgen_rt.nodes.decoded import Stage


def reencoded(stage: Stage, encoding: HaloTiling, engine: Engine) -> Making:
    """Encode a stage's picture, as floats in [0, 1], tile by tile; no more of it is held than a tile needs.

    Args:
        stage: whose picture has as many tokens as the latent has cells.
        encoding: how the latent is cut.
        engine: with encode loaded.
    """
    yield from stage.prepare()
    yield "prefill"
    cells = encoding.tiling.box
    latent = np.empty((engine.manifest.latent_channels, cells.height, cells.width), np.float32)
    for tile, window in encoding.windows():
        pixels = stage.grid.pixels_of(window)
        image = np.empty((3, pixels.height, pixels.width), np.float32)
        parts = list(stage.parts(pixels))
        with closing(stage.read_each(parts, np.float32, waits=False)) as pictures:
            for part, picture in zip(parts, pictures, strict=True):
                np.clip(picture, 0.0, 1.0, out=image[:, *part.relative_to(pixels).slices])
                yield "decode"
        latent[:, *tile.slices] = engine.encode(image)[:, *tile.relative_to(window).slices]
        yield "reencode"
    return latent
