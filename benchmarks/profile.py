"""Measures where each graph spends its time, by kind of operation: ``python -m benchmarks.profile``.

It uses the runtimes' own profilers and the graphs of the model that ships. The inputs are those that a decoder gives to
the graphs, for a latent of 64x64 cells and one tile of 64x64 tokens with its halo. It also shows how many operations a
graph has after the runtime has optimised it.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import click
import numpy as np
import onnx
import onnxruntime

from benchmarks import options
from benchmarks.studies.parallel import inputs_of
from benchmarks.table import head, row
from infgen_rt.backend.candidates import Candidate, Survey
from infgen_rt.backend.engine import Engine
from infgen_rt.backend.inputs import cell_inputs
from infgen_rt.backend.protocol import Backend, Options, Session
from infgen_rt.bundle.folder import Bundle
from infgen_rt.bundle.graphs import DECODE, DECODE_CELLS, KINDS, Content, apart, kind_of
from infgen_rt.errors import BackendError
from infgen_rt.geometry.grid import Grid
from infgen_rt.geometry.shapes import Size
from infgen_rt.geometry.tiling import Tiling
from infgen_rt.plan.plan import windows_of
from infgen_runtimes.openvino import Session as OpenVinoSession
from infgen_runtimes.openvino import read_model, shared_core

CELLS = Size(64, 64)
TILE = Size(64, 64)
SHOWN = 0.02
"""Smallest share of a graph's time for which a kind of operation has its own line."""
_NAMED = 3
"""Number of kinds of operation in a graph's line of the summary."""
_ENDS = ("Input", "Output", "Const")
"""Kinds of nodes in OpenVINO's runtime model that are not operations."""
_ERRORS = 3
"""ONNX Runtime's log severity. At a lower one, it warns that the saved model suits only this processor."""


@dataclass(frozen=True)
class Node:
    """One operation of a graph.

    Attributes:
        kind: Kind of operation, with the implementation if the runtime reports it.
        seconds: Median time over the runs.
        products: Multiply-adds of matrix products and convolutions. It is 0 for other operations, and if the runtime
            does not report shapes.
    """

    kind: str
    seconds: float
    products: float = 0.0


@dataclass(frozen=True)
class Profile:
    """A runtime's profile of a graph.

    Attributes:
        nodes: Operations whose time the runtime reports.
        count: Number of operations after the runtime's optimisation, without constants, inputs and outputs.
    """

    nodes: tuple[Node, ...]
    count: int


@dataclass
class Recorder:
    """A backend that remembers the last inputs of every graph.

    Attributes:
        backend: The backend that does the work.
        files: Files of each loaded graph.
        inputs: Inputs of the last run of each graph.
    """

    backend: Backend
    files: dict[str, Mapping[str, Content]] = field(default_factory=dict)
    inputs: dict[str, Mapping[str, Any]] = field(default_factory=dict)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.backend, name)

    def load(self, graph: str, files: Mapping[str, Content], options: Options) -> Session:
        """See ``infgen_rt.backend.protocol.Backend``."""
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


def profile_onnx(files: Mapping[str, Content], inputs: Mapping[str, Any], threads: int, runs: int) -> Profile:
    """Makes ONNX Runtime's profile of a graph. Operations are counted in the optimised model that it saves."""
    own, weights = apart(files)
    (content,) = own.values()
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.enable_mem_pattern = threads, False
        options.enable_profiling, options.profile_file_prefix = True, str(Path(folder) / "profile")
        options.optimized_model_filepath, options.log_severity_level = str(Path(folder) / "optimised.onnx"), _ERRORS
        if weights:
            contents = list(weights.values())
            options.add_external_initializers_from_files_in_memory(
                [*weights], contents, [len(each) for each in contents]
            )
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        for _ in range(runs + 1):
            session.run(None, dict(inputs))
        events = json.loads(Path(session.end_profiling()).read_text())
        count = len(onnx.load(options.optimized_model_filepath, load_external_data=False).graph.node)
    times, about = defaultdict(list), {}
    for event in events:
        if event["cat"] == "Node" and event["name"].endswith("_kernel_time"):
            times[event["name"]].append(event["dur"] / 1e6)
            about[event["name"]] = event["args"]
    # The first run is left out, because it allocates memory.
    nodes = (Node(about[name]["op_name"], median(found[1:]), _products(about[name])) for name, found in times.items())
    return Profile(tuple(nodes), count)


def _products(event: Mapping[str, Any]) -> float:
    """Multiply-adds of a node of ONNX Runtime's profile."""
    given, made = (
        [shape for typed in event[f"{end}_type_shape"] for shape in typed.values()] for end in ("input", "output")
    )
    if event["op_name"] in {"Conv", "FusedConv"}:
        return float(math.prod(made[0]) // made[0][1] * math.prod(given[1]))
    if event["op_name"] == "ConvTranspose":
        # The profile does not have the shape of the weights. In this model, kernels are as large as their stride.
        return float(math.prod(made[0]) * given[0][1])
    if event["op_name"] in {"MatMul", "FusedMatMul", "Gemm"}:
        return float(math.prod(given[0]) * made[0][-1])
    return 0.0


def profile_openvino(
    files: Mapping[str, Content], inputs: Mapping[str, Any], arithmetic: str, threads: int, runs: int
) -> Profile:
    """Makes OpenVINO's profile of a graph. Operations are counted in its runtime models.

    For bfloat16, the graph is cut in two, as in the backend.
    """
    core = shared_core()
    settings = {"INFERENCE_NUM_THREADS": threads, "PERF_COUNT": True}
    session = OpenVinoSession(core, partial(read_model, core, files), arithmetic.replace("fp32", "f32"), settings)
    # Requests of one model all give the same times.
    parts = [model.create_infer_request() for model in session._models]
    compiled = (model.get_runtime_model() for model in session._models)
    kinds = [node.get_rt_info()["layerType"].astype(str) for part in compiled for node in part.get_ops()]
    sums: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0.0])
    for number in range(1, runs + 2):
        session.run(inputs)
        for part, request in enumerate(parts):
            for info in request.profiling_info:
                # OpenVINO reports the mean of all runs until now, so the sum is that times their number.
                node = (f"{part} {info.node_name}", f"{info.node_type}, {info.exec_type}")
                sums[node].append(number * info.real_time.total_seconds())
    session.close()
    # The first run is left out, because it includes one-time work.
    nodes = tuple(Node(kind, median(np.diff(found[1:]))) for (_, kind), found in sums.items())
    return Profile(nodes, sum(kind not in _ENDS for kind in kinds))


def cases(bundle: Bundle, candidate: Candidate, threads: int, scales: Sequence[float]) -> dict[str, tuple[Any, Any]]:
    """Finds the files and the inputs that a decoder gives to each graph.

    Graphs that differ by scale, such as ``refine4``, are those of the smallest enlargement for the scale.

    Returns:
        The files and inputs by the name of the case, such as ``prefill`` or ``decode4 at 3``.
    """
    recorder = Recorder(candidate.backend)
    engine = Engine(bundle, replace(candidate, backend=recorder), threads)
    rng = np.random.default_rng(0)
    latent = rng.normal(0, 0.8, (bundle.manifest.latent_channels, *CELLS[::-1])).astype(np.float32)
    found: dict[str, tuple[Any, Any]] = {}
    halo, patch = bundle.manifest.halo, bundle.manifest.patch
    for scale in scales:
        grid = Grid(CELLS, Size(*(round(patch * scale * side) for side in CELLS)), patch)
        tiles = list(Tiling.of(grid.tokens, TILE).touching(grid.tokens.box))
        tile = tiles[len(tiles) // 2].grow(halo.tokens, grid.tokens.box)
        enlargement = bundle.manifest.context_for(grid.scale)
        engine.load_for(enlargement)
        context = engine.context(latent, enlargement)
        engine.run(DECODE, inputs_of(grid, context, tile, halo.cells), enlargement)
        if engine.recipe.has(DECODE_CELLS, enlargement) and grid.is_at(enlargement.factor or 1):
            cells = windows_of(grid, enlargement, halo, by_cells=True).of(tiles[len(tiles) // 2]).cells
            engine.run(DECODE_CELLS, cell_inputs(context[:, :, *cells.slices]), enlargement)
        for graph in (enlargement.graph(kind.name) if kind.enlarged else kind.name for kind in KINDS):
            if graph in recorder.inputs:
                # A decode graph serves several scales. The others run once per latent.
                name = f"{graph} at {scale:g}" if kind_of(graph) == DECODE else graph
                found[name] = (recorder.files[graph], recorder.inputs[graph])
    engine.close()
    return found


def by_kind(nodes: Sequence[Node]) -> list[tuple[str, list[Node]]]:
    """Groups nodes by kind of operation. The kind that takes most time is first."""
    kinds: dict[str, list[Node]] = defaultdict(list)
    for node in nodes:
        kinds[node.kind].append(node)
    return sorted(kinds.items(), key=lambda pair: -sum(node.seconds for node in pair[1]))


def table(profile: Profile, products: float | None) -> list[str]:
    """The rows of a graph's table in Markdown, one per kind of operation.

    Args:
        profile: Profile of the graph.
        products: Multiply-adds of the whole graph. ``None`` if they are not known.
    """
    nodes = profile.nodes
    total = sum(node.seconds for node in nodes)
    rate = "" if products is None else f"{products / total / 1e9:.0f}"
    lines = [f"| **all** | {len(nodes)} | {1e3 * total:.1f} | | {rate} |"]
    rest = 0.0
    for kind, group in by_kind(nodes):
        seconds, work = sum(node.seconds for node in group), sum(node.products for node in group)
        if seconds < SHOWN * total:
            rest += seconds
            continue
        rate = f"{work / seconds / 1e9:.0f}" if work else ""
        lines.append(f"| {kind} | {len(group)} | {1e3 * seconds:.1f} | {seconds / total:.0%} | {rate} |")
    return [*lines, f"| others | | {1e3 * rest:.1f} | {rest / total:.0%} | |"]


def summary(way: str, case: str, profile: Profile) -> str:
    """A row in Markdown with a graph's number of operations, its time, and the kinds that take most of it."""
    total = sum(node.seconds for node in profile.nodes)
    shares = ", ".join(
        f"{kind} {sum(node.seconds for node in group) / total:.0%}" for kind, group in by_kind(profile.nodes)[:_NAMED]
    )
    return row(case, way, profile.count, f"{1e3 * total:.1f}", shares)


@click.command(cls=options.Command)
@options.model
@options.threads
@click.option("--scales", default="1,2,4", show_default=True, help="Scales of refine and decode, separated by commas.")
@click.option("--backend", "names", multiple=True, default=("onnxruntime", "openvino"), show_default=True)
@click.option("--runs", default=7, show_default=True, help="Number of runs. Their medians are printed.")
def main(model: Path, threads: int, scales: str, names: tuple[str, ...], runs: int) -> None:
    """Prints the milliseconds and the speed of each kind of operation, for each graph and runtime.

    The speed is in thousand million multiply-adds per second. A last table has the number of operations of each graph,
    its time, and the kinds of operation that take most of it.
    """
    bundle = Bundle.open(model)
    sides = [float(text) for text in scales.split(",")]
    products: dict[str, float] = {}
    lines = [head("graph", "runtime", "operations", "ms", "most of it")]
    for name in names:
        # ONNX Runtime has to be first. It reports multiply-adds, which are the same for OpenVINO.
        for candidate in _candidates(bundle, name):
            way = f"{name}, {candidate.arithmetic}"
            for case, (files, inputs) in cases(bundle, candidate, threads, sides).items():
                if name == "onnxruntime":
                    profile = profile_onnx(files, inputs, threads, runs)
                    products[case] = sum(node.products for node in profile.nodes)
                else:
                    profile = profile_openvino(files, inputs, candidate.arithmetic, threads, runs)
                click.echo(f"\n{way}, {threads} threads: {case}, {profile.count} operations after optimisation\n")
                click.echo(head("operations", "count", "ms", "share", "G multiply-adds/s"))
                click.echo("\n".join(table(profile, products.get(case))))
                lines.append(summary(way, case, profile))
    click.echo("\n" + "\n".join(lines))


def _candidates(bundle: Bundle, name: str) -> Sequence[Candidate]:
    try:
        return Survey.of(bundle.manifest, name, "cpu").candidates
    except BackendError as error:
        click.echo(f"{name} is left out: {error}", err=True)
        return ()


if __name__ == "__main__":
    main()
