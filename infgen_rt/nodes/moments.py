"""Statistics: what prefill has to know of a whole latent, gathered from its parts."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from infgen_rt.backend.engine import Engine
from infgen_rt.common.pixels import FloatArray
from infgen_rt.geometry.tiling import HaloTiling


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
        """How often the graph runs: once for a whole latent, else for each part in a pass a block."""
        return 1 if self.tiles.tiling.count == 1 else self.blocks * self.tiles.tiling.count


def gathered(
    latent: FloatArray, gathering: Gathering, engine: Engine
) -> Generator[Literal["prefill"], None, FloatArray]:
    """Moments [2, blocks, groups] of a latent [C, h, w]; yields between two runs.

    A block's depend on those of the blocks before, which the pass before has found. The result is that of the whole
    latent at once, but for rounding.
    """
    if gathering.runs == 1:
        return engine.statistics(latent)
    moments: FloatArray | None = None
    for block in range(gathering.blocks):
        parts: list[FloatArray] = []
        counts: list[int] = []
        for tile, window in gathering.tiles.windows():
            if block or parts:
                yield "prefill"
            part = np.ascontiguousarray(latent[:, *window.slices])
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
