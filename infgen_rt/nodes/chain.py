"""Links the chain of nodes from a latent to the tiles of a picture, as planned."""

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
    """Link a latent's context to a picture, which is decoded, resampled if it has another size, and cut into tiles.

    Args:
        contexts: the latent's contexts, which are planned.
        enlargement: the enlargement of the context to use.
        decoded: the grid of the picture that is decoded.
        cut: the requested picture and its tiles.
        engine: the loaded model.
        cache: bytes of decoded tiles to keep.
        workers: the number of tiles that may be decoded at the same time.
    """
    pixels = Decoded(contexts.of(enlargement), decoded, enlargement, engine)
    resized = pixels if decoded == cut.grid else Resampled(pixels, cut.grid.picture)
    return Tiles(resized, cut, engine, cache, workers)


def next_latent(picture: Tiles, encoding: HaloTiling, engine: Engine) -> Contexts:
    """Link a stage's picture to the next stage's contexts."""
    return Contexts(Reencoded(picture, encoding, engine), engine)
