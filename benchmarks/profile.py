"""Where the seconds of each graph go, by kind of operation: ``python -m benchmarks.profile``.

The profilers are the runtimes' own, the graphs those of the model that ships, the inputs those that a decoder gives
them: a latent of 64x64 cells, and one tile of 64x64 tokens with its halo.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import click
import numpy as np
import onnxruntime
import openvino

from infgen_rt.backends import Backend, Options, Session
from infgen_rt.bundle import DEFAULT_BUNDLE, Bundle
from infgen_rt.choice import Candidate, Survey
from infgen_rt.engine import Engine
from infgen_rt.geometry import Size
from infgen_rt.grid import Grid
from infgen_rt.tiling import Tiling
from infgen_runtimes.openvino import Session as OpenVinoSession

CELLS = Size(64, 64)
TILE = Size(64, 64)
ONCE = ("prefill", "refine")
"""Graphs that run once a latent."""
SHOWN = 0.02
"""Least share of a graph's time that gets a line of its own."""


@dataclass(frozen=True)
class Node:
    """One operation of a graph.

    Attributes:
        kind: What it is, and where the runtime says so, how it is computed.
        seconds: Median of the runs.
        products: Multiply-adds of matrix products and convolutions; 0 for others and where the runtime hides shapes.
    """

    kind: str
    seconds: float
    products: float = 0.0


@dataclass
class Recorder:
    """A backend that remembers the last inputs of every graph.

    Attributes:
        backend: What does the work.
        files: Of each graph that was loaded.
        inputs: Of its last run.
    """

    backend: Backend
    files: dict[str, Mapping[str, bytes]] = field(default_factory=dict)
    inputs: dict[str, Mapping[str, Any]] = field(default_factory=dict)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.backend, name)

    def load(self, graph: str, files: Mapping[str, bytes], options: Options) -> Session:
        """See ``infgen_rt.backends.Backend``."""
        self.files[graph] = files
        return _Recording(self, graph, self.backend.load(graph, files, options))


@dataclass
class _Recording:
    recorder: Recorder
    graph: str
    session: Session

    def run(self, inputs: Mapping[str, Any]) -> Any:
        self.recorder.inputs[self.graph] = dict(inputs)
        return self.session.run(inputs)

    def close(self) -> None:
        self.session.close()


def profile_onnx(files: Mapping[str, bytes], inputs: Mapping[str, Any], threads: int, runs: int) -> list[Node]:
    """ONNX Runtime's own profile of a graph."""
    (content,) = files.values()
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.enable_mem_pattern = threads, False
        options.enable_profiling, options.profile_file_prefix = True, str(Path(folder) / "profile")
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        for _ in range(runs + 1):
            session.run(None, dict(inputs))
        events = json.loads(Path(session.end_profiling()).read_text())
    times, about = defaultdict(list), {}
    for event in events:
        if event["cat"] == "Node" and event["name"].endswith("_kernel_time"):
            times[event["name"]].append(event["dur"] / 1e6)
            about[event["name"]] = event["args"]
    # The first run is left out: it is the one that allocates.
    return [Node(about[name]["op_name"], median(found[1:]), _products(about[name])) for name, found in times.items()]


def _products(event: Mapping[str, Any]) -> float:
    """Multiply-adds of a node of ONNX Runtime's profile."""
    given, made = (
        [shape for typed in event[f"{end}_type_shape"] for shape in typed.values()] for end in ("input", "output")
    )
    if event["op_name"] in {"Conv", "FusedConv"}:
        return float(math.prod(made[0]) // made[0][1] * math.prod(given[1]))
    if event["op_name"] == "ConvTranspose":
        # Its weights are not told of: here a kernel is as large as its steps, so no two of them overlap.
        return float(math.prod(made[0]) * given[0][1])
    if event["op_name"] in {"MatMul", "FusedMatMul", "Gemm"}:
        return float(math.prod(given[0]) * made[0][-1])
    return 0.0


def profile_openvino(
    files: Mapping[str, bytes], inputs: Mapping[str, Any], arithmetic: str, threads: int, runs: int
) -> list[Node]:
    """OpenVINO's own profile of a graph, cut in two for bfloat16 as the runtime does it."""
    core = openvino.Core()
    model = core.read_model(files["model.xml"], openvino.Tensor(np.frombuffer(files["model.bin"], np.uint8)))
    settings = {"INFERENCE_NUM_THREADS": threads, "PERF_COUNT": True}
    session = OpenVinoSession(core, model, arithmetic.replace("fp32", "f32"), settings)
    sums: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0.0])
    for number in range(1, runs + 2):
        session.run(inputs)
        for part, request in enumerate(session._parts):
            for info in request.profiling_info:
                # What it tells is the mean of all runs so far.
                node = (f"{part} {info.node_name}", f"{info.node_type}, {info.exec_type}")
                sums[node].append(number * info.real_time.total_seconds())
    session.close()
    # The first run is left out, which makes what is made once.
    return [Node(kind, median(np.diff(found[1:]))) for (_, kind), found in sums.items()]


def cases(bundle: Bundle, candidate: Candidate, threads: int, scales: Sequence[float]) -> dict[str, tuple[Any, Any]]:
    """Files and inputs of every graph, as a decoder gives them, by what is done."""
    recorder = Recorder(candidate.backend)
    engine = Engine(bundle, replace(candidate, backend=recorder), threads)
    rng = np.random.default_rng(0)
    latent = rng.normal(0, 0.8, (bundle.manifest.latent_channels, *CELLS[::-1])).astype(np.float32)
    context = engine.context(latent)
    found = {graph: (recorder.files[graph], recorder.inputs[graph]) for graph in ONCE}
    halo, patch = bundle.manifest.halo, bundle.manifest.patch
    for scale in scales:
        grid = Grid(CELLS, Size(*(round(patch * scale * side) for side in CELLS)), patch)
        tiles = list(Tiling.of(grid.tokens, TILE).touching(grid.tokens.box))
        tile = tiles[len(tiles) // 2].grow(halo.tokens, grid.tokens.box)
        engine.decode(grid.decode_inputs(context, tile, halo.cells))
        found[f"decode at {scale:g}"] = (recorder.files["decode"], recorder.inputs["decode"])
    engine.close()
    return found


def table(nodes: Sequence[Node], products: float) -> list[str]:
    """Lines of Markdown: a graph's kinds of operation, the slowest first."""
    kinds: dict[str, list[Node]] = defaultdict(list)
    for node in nodes:
        kinds[node.kind].append(node)
    total = sum(node.seconds for node in nodes)
    lines = [f"| **all** | {len(nodes)} | {1e3 * total:.1f} | | {products / total / 1e9:.0f} |"]
    rest = 0.0
    for kind, group in sorted(kinds.items(), key=lambda pair: -sum(node.seconds for node in pair[1])):
        seconds, work = sum(node.seconds for node in group), sum(node.products for node in group)
        if seconds < SHOWN * total:
            rest += seconds
            continue
        rate = f"{work / seconds / 1e9:.0f}" if work else ""
        lines.append(f"| {kind} | {len(group)} | {1e3 * seconds:.1f} | {seconds / total:.0%} | {rate} |")
    return [*lines, f"| others | | {1e3 * rest:.1f} | {rest / total:.0%} | |"]


@click.command()
@click.option(
    "--model", type=click.Path(path_type=Path), default=DEFAULT_BUNDLE, help="Bundle; default the shipped one."
)
@click.option("--threads", default=os.cpu_count() or 1, show_default=True)
@click.option("--scales", default="2,4", show_default=True, help="Comma-separated, of decode.")
@click.option("--runs", default=7, show_default=True, help="Of which the medians are printed.")
def main(model: Path, threads: int, scales: str, runs: int) -> None:
    """Prints, for each graph and runtime, milliseconds and thousand million multiply-adds a second by kind."""
    bundle = Bundle.open(model)
    sides = [float(text) for text in scales.split(",")]
    products: dict[str, float] = {}
    for name in ("onnxruntime", "openvino"):
        # ONNX Runtime first: it says what its nodes multiply, which is the same for both.
        for candidate in Survey.of(bundle.manifest, name, "cpu").candidates:
            for case, (files, inputs) in cases(bundle, candidate, threads, sides).items():
                if name == "onnxruntime":
                    nodes = profile_onnx(files, inputs, threads, runs)
                    products[case] = sum(node.products for node in nodes)
                else:
                    nodes = profile_openvino(files, inputs, candidate.arithmetic, threads, runs)
                click.echo(f"\n{name}, {candidate.arithmetic}, {threads} threads: {case}\n")
                click.echo("| operations | count | ms | share | G multiply-adds/s |\n|---|---|---|---|---|")
                click.echo("\n".join(table(nodes, products[case])))


if __name__ == "__main__":
    main()
