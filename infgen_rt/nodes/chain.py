"""Links the nodes from a latent to the tiles of a picture."""

from infgen_rt.backend.engine import Engine
from infgen_rt.bundle.manifest import Enlargement
from infgen_rt.geometry.grid import Grid
from infgen_rt.geometry.pictures import PictureTiles
from infgen_rt.geometry.tiling import HaloTiling
from infgen_rt.geometry.windows import Windows
from infgen_rt.nodes.context import Contexts
from infgen_rt.nodes.decoded import Decoded
from infgen_rt.nodes.encoding import StagePicture, encoded_latent
from infgen_rt.nodes.resampled import Resampled
from infgen_rt.nodes.tiles import Tiles


def picture_of(
    contexts: Contexts,
    enlargement: Enlargement,
    decoded: Grid,
    windows: Windows,
    cut: PictureTiles,
    engine: Engine,
    cache: int = 0,
    workers: int = 1,
) -> Tiles:
    """Link the nodes from a latent's context to the tiles of a picture.

    The picture is decoded, and resampled if the requested size is not the decoded one.

    Args:
        contexts: the latent's contexts. The one for `enlargement` must be planned.
        enlargement: the enlargement of the context to use.
        decoded: the grid of the picture that is decoded.
        windows: the way of choosing what is decoded for a part of it.
        cut: the requested picture and its tiles.
        engine: the loaded model.
        cache: the maximum number of bytes of decoded tiles to keep.
        workers: the number of tiles that may be decoded at the same time.
    """
    pixels = Decoded(contexts.of(enlargement), decoded, windows, enlargement, engine)
    resized = pixels if decoded == cut.grid else Resampled(pixels, cut.grid.picture)
    return Tiles(resized, cut, engine, cache, workers)


def next_latent(picture: Tiles, encoding: HaloTiling, engine: Engine) -> Contexts:
    """Link the nodes from a stage's picture to the contexts of the next stage's latent.

    Args:
        picture: the picture of the stage.
        encoding: the tiles in which the picture is encoded.
        engine: the loaded model.
    """
    return Contexts(encoded_latent(StagePicture(picture), encoding, engine), engine)
