"""Nodes for a latent that is encoded from a picture, tile by tile.

If the encoder has statistics, which depend on the whole picture, it has three parts. Encode computes values of all
cells, which are kept. Their statistics are gathered, and the latent is made from both. Otherwise, encode gives the
latent.
"""

from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import replace
from typing import Protocol

import numpy as np

from infgen_rt.backend.engine import IDLE, Engine
from infgen_rt.bundle.graphs import ENCODE, ENCODE_LATENT, ENCODE_STATISTICS
from infgen_rt.bundle.manifest import Manifest, Memory
from infgen_rt.common.pixels import LARGEST, ByteArray, FloatArray
from infgen_rt.geometry.pictures import PictureTiles
from infgen_rt.geometry.shapes import Box
from infgen_rt.geometry.tiling import HaloTiling
from infgen_rt.nodes.latents import latent_bytes
from infgen_rt.nodes.moments import Gathering, Moments
from infgen_rt.nodes.node import FLOAT, Cost, Made, Node, Step
from infgen_rt.nodes.tiles import Tiles


class CellPicture(Protocol):
    """A picture whose sides are whole cells."""

    def prepare(self) -> Iterator[Step]:
        """Do what is needed before the first pixels; see `Node`."""
        ...

    def read(self, cells: Box) -> Generator[Step, None, FloatArray]:
        """Make the pixels of some cells, float32 [3, H, W] in [0, 1]. Each yield ends a step."""
        ...


class GivenPicture:
    """The caller's picture.

    Args:
        pixels: [H, W, 3], uint8, or float32 in [0, 1]. H and W are multiples of the patch.
        patch: the side of a cell in pixels.
    """

    def __init__(self, pixels: FloatArray | ByteArray, patch: int) -> None:
        self._pixels, self._patch = pixels, patch

    def prepare(self) -> Iterator[Step]:
        """Do nothing, because the picture is there from the start."""
        yield from ()

    def read(self, cells: Box) -> Generator[Step, None, FloatArray]:
        """Convert the pixels of some cells; see `CellPicture`. There are no steps."""
        yield from ()
        part = self._pixels[Box(*(self._patch * side for side in cells)).slices].transpose(2, 0, 1)
        scale = LARGEST[np.uint8] if part.dtype == np.uint8 else 1.0
        return np.ascontiguousarray(np.clip(np.divide(part, scale, dtype=np.float32), 0.0, 1.0))


class StagePicture:
    """The picture of a stage.

    Args:
        tiles: the picture. It has as many tokens as the latent to encode has cells.
    """

    def __init__(self, tiles: Tiles) -> None:
        self._tiles = tiles

    def prepare(self) -> Iterator[Step]:
        """Prepare the picture. The last step of a stage's prefill ends here."""
        yield from self._tiles.prepare()
        yield "prefill"

    def read(self, cells: Box) -> Generator[Step, None, FloatArray]:
        """Decode the pixels of some cells; see `CellPicture`. Each part of the picture is a step."""
        picture = self._tiles
        pixels = picture.cut.grid.pixels_of(cells)
        image = np.empty((3, pixels.height, pixels.width), np.float32)
        parts = list(picture.cut.parts(pixels))
        with closing(picture.read_each(parts, np.float32, waits=False)) as planes_of_parts:
            for part, planes in zip(parts, planes_of_parts, strict=True):
                np.clip(planes, 0.0, 1.0, out=image[:, *part.relative_to(pixels).slices])
                yield "decode"
        return image


class Encoded(Made[FloatArray]):
    """The result of encode for a whole picture, float32 [C, h, w]: its latent, or what the latent is made from.

    It is encoded with the pixels of one tile in memory.

    Args:
        picture: the picture.
        tiles: the tiles of the latent.
        engine: the engine, with encode loaded.
    """

    def __init__(self, picture: CellPicture, tiles: HaloTiling, engine: Engine) -> None:
        super().__init__(tiles.tiling.box.size, lambda: _encoded(picture, tiles, engine), engine)

    @staticmethod
    def cost(tiles: HaloTiling, picture: PictureTiles | None, manifest: Manifest, figures: Memory) -> Cost:
        """The cost of encoding the tiles one at a time, each with the part of the picture that it is encoded from.

        Args:
            tiles: the tiles of the latent.
            picture: the picture of a stage and its tiles. None for the caller's picture.
            manifest: the model's manifest.
            figures: the recipe's memory figures.
        """
        steps = tiles.tiling.count
        if picture is not None:
            steps += sum(1 for _, each in tiles.windows() for _ in picture.parts(picture.grid.pixels_of(each)))
        held = FLOAT * _channels(manifest) * tiles.tiling.box.size.area
        working = (3 * FLOAT * manifest.patch**2 + figures.encode_per_cell) * tiles.window.area
        return Cost(steps=steps, making=held + working, held=held, encoded=tiles.computed)

    def read(self, box: Box) -> FloatArray:
        """The cells of a box: float32 [C, h, w], a view."""
        return self._made.get()[:, *box.slices]


class EncodedLatent(Made[FloatArray]):
    """The latent of a picture, float32 [C, h, w], if the encoder has statistics.

    The result of encode is released when the latent is complete.

    Args:
        encoded: the result of encode.
        tiles: the tiles of the latent.
        engine: the engine, with encode_statistics and encode_latent loaded.
    """

    def __init__(self, encoded: Encoded, tiles: HaloTiling, engine: Engine) -> None:
        moments = Moments(encoded, gathering_of(tiles, engine.manifest), engine)
        after = tiles_after(tiles, engine.manifest)
        super().__init__(encoded.size, lambda: _latent(encoded, moments, after, engine), engine)

    @staticmethod
    def cost(tiles: HaloTiling, manifest: Manifest, figures: Memory) -> Cost:
        """The cost of making the latent from one tile at a time, after the statistics are gathered.

        Args:
            tiles: the tiles of the latent.
            manifest: the model's manifest.
            figures: the recipe's memory figures.
        """
        after, held = tiles_after(tiles, manifest), latent_bytes(tiles.tiling.box.size, manifest)
        working = figures.encode_latent_per_cell * after.window.area
        return Cost(steps=after.tiling.count, making=held + working, held=held, alone=True)

    def read(self, box: Box) -> FloatArray:
        """The cells of a box: float32 [C, h, w], a view."""
        return self._made.get()[:, *box.slices]


def encoded_latent(picture: CellPicture, tiles: HaloTiling, engine: Engine) -> Node[FloatArray]:
    """Link the nodes from a picture to its latent, float32 [C, h, w].

    Args:
        picture: the picture.
        tiles: the tiles of the latent, with the halo of encode.
        engine: the engine, with the graphs of the encoder loaded.
    """
    encoded = Encoded(picture, tiles, engine)
    return EncodedLatent(encoded, tiles, engine) if engine.has(ENCODE_LATENT) else encoded


def encoding_costs(
    tiles: HaloTiling, picture: PictureTiles | None, manifest: Manifest, figures: Memory
) -> Iterator[Cost]:
    """The costs of the nodes from a picture to its latent, as `encoded_latent` links them; see `Encoded.cost`.

    The graphs keep their working memory until the latent is complete.
    """
    costs = [Encoded.cost(tiles, picture, manifest, figures)]
    if manifest.encoder_moments is not None:
        costs += [gathering_of(tiles, manifest).cost(figures), EncodedLatent.cost(tiles, manifest, figures)]
    kept = 0
    for cost in costs:
        yield replace(cost, making=cost.making + kept)
        kept += cost.making - cost.held


def tiles_after(tiles: HaloTiling, manifest: Manifest) -> HaloTiling:
    """The tiles in which the statistics and the latent are made from the result of encode."""
    return HaloTiling(tiles.tiling, manifest.halo.encode_latent)


def gathering_of(tiles: HaloTiling, manifest: Manifest) -> Gathering:
    """How the statistics of a picture are gathered. The encoder must have some."""
    assert manifest.encoder_moments is not None
    return Gathering(tiles_after(tiles, manifest), manifest.encoder_moments[0], ENCODE_STATISTICS)


def _channels(manifest: Manifest) -> int:
    """The number of channels of encode's result."""
    return manifest.encoder_channels or manifest.latent_channels


def _encoded(picture: CellPicture, tiles: HaloTiling, engine: Engine) -> Generator[Step, None, FloatArray]:
    """Run encode tile by tile."""
    yield from picture.prepare()
    values = _empty(_channels(engine.manifest), tiles)
    for tile, window in tiles.windows():
        image = yield from picture.read(window)
        made = engine.run(ENCODE, {"image": image[None]})[0]
        values[:, *tile.slices] = made[:, *tile.relative_to(window).slices]
        yield "reencode"
    if not engine.has(ENCODE_LATENT):
        engine.run_for(IDLE)
    return values


def _latent(encoded: Encoded, moments: Moments, tiles: HaloTiling, engine: Engine) -> Generator[Step, None, FloatArray]:
    """Gather the statistics, and run encode_latent tile by tile."""
    yield from moments.prepare()
    yield "reencode"
    latent = _empty(engine.manifest.latent_channels, tiles)
    for tile, window in tiles.windows():
        part = np.ascontiguousarray(encoded.read(window))
        made = engine.run(ENCODE_LATENT, {"encoded": part[None], "moments": moments.read(window)})[0]
        latent[:, *tile.slices] = made[:, *tile.relative_to(window).slices]
        yield "reencode"
    engine.run_for(IDLE)
    return latent


def _empty(channels: int, tiles: HaloTiling) -> FloatArray:
    return np.empty((channels, tiles.tiling.box.height, tiles.tiling.box.width), np.float32)
