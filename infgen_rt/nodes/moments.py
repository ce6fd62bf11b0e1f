"""The node for moments: statistics of a whole latent or encoded picture. They are gathered from its parts."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np

from infgen_rt.backend.engine import Engine, Purpose
from infgen_rt.backend.inputs import statistics_inputs
from infgen_rt.bundle.graphs import STATISTICS, Kind
from infgen_rt.bundle.manifest import Memory
from infgen_rt.common.pixels import FloatArray
from infgen_rt.geometry.shapes import Box
from infgen_rt.geometry.tiling import HaloTiling
from infgen_rt.nodes.node import Cost, Made, Node, Step


@dataclass(frozen=True)
class Gathering:
    """How statistics are gathered.

    Attributes:
        tiles: the tiles of the latent, or of the encoded picture.
        blocks: the number of blocks, each of which has its own statistics.
        kind: the kind of graph that computes them.
    """

    tiles: HaloTiling
    blocks: int
    kind: Kind = STATISTICS

    @property
    def step(self) -> Step:
        """The kind of the steps in which they are gathered."""
        return "prefill" if self.kind.picture else "reencode"

    @property
    def runs(self) -> int:
        """The number of runs of the graph: one if there is a single tile, otherwise one per tile and block."""
        return 1 if self.tiles.tiling.count == 1 else self.blocks * self.tiles.tiling.count

    def cost(self, figures: Memory) -> Cost:
        """The cost of gathering from one tile at a time. The results are too small to count."""
        return Cost(steps=self.runs, making=getattr(figures, self.kind.memory) * self.tiles.window.area)


class Moments(Made[FloatArray]):
    """The means and variances that normalise the blocks of a graph, float32 [2, blocks, groups].

    Args:
        values: the node for the latent or the encoded picture, float32 [C, h, w].
        gathering: how the statistics are gathered.
        engine: the engine, with the statistics graph.
        purpose: what the graph runs for. The engine knows it for pictures that are encoded.
    """

    def __init__(
        self, values: Node[FloatArray], gathering: Gathering, engine: Engine, purpose: Purpose | None = None
    ) -> None:
        super().__init__(values.size, lambda: _gathered(values, gathering, engine, purpose), engine)

    def read(self, box: Box) -> FloatArray:
        """The moments of all cells. They are the same for every box."""
        return self._made.get()


def _gathered(
    values: Node[FloatArray], gathering: Gathering, engine: Engine, purpose: Purpose | None
) -> Generator[Step, None, FloatArray]:
    """Gather moments.

    If there are several tiles, there is one pass over them per block, because a block's moments depend on those of the
    blocks before it. Except for rounding, the result is the same as from one run on the whole latent.
    """
    kind = gathering.kind
    yield from values.prepare()
    if purpose is not None:
        engine.run_for(purpose)
    if gathering.runs == 1:
        inputs = statistics_inputs(values.read(values.size.box), engine.manifest, kind=kind)
        return cast(FloatArray, engine.run(kind, inputs))
    moments: FloatArray | None = None
    for block in range(gathering.blocks):
        parts: list[FloatArray] = []
        counts: list[int] = []
        for tile, window in gathering.tiles.windows():
            if block or parts:
                yield gathering.step
            part = np.ascontiguousarray(values.read(window))
            inputs = statistics_inputs(part, engine.manifest, tile.relative_to(window), moments, kind)
            parts.append(engine.run(kind, inputs)[:, block])
            counts.append(tile.size.area)
        if moments is None:
            moments = np.full((2, gathering.blocks, parts[0].shape[1]), -1, np.float32)
        moments[:, block] = merged(parts, counts)
    assert moments is not None
    return moments


def merged(parts: Sequence[FloatArray], counts: Sequence[int]) -> FloatArray:
    """Merge the moments of disjoint parts into the moments [2, groups] of all cells.

    The method is by Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample
    variances" (1979).

    Args:
        parts: the moments [2, groups] of each part: means, then variances.
        counts: the number of cells of each part.
    """
    means, variances = np.stack(parts, axis=1).astype(np.float64)
    mean = np.average(means, axis=0, weights=counts)
    variance = np.average(variances + np.square(means - mean), axis=0, weights=counts)
    return np.stack([mean, variance]).astype(np.float32)
