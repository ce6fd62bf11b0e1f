"""Compares decoding tiles one after another with decoding them in parallel: ``python -m benchmarks.studies.parallel``.

Tiles in parallel have one thread each. Which way is faster depends on the backend. The backends' attribute
``parallel_on`` follows from the results.
"""

from __future__ import annotations

import statistics
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks import options, table
from benchmarks.timing import seconds
from infgen_rt.backend.candidates import Survey
from infgen_rt.backend.engine import Engine
from infgen_rt.backend.inputs import tile_inputs
from infgen_rt.backend.protocol import Backend, Values
from infgen_rt.bundle.folder import Bundle
from infgen_rt.bundle.graphs import DECODE
from infgen_rt.bundle.manifest import Enlargement
from infgen_rt.geometry.grid import Grid
from infgen_rt.geometry.shapes import Box, Size
from infgen_rt.geometry.tiling import Tiling

CELLS = Size(64, 64)
TILE = Size(64, 64)


def inputs_of(grid: Grid, context: Values, tokens: Box, radius: float | None) -> dict[str, Any]:
    """Inputs of decode for a tile, with a crop of a whole context as in the runtime.

    Args:
        grid: Grid of the picture.
        context: Context of the whole latent.
        tokens: The tile with its halo.
        radius: Radius of attention in cells. ``None`` for the whole latent.
    """
    cells = grid.context_of(tokens, radius)
    return tile_inputs(grid, context[:, :, *cells.slices], cells, tokens)


@dataclass
class Parallel:
    """A backend for which the runtime decodes tiles in parallel.

    Attributes:
        backend: The backend that does the work.
        parallel_on: See ``infgen_rt.backend.protocol.Backend``.
    """

    backend: Backend
    parallel_on: Collection[str] = ("cpu",)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.backend, name)


def one_after_another(engine: Engine, inputs: Sequence[dict[str, Any]], enlargement: Enlargement) -> None:
    """Decodes tiles one after another, each with all threads."""
    for each in inputs:
        engine.run(DECODE, each, enlargement)


def side_by_side(engine: Engine, inputs: Sequence[dict[str, Any]], enlargement: Enlargement) -> None:
    """Decodes tiles in parallel, each with one thread."""
    with ThreadPoolExecutor(engine.workers) as pool:
        for busy in [pool.submit(engine.run, DECODE, each, enlargement, True) for each in inputs]:
            busy.result()


@click.command(cls=options.Command)
@options.model
@click.option("--backend", "names", multiple=True, default=("onnxruntime", "openvino"), show_default=True)
@options.threads
@click.option("--scales", default="1,4", show_default=True, help="Scales, separated by commas.")
@click.option("--runs", default=5, show_default=True, help="Number of runs. Their medians are printed.")
def main(model: Path, names: tuple[str, ...], threads: int, scales: str, runs: int) -> None:
    """Decodes a picture's tiles both ways, in turn, and prints the seconds of each."""
    bundle = Bundle.open(model)
    rng = np.random.default_rng(0)
    latent = rng.normal(0, 0.8, (bundle.manifest.latent_channels, *CELLS[::-1])).astype(np.float32)
    halo, patch = bundle.manifest.halo, bundle.manifest.patch
    heads = ("backend", "arithmetic", "scale", "tiles", "one after another, s", "side by side, s", "ratio")
    click.echo(table.head(*heads))
    candidates = [each for name in names for each in Survey.of(bundle.manifest, name, "cpu").candidates]
    for candidate in candidates:
        engine = Engine(bundle, replace(candidate, backend=Parallel(candidate.backend)), threads)
        for scale in (float(text) for text in scales.split(",")):
            grid = Grid(CELLS, Size(*(round(patch * scale * side) for side in CELLS)), patch)
            enlargement = bundle.manifest.context_for(grid.scale)
            engine.load_for(enlargement)
            engine.load_shared(DECODE, enlargement)
            context = engine.context(latent, enlargement)
            # There are four tiles for each thread. If the picture has fewer, they are repeated.
            tiles = list(Tiling.of(grid.tokens, TILE).touching(grid.tokens.box))
            tiles = (4 * threads * tiles)[: 4 * threads]
            inputs = [inputs_of(grid, context, tile.grow(halo.tokens, grid.tokens.box), halo.cells) for tile in tiles]
            ways = (
                partial(one_after_another, engine, inputs, enlargement),
                partial(side_by_side, engine, inputs, enlargement),
            )
            for way in ways:
                way()
            pairs = [tuple(seconds(way) for way in ways) for _ in range(runs)]
            before, after = (statistics.median(times) for times in zip(*pairs, strict=True))
            figures = (f"{before:.3f}", f"{after:.3f}", f"{after / before:.2f}")
            about = (candidate.backend.name, candidate.arithmetic, f"{scale:g}", len(inputs))
            click.echo(table.row(*about, *figures))
        engine.close()


if __name__ == "__main__":
    main()
