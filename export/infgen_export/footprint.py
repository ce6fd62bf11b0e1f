"""Measures how much memory a bundle needs, in separate processes that load nothing but the runtime."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import product
from pathlib import Path

import numpy as np
import psutil

from infgen_export.errors import ExportError
from infgen_rt.backend.candidates import Survey
from infgen_rt.backend.engine import IDLE, Engine
from infgen_rt.backend.inputs import tile_inputs
from infgen_rt.backend.protocol import AbsentError
from infgen_rt.bundle.folder import Bundle
from infgen_rt.bundle.graphs import DECODE, DECODE_CELLS, ENCODE, KINDS, Kind, kind_of
from infgen_rt.bundle.manifest import Enlargement, Memory
from infgen_rt.common.memory import peak_memory
from infgen_rt.geometry.grid import Grid
from infgen_rt.geometry.shapes import Size

CELLS = Size(96, 96)
"""Size of the latent, in cells, at which a graph's growth is measured."""
TOKENS = Size(72, 72)
"""Size of the tile, in tokens, at which the growth of the graphs that decode is measured."""
SIDES = (16, 24, 28)
"""Sides of the shapes that all graphs of a picture are run with, to measure what they keep. In cells or tokens."""
_TOGETHER = {"all": "all graphs together", "stages": "all graphs for several stages"}
"""What is measured apart from single graphs, by the name in the command: one stage, and several."""


def measure(bundle: Path, backend: str) -> Memory | None:
    """Measures the memory of a bundle by running each graph at a typical size on this machine's CPU.

    Args:
        bundle: Folder with a manifest. The memory figures in it are not used.
        backend: Name of the backend that runs the graphs.

    Returns:
        Memory in bytes. The base is that of the loaded graphs, with what they keep after runs of several shapes, such
        as compiled kernels, and so is what the graphs for several stages add to it. The other figures are what a run
        adds per cell or per token. ``None`` if the backend does not run the graphs on CPUs.

    Raises:
        ExportError: A measuring process failed.
    """
    manifest = Bundle.open(bundle).manifest
    try:
        # In bfloat16, OpenVINO keeps more than in float32.
        arithmetics = [each.arithmetic for each in Survey.of(manifest, backend, "cpu").candidates]
    except AbsentError:  # the graphs are not for CPUs
        return None
    graphs = next(iter(manifest.recipes)).graphs
    together = [name for name in _TOGETHER if name == "all" or ENCODE.name in graphs]
    bases, growth = dict[str, int](), dict.fromkeys((kind.memory for kind in KINDS), 0)
    for what, arithmetic in [*product(graphs, arithmetics[:1]), *product(together, arithmetics)]:
        command = [sys.executable, "-m", "infgen_export.footprint", str(bundle), backend, what, arithmetic]
        process = subprocess.run(command, capture_output=True, text=True)
        if process.returncode:
            reason = (process.stderr.strip().splitlines() or [f"exit code {process.returncode}"])[-1]
            raise ExportError(f"measuring the memory of {_TOGETHER.get(what, what)} on {backend} failed: {reason}")
        loaded, grown = json.loads(process.stdout)
        bases[what] = max(loaded, bases.get(what, 0))
        if what in _TOGETHER:
            continue
        # A model with enlargements has several graphs of one kind. The one that grows most counts.
        kind, positions = kind_of(what), {"cell": CELLS.area, "token": TOKENS.area}
        growth[kind.memory] = max(growth[kind.memory], -(-grown // positions[kind.unit]))
    several = bases.pop("stages", 0)
    base = max(bases.values())
    return Memory(base=base, **growth, stages=max(0, several - base))


def _main(bundle: str, backend: str, graph: str, arithmetic: str) -> None:
    """Measures one graph, or several together, in this process.

    It prints a JSON list with the bytes before the run and the bytes that the run added.
    """
    opened = Bundle.open(bundle)
    candidates = Survey.of(opened.manifest, backend, "cpu").candidates
    engine = Engine(opened, next(each for each in candidates if each.arithmetic == arithmetic))
    manifest = engine.manifest
    if graph in _TOGETHER:
        several = graph == "stages"
        kinds = [kind for kind in manifest.kinds(engine.recipe) if kind.picture or several]
        kinds.sort(key=lambda kind: kind.picture)  # the working memory of the last ones, which decode, always counts
        enlargements = manifest.contexts[-2:] if several else manifest.contexts[-1:]
        for enlargement in enlargements:
            _load(engine, enlargement)
        # Several shapes, because the tiles at the edges of a picture are smaller than the others.
        for enlargement, kind, height, width in product(enlargements, kinds, SIDES, SIDES):
            if kind.enlarged and not engine.recipe.has(kind, enlargement):
                continue
            _run(engine, kind, enlargement, Size(width, height), Size(width, height))
            if not kind.picture:
                engine.run_for(IDLE)  # graphs of the encoder would keep their working memory, and so would all others
        json.dump([psutil.Process().memory_info().rss, 0], sys.stdout)
        return
    # The kind comes from the manifest, because prefill takes fewer inputs if the model has no statistics.
    kind = next(kind for kind in manifest.kinds(engine.recipe) if kind.name == kind_of(graph).name)
    own = (each for each in manifest.contexts if graph == each.graph(kind.name))
    enlargement = next(own, manifest.contexts[-1])
    # Load all graphs that a picture needs, as in decoding.
    _load(engine, enlargement)
    engine.load(graph)
    loaded = peak_memory() or 0
    _run(engine, kind, enlargement, CELLS, TOKENS)
    json.dump([loaded, (peak_memory() or 0) - loaded], sys.stdout)


def _load(engine: Engine, enlargement: Enlargement) -> None:
    """Loads the graphs of a picture, with those that decode, which otherwise are loaded when they first run."""
    engine.load_for(enlargement)
    for kind in (DECODE, DECODE_CELLS):
        if engine.recipe.has(kind, enlargement):
            engine.load(enlargement.graph(kind.name))


def _run(engine: Engine, kind: Kind, enlargement: Enlargement, cells: Size, tokens: Size) -> None:
    """Runs a graph on a number of cells, or one that decodes on a number of tokens.

    Decode runs at twice the latent's own size, and decode_cells at the enlargement's factor.
    """
    manifest = engine.manifest
    sides = {"h": cells.height, "w": cells.width, "ht": tokens.height, "wt": tokens.width}
    sides |= {"hk": tokens.height // 2, "wk": tokens.width // 2}
    if kind == DECODE_CELLS:
        sides |= {"hk": tokens.height // (enlargement.factor or 1), "wk": tokens.width // (enlargement.factor or 1)}
    sizes = manifest.sizes(enlargement) | sides
    if kind == DECODE:
        picture = Size(tokens.width * manifest.patch, tokens.height * manifest.patch)
        grid = Grid(Size(sides["wk"], sides["hk"]), picture, manifest.patch)
        context = np.ones(kind.inputs[0].at(sizes), np.float32)
        inputs = tile_inputs(grid, context, grid.cells.box, grid.tokens.box)
    else:
        inputs = {spec.name: np.ones(spec.at(sizes), np.float32) for spec in kind.inputs}
    engine.run(kind, inputs, enlargement)


if __name__ == "__main__":
    _main(*sys.argv[1:])
