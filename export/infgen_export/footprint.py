"""Measures how much memory a bundle needs, in separate processes that load nothing but the runtime."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from infgen_export.errors import ExportError
from infgen_rt.backend.candidates import Survey
from infgen_rt.backend.engine import Engine
from infgen_rt.backend.inputs import tile_inputs
from infgen_rt.backend.protocol import AbsentError
from infgen_rt.bundle.folder import Bundle
from infgen_rt.bundle.graphs import DECODE, KINDS, kind_of
from infgen_rt.bundle.manifest import Memory
from infgen_rt.common.memory import peak_memory
from infgen_rt.geometry.grid import Grid
from infgen_rt.geometry.shapes import Size

CELLS = Size(96, 96)
TOKENS = Size(72, 72)


def measure(bundle: Path, backend: str) -> Memory | None:
    """Runs each graph once, at a typical size, on this machine's CPU. Returns None if the graphs are not for CPUs.

    Args:
        bundle: Folder with a manifest, whose memory figures are not used.
        backend: Name of the backend that runs the graphs.

    Raises:
        ExportError: A measuring process failed.
    """
    bases, growth = [], dict.fromkeys((kind.memory for kind in KINDS), 0)
    graphs = next(iter(Bundle.open(bundle).manifest.recipes)).graphs
    for graph in graphs:
        command = [sys.executable, "-m", "infgen_export.footprint", str(bundle), backend, graph]
        process = subprocess.run(command, capture_output=True, text=True)
        if process.returncode:
            reason = (process.stderr.strip().splitlines() or [f"exit code {process.returncode}"])[-1]
            raise ExportError(f"measuring the memory of {graph} on {backend} failed: {reason}")
        figures = json.loads(process.stdout)
        if figures is None:
            return None
        loaded, grown = figures
        bases.append(loaded)
        # A model with enlargements has several graphs of a kind.
        kind, positions = kind_of(graph), {"cell": CELLS.area, "token": TOKENS.area}
        growth[kind.memory] = max(growth[kind.memory], -(-grown // positions[kind.unit]))
    return Memory(base=max(bases), **growth)


def _main(bundle: str, backend: str, graph: str) -> None:
    opened = Bundle.open(bundle)
    try:
        candidate = Survey.of(opened.manifest, backend, "cpu").candidates[0]
    except AbsentError:  # the graphs are not for CPUs
        json.dump(None, sys.stdout)
        return
    engine = Engine(opened, candidate)
    manifest = engine.manifest
    kind = kind_of(graph)
    own = (each for each in manifest.contexts if graph == each.graph(kind.name))
    enlargement = next(own, manifest.contexts[-1])
    # Load all graphs that a picture needs, as in decoding.
    engine.load_for(enlargement)
    engine.load(graph)
    loaded = peak_memory() or 0
    # Decode is measured at twice the latent's own size.
    sides = {"h": CELLS.height, "w": CELLS.width, "hk": TOKENS.height // 2, "wk": TOKENS.width // 2}
    sizes = manifest.sizes(enlargement) | sides
    inputs = {spec.name: np.ones(spec.at(sizes), np.float32) for spec in kind.inputs}
    if kind == DECODE:
        picture = Size(TOKENS.width * manifest.patch, TOKENS.height * manifest.patch)
        grid = Grid(Size(sides["wk"], sides["hk"]), picture, manifest.patch)
        inputs = tile_inputs(grid, inputs["context"], grid.cells.box, grid.tokens.box)
    engine.run(kind, inputs, enlargement)
    json.dump([loaded, (peak_memory() or 0) - loaded], sys.stdout)


if __name__ == "__main__":
    _main(*sys.argv[1:])
