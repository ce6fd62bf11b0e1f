"""Measures what a bundle needs in memory, in processes of its own that hold nothing but the runtime."""

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
from infgen_rt.bundle.folder import Bundle
from infgen_rt.bundle.manifest import Memory
from infgen_rt.common.memory import peak_memory
from infgen_rt.geometry.grid import Grid
from infgen_rt.geometry.shapes import Size

CELLS = Size(96, 96)
TOKENS = Size(72, 72)


def measure(bundle: Path, backend: str) -> Memory | None:
    """Runs each graph once, at a typical size, on this machine's CPU; None if the graphs are not for CPUs.

    Args:
        bundle: Folder with a manifest; its memory figures are not read.
        backend: Name of the backend that runs it.

    Raises:
        ExportError: A measuring process failed.
    """
    loaded, growth = {}, {}
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
        loaded[graph], growth[graph] = figures

    def most(kind: str, positions: Size) -> int:
        """Bytes a position of the graphs of a kind, of which a model with enlargements has several."""
        amounts = [amount for graph, amount in growth.items() if graph.rstrip("0123456789") == kind]
        return -(-max(amounts, default=0) // positions.area)

    return Memory(
        base=max(loaded.values()),
        prefill_per_cell=most("prefill", CELLS),
        decode_per_token=most("decode", TOKENS),
        encode_per_cell=most("encode", CELLS),
        refine_per_cell=most("refine", CELLS),
        statistics_per_cell=most("statistics", CELLS),
    )


def _main(bundle: str, backend: str, graph: str) -> None:
    opened = Bundle.open(bundle)
    candidates = Survey.of(opened.manifest, backend, "cpu").candidates
    if not candidates:
        json.dump(None, sys.stdout)
        return
    engine = Engine(opened, candidates[0])
    manifest = engine.manifest
    own = (each for each in manifest.contexts if graph in (each.graph("refine"), each.graph("decode")))
    enlargement = next(own, manifest.contexts[-1])
    # All that a picture needs, as when one is decoded.
    engine.load_for(enlargement)
    engine.load(graph)
    loaded = peak_memory() or 0
    latent = np.zeros((manifest.latent_channels, CELLS.height, CELLS.width), np.float32)
    if graph == "statistics":
        engine.statistics(latent)
    elif graph == "prefill":
        engine.prefill(latent, None if manifest.moments is None else np.ones((2, *manifest.moments), np.float32))
    elif graph == enlargement.graph("refine"):
        features = np.zeros((1, manifest.feature_channels or 0, CELLS.height, CELLS.width), np.float32)
        engine.refine(features, enlargement)
    elif graph == "encode":
        engine.encode(np.zeros((3, CELLS.height * manifest.patch, CELLS.width * manifest.patch), np.float32))
    else:
        picture = Size(TOKENS.width * manifest.patch, TOKENS.height * manifest.patch)
        grid = Grid(Size(TOKENS.width // 2, TOKENS.height // 2), picture, manifest.patch)
        context = np.zeros((1, enlargement.channels, grid.cells.height, grid.cells.width), np.float32)
        engine.decode(tile_inputs(grid, context, grid.cells.box, grid.tokens.box), enlargement)
    json.dump([loaded, (peak_memory() or 0) - loaded], sys.stdout)


if __name__ == "__main__":
    _main(*sys.argv[1:])
