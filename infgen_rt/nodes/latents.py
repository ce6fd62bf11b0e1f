"""Nodes for latents: one for the caller's latent, and one for a latent that is encoded from a stage's picture."""

from collections.abc import Generator, Iterator
from contextlib import closing

import numpy as np

from infgen_rt.backend.engine import Engine
from infgen_rt.bundle.graphs import ENCODE
from infgen_rt.bundle.manifest import Manifest, Memory
from infgen_rt.common.pixels import LARGEST, ByteArray, FloatArray
from infgen_rt.geometry.pictures import PictureTiles
from infgen_rt.geometry.shapes import Box, Size
from infgen_rt.geometry.tiling import HaloTiling
from infgen_rt.nodes.node import FLOAT, Cost, Once, Step
from infgen_rt.nodes.tiles import Tiles


class Given:
    """The caller's latent.

    Args:
        latent: float32 [C, h, w].
        engine: the engine. When it is closed, the latent is released.
    """

    def __init__(self, latent: FloatArray, engine: Engine) -> None:
        self._latent: FloatArray | None = latent
        self._size, self._engine = Size(*latent.shape[:0:-1]), engine
        engine.lends_to(self)

    @staticmethod
    def cost(cells: Size, manifest: Manifest) -> Cost:
        """The cost of two copies: the caller's and this node's."""
        held = 2 * latent_bytes(cells, manifest)
        return Cost(making=held, held=held)

    @property
    def size(self) -> Size:
        """Width and height in cells."""
        return self._size

    def let_go(self) -> None:
        """See `engine.Borrower`."""
        self._latent = None

    def prepare(self) -> Iterator[Step]:
        """Do nothing, because the latent is there from the start."""
        yield from ()

    def read(self, box: Box) -> FloatArray:
        """The cells of a box: float32 [C, h, w], a view."""
        self._engine.check_open()
        assert self._latent is not None
        return self._latent[:, *box.slices]


class Reencoded:
    """The latent of a picture, float32 [C, h, w]. It is encoded tile by tile, with the pixels of one tile in memory.

    Args:
        picture: the picture. It has as many tokens as the latent has cells.
        tiles: the tiles of the latent.
        engine: the engine, with encode loaded.
    """

    def __init__(self, picture: Tiles, tiles: HaloTiling, engine: Engine) -> None:
        self._tiles = tiles
        self._made = Once(lambda: _encode(picture, tiles, engine), engine)

    @staticmethod
    def cost(tiles: HaloTiling, picture: PictureTiles, manifest: Manifest, figures: Memory) -> Cost:
        """The cost of encoding the tiles one at a time, each with the part of the picture that it is encoded from.

        Args:
            tiles: the tiles of the latent.
            picture: the picture and its tiles.
            manifest: the model's manifest.
            figures: the recipe's memory figures.
        """
        held, steps = latent_bytes(tiles.tiling.box.size, manifest), 0
        for _, window in tiles.windows():
            steps += 1 + sum(1 for _ in picture.parts(picture.grid.pixels_of(window)))
        working = encoding_bytes(tiles, manifest, figures)
        return Cost(steps=steps, making=held + working, held=held, encoded=tiles.computed)

    @property
    def size(self) -> Size:
        """Width and height in cells."""
        return self._tiles.tiling.box.size

    def prepare(self) -> Iterator[Step]:
        """Encode the picture; see `Node`."""
        return self._made.steps()

    def read(self, box: Box) -> FloatArray:
        """The cells of a box: float32 [C, h, w], a view."""
        return self._made.get()[:, *box.slices]


def latent_bytes(cells: Size, manifest: Manifest) -> int:
    """The bytes of a latent with this size in cells."""
    return manifest.latent_channels * FLOAT * cells.area


def encoding_bytes(tiles: HaloTiling, manifest: Manifest, figures: Memory) -> int:
    """The bytes that are needed for encoding one tile of a latent, with the pixels that it is encoded from."""
    return (3 * FLOAT * manifest.patch**2 + figures.encode_per_cell) * tiles.window.area


def encode_pixels(pixels: FloatArray | ByteArray, tiles: HaloTiling, engine: Engine) -> FloatArray:
    """Encode the caller's picture tile by tile.

    Args:
        pixels: [H, W, 3], uint8, or float32 in [0, 1]. H and W are the latent's sides in cells times the patch.
        tiles: the tiles of the latent.
        engine: the engine, with encode loaded.

    Returns:
        float32 [C, h, w].

    Raises:
        DecodeError: the graph failed.
        Cancelled: the current work was cancelled.
    """
    cells, patch = tiles.tiling.box, engine.manifest.patch
    latent = np.empty((engine.manifest.latent_channels, cells.height, cells.width), np.float32)
    for tile, window in tiles.windows():
        part = pixels[Box(*(patch * side for side in window)).slices].transpose(2, 0, 1)
        scale = LARGEST[np.uint8] if part.dtype == np.uint8 else 1.0
        image = np.clip(np.divide(part, scale, dtype=np.float32), 0.0, 1.0)
        _encode_tile(np.ascontiguousarray(image), tile, window, latent, engine)
    return latent


def _encode(picture: Tiles, tiles: HaloTiling, engine: Engine) -> Generator[Step, None, FloatArray]:
    """Encode a stage's picture tile by tile."""
    yield from picture.prepare()
    yield "prefill"
    cells = tiles.tiling.box
    latent = np.empty((engine.manifest.latent_channels, cells.height, cells.width), np.float32)
    for tile, window in tiles.windows():
        pixels = picture.cut.grid.pixels_of(window)
        image = np.empty((3, pixels.height, pixels.width), np.float32)
        parts = list(picture.cut.parts(pixels))
        with closing(picture.read_each(parts, np.float32, waits=False)) as planes_of_parts:
            for part, planes in zip(parts, planes_of_parts, strict=True):
                np.clip(planes, 0.0, 1.0, out=image[:, *part.relative_to(pixels).slices])
                yield "decode"
        _encode_tile(image, tile, window, latent, engine)
        yield "reencode"
    return latent


def _encode_tile(image: FloatArray, tile: Box, window: Box, latent: FloatArray, engine: Engine) -> None:
    """Encode the pixels [3, H, W] of a tile's window, and set the tile's cells in the latent."""
    made = engine.run(ENCODE, {"image": image[None]})[0]
    latent[:, *tile.slices] = made[:, *tile.relative_to(window).slices]
