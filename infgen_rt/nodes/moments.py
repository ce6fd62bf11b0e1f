"""Moments: what prefill has to know of a whole latent, gathered from its parts."""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from infgen_rt.backend.engine import Engine
from infgen_rt.bundle.manifest import Memory
from infgen_rt.common.pixels import FloatArray
from infgen_rt.geometry.shapes import Box, Size
from infgen_rt.geometry.tiling import HaloTiling
from infgen_rt.nodes.node import Cost, Node, Once, Step


@dataclass(frozen=True)
class Gathering:
    """In what parts a latent's statistics are gathered.

    Attributes:
        tiles: of the latent.
        blocks: of prefill, each of which is normalised by statistics of its own.
    """

    tiles: HaloTiling
    blocks: int

    @property
    def runs(self) -> int:
        """How often the graph runs: once for a whole latent, else for each part in a pass per block."""
        return 1 if self.tiles.tiling.count == 1 else self.blocks * self.tiles.tiling.count

    def cost(self, figures: Memory) -> Cost:
        """A part at a time; what comes of it is small."""
        return Cost(steps=self.runs, making=figures.statistics_per_cell * self.tiles.window.area)


class Moments:
    """Means and variances of a latent, float32 [2, blocks, groups], that prefill's blocks are normalised by.

    Args:
        latent: float32 [C, h, w].
        gathering: how it is looked at.
        engine: with the statistics graph.
    """

    def __init__(self, latent: Node[FloatArray], gathering: Gathering, engine: Engine) -> None:
        self._latent = latent
        self._made = Once(lambda: _gathered(latent, gathering, engine), engine)

    @property
    def size(self) -> Size:
        """Width and height of the latent, in cells."""
        return self._latent.size

    def prepare(self) -> Iterator[Step]:
        """Look at the whole latent; see `Node`."""
        return self._made.steps()

    def read(self, box: Box) -> FloatArray:
        """The same for every box: those of the whole latent."""
        return self._made.get()


def _gathered(latent: Node[FloatArray], gathering: Gathering, engine: Engine) -> Generator[Step, None, FloatArray]:
    """A block's moments depend on those of the blocks before, which the pass before has found.

    The result is that of the whole latent at once, but for rounding.
    """
    yield from latent.prepare()
    if gathering.runs == 1:
        return engine.statistics(latent.read(latent.size.box))
    moments: FloatArray | None = None
    for block in range(gathering.blocks):
        parts: list[FloatArray] = []
        counts: list[int] = []
        for tile, window in gathering.tiles.windows():
            if block or parts:
                yield "prefill"
            part = np.ascontiguousarray(latent.read(window))
            parts.append(engine.statistics(part, tile.relative_to(window), moments)[:, block])
            counts.append(tile.size.area)
        if moments is None:
            moments = np.full((2, gathering.blocks, parts[0].shape[1]), -1, np.float32)
        moments[:, block] = merged(parts, counts)
    assert moments is not None
    return moments


def merged(parts: Sequence[FloatArray], counts: Sequence[int]) -> FloatArray:
    """Moments [2, groups] of all cells from those of disjoint parts, and of how many cells each is.

    By Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances" (1979).
    """
    means, variances = np.stack(parts, axis=1).astype(np.float64)
    mean = np.average(means, axis=0, weights=counts)
    variance = np.average(variances + np.square(means - mean), axis=0, weights=counts)
    return np.stack([mean, variance]).astype(np.float32)
