"""Nodes for features, which prefill computes from a latent: in parts if it is local, otherwise all at once."""

import sys
from collections.abc import Generator, Iterator
from typing import Any, cast

import numpy as np

from infgen_rt.backend.engine import Engine, Purpose
from infgen_rt.backend.protocol import Values
from infgen_rt.bundle.graphs import PREFILL
from infgen_rt.bundle.manifest import Enlargement, Manifest, Memory
from infgen_rt.common.pixels import FloatArray
from infgen_rt.geometry.shapes import Box, Size
from infgen_rt.geometry.tiling import HaloTiling
from infgen_rt.nodes.moments import Moments
from infgen_rt.nodes.node import FLOAT, Cost, Made, Node, Step


class LocalFeatures:
    """The features [1, F, h, w] of a model whose prefill is local. They are computed where they are needed.

    Args:
        latent: the node for the latent, float32 [C, h, w].
        moments: the moments of the whole latent. None if the model has no statistics.
        engine: the engine, with the prefill graph.
    """

    def __init__(self, latent: Node[FloatArray], moments: Moments | None, engine: Engine) -> None:
        self._latent, self._moments, self._engine = latent, moments, engine

    @staticmethod
    def cost(tiles: HaloTiling, manifest: Manifest, figures: Memory) -> Cost:
        """The cost of the features for the tiles of a context, which are computed one at a time.

        Args:
            tiles: the tiles of the context.
            manifest: the model's manifest.
            figures: the recipe's memory figures.
        """
        seen = HaloTiling(tiles.tiling, tiles.halo + manifest.halo.prefill).window
        return Cost(reading=figures.prefill_per_cell * seen.area)

    @property
    def size(self) -> Size:
        """Width and height in cells."""
        return self._latent.size

    def prepare(self) -> Iterator[Step]:
        """Gather the moments. Without statistics, prepare the latent; see `Node`."""
        return (self._moments or self._latent).prepare()

    def read(self, box: Box) -> Values:
        """The features of some cells."""
        moments = {"moments": self._moments.read(box)} if self._moments else {}
        seen = box.grow(self._engine.manifest.halo.prefill, self.size.box)
        latent = np.ascontiguousarray(self._latent.read(seen))
        return cut(self._engine.run(PREFILL, {"latent": latent[None]} | moments), box, seen)


class WholeFeatures(Made[Values]):
    """The features [1, F, h, w] of a model whose prefill sees the whole latent.

    The latent is released when they are computed.

    Args:
        latent: the node for the latent, float32 [C, h, w].
        purpose: what the graph runs for.
        engine: the engine, with the prefill graph.
    """

    def __init__(self, latent: Node[FloatArray], purpose: Purpose, engine: Engine) -> None:
        super().__init__(latent.size, lambda: _prefilled(latent, purpose, engine), engine)

    @staticmethod
    def cost(cells: Size, refined: bool, enlargement: Enlargement, manifest: Manifest, figures: Memory) -> Cost:
        """The cost of computing and holding all features.

        Args:
            cells: the size of the latent in cells.
            refined: whether a context is computed from the features. If not, the features are the context.
            enlargement: the context's enlargement.
            manifest: the model's manifest.
            figures: the recipe's memory figures.
        """
        # The features count twice, because a backend keeps the memory of a run's result for the next run.
        channels = 2 * (manifest.feature_channels or 0) if refined else enlargement.channels
        making, held = figures.prefill_per_cell * cells.area, channels * FLOAT * cells.area
        return Cost(steps=1, making=making, held=held, alone=True)

    def read(self, box: Box) -> Values:
        """The features of some cells."""
        return cut(self._made.get(), box, self._size.box)


def _prefilled(latent: Node[FloatArray], purpose: Purpose, engine: Engine) -> Generator[Step, None, Values]:
    yield from latent.prepare()
    engine.run_for(purpose)
    return engine.run(PREFILL, {"latent": latent.read(latent.size.box)[None]})


def cut(values: Values, box: Box, whole: Box) -> Values:
    """Cut the values [1, C, h, w] of a box out of those of a larger box.

    The result is a copy, unless the boxes are the same. Backends need contiguous inputs, and a view would keep the
    larger array in memory.
    """
    return values if box == whole else cast(Values, joined([values[:, :, *box.relative_to(whole).slices]]))


def joined(parts: list[Any], axis: int = 2) -> Any:
    """Concatenate arrays, with the library that they belong to. A single array is copied."""
    library = sys.modules[type(parts[0]).__module__.partition(".")[0]]
    return getattr(library, "concatenate", np.concatenate)(parts, axis=axis)
