"""The chain of nodes from a latent to the tiles of a picture, linked as a plan says."""

from infgen_rt.backend.engine import Engine
from infgen_rt.bundle.manifest import Enlargement
from infgen_rt.geometry.grid import Grid
from infgen_rt.geometry.pictures import PictureTiles
from infgen_rt.geometry.tiling import HaloTiling
from infgen_rt.nodes.context import Contexts
from infgen_rt.nodes.decoded import Decoded
from infgen_rt.nodes.latents import Reencoded
from infgen_rt.nodes.resampled import Resampled
from infgen_rt.nodes.tiles import Tiles


def picture_of(
    contexts: Contexts,
    enlargement: Enlargement,
    decoded: Grid,
    cut: PictureTiles,
    engine: Engine,
    cache: int = 0,
    workers: int = 1,
) -> Tiles:
    """Links a latent's context to a picture: decoded, resampled if it is decoded at another size, cut into tiles.

    Args:
        contexts: of the latent, planned.
        enlargement: which of them.
        decoded: the picture that is decoded.
        cut: the picture that is wanted, and its tiles.
        engine: the loaded model.
        cache: bytes of decoded tiles to keep.
        workers: tiles that may be decoded at the same time.
    """
    pixels = Decoded(contexts.of(enlargement), decoded, enlargement, engine)
    resized = pixels if decoded == cut.grid else Resampled(pixels, cut.grid.picture)
    return Tiles(resized, cut, engine, cache, workers)


def next_latent(picture: Tiles, encoding: HaloTiling, engine: Engine) -> Contexts:
    """Links a stage's picture to the next stage's contexts."""
    return Contexts(Reencoded(picture, encoding, engine), engine)
