"""Features: what prefill makes of a latent, of a part at a time or, without statistics, of all of it at once."""

import sys
from collections.abc import Generator, Iterator
from typing import Any, cast

import numpy as np

from infgen_rt.backend.engine import Engine
from infgen_rt.backend.protocol import Values
from infgen_rt.bundle.manifest import Enlargement, Manifest, Memory
from infgen_rt.common.pixels import FloatArray
from infgen_rt.geometry.shapes import Box, Size
from infgen_rt.geometry.tiling import HaloTiling
from infgen_rt.nodes.moments import Moments
from infgen_rt.nodes.node import FLOAT, Cost, Node, Once, Step


class LocalFeatures:
    """Features [1, F, h, w] of a latent whose moments are known, computed where they are wanted.

    Args:
        latent: float32 [C, h, w].
        moments: of the whole of it.
        engine: with the prefill graph.
    """

    def __init__(self, latent: Node[FloatArray], moments: Moments, engine: Engine) -> None:
        self._latent, self._moments, self._engine = latent, moments, engine

    @staticmethod
    def cost(tiles: HaloTiling, manifest: Manifest, figures: Memory) -> Cost:
        """Of what a context's tiles need, one at a time.

        Args:
            tiles: of the context.
            manifest: the model's.
            figures: the recipe's.
        """
        seen = HaloTiling(tiles.tiling, tiles.halo + manifest.halo.prefill).window
        return Cost(reading=figures.prefill_per_cell * seen.area)

    @property
    def size(self) -> Size:
        """Width and height in cells."""
        return self._latent.size

    def prepare(self) -> Iterator[Step]:
        """Gather the moments; see `Node`."""
        return self._moments.prepare()

    def read(self, box: Box) -> Values:
        """The features of some cells."""
        moments = self._moments.read(box)
        seen = box.grow(self._engine.manifest.halo.prefill, self.size.box)
        latent = np.ascontiguousarray(self._latent.read(seen))
        return cut(self._engine.prefill(latent, moments), box, seen)


class WholeFeatures:
    """Features [1, F, h, w] of a model whose prefill sees the whole latent, which is let go of after it.

    Args:
        latent: float32 [C, h, w].
        engine: with the prefill graph.
    """

    def __init__(self, latent: Node[FloatArray], engine: Engine) -> None:
        self._size = latent.size
        self._made = Once(lambda: _prefilled(latent, engine), engine)

    @staticmethod
    def cost(cells: Size, refined: bool, enlargement: Enlargement, manifest: Manifest, figures: Memory) -> Cost:
        """All of them, held.

        Args:
            cells: of the latent.
            refined: whether a context is made of them; if not, they are it.
            enlargement: what the context is for.
            manifest: the model's.
            figures: the recipe's.
        """
        # Twice the features: a backend's arena holds on to what a run's result was in.
        channels = 2 * (manifest.feature_channels or 0) if refined else enlargement.channels
        making, held = figures.prefill_per_cell * cells.area, channels * FLOAT * cells.area
        return Cost(steps=1, making=making, held=held, alone=True)

    @property
    def size(self) -> Size:
        """Width and height in cells."""
        return self._size

    def prepare(self) -> Iterator[Step]:
        """Run prefill; see `Node`."""
        return self._made.steps()

    def read(self, box: Box) -> Values:
        """The features of some cells."""
        return cut(self._made.get(), box, self._size.box)


def _prefilled(latent: Node[FloatArray], engine: Engine) -> Generator[Step, None, Values]:
    yield from latent.prepare()
    return engine.prefill(latent.read(latent.size.box))


def cut(values: Values, box: Box, whole: Box) -> Values:
    """The cells of a box out of those of a larger one that holds it; a copy, unless it is all of them.

    A backend wants its inputs in one piece, and a view would keep what is around it alive.
    """
    return values if box == whole else cast(Values, joined([values[:, :, *box.relative_to(whole).slices]]))


def joined(parts: list[Any], axis: int = 2) -> Any:
    """Parts of an array one after another, or a copy of a single one, by the library that they are of."""
    library = sys.modules[type(parts[0]).__module__.partition(".")[0]]
    return getattr(library, "concatenate", np.concatenate)(parts, axis=axis)
