"""Compares precisions: how much float32, bfloat16 and 8 bits change the picture, and how much time they save.

Usage: ``python -m benchmarks.studies.precision``.

The 8-bit graphs are made here, because the model that ships has none. Trunk and refine get 8-bit weights, or 8-bit
weights and activations. Activations are calibrated on two of the sample latents, and the third sample is decoded. Both
runtimes run the same quantised graphs. Prefill and decode, which are 5 to 20 % of the work, keep their precision.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
import onnxruntime
import openvino
from numpy.typing import NDArray
from onnxruntime import quantization
from onnxruntime.quantization.shape_inference import quant_pre_process

from benchmarks import options, table
from benchmarks.latents import middle
from benchmarks.profile import Recorder
from benchmarks.studies.parallel import inputs_of
from infgen_rt.backend.candidates import Candidate, Survey
from infgen_rt.backend.engine import Engine
from infgen_rt.backend.protocol import Backend, Options, Session
from infgen_rt.bundle.folder import Bundle
from infgen_rt.bundle.graphs import DECODE, Content, apart
from infgen_rt.common.pixels import FloatArray, fetch, psnr, to_bytes
from infgen_rt.geometry.grid import Grid
from infgen_rt.geometry.shapes import Size
from infgen_rt.latent.samples import load_sample
from infgen_runtimes.openvino import shared_core
from infgen_training.perception import Lpips

CELLS = Size(32, 24)
"""Size of the middle of each sample that is used."""
CALIBRATED, DECODED = ("harbour", "colosseum"), "osprey"
QUANTISED = ("trunk", "refine")

Picture = NDArray[np.uint8]


@dataclass
class Replacing:
    """A backend that loads other graphs in place of some of a bundle.

    Attributes:
        backend: The backend that loads all other graphs.
        graphs: ONNX files, by the name of the graph that they replace.
    """

    backend: Backend
    graphs: Mapping[str, Path]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.backend, name)

    def load(self, graph: str, files: Mapping[str, Content], options: Options) -> Session:
        """See ``infgen_rt.backend.protocol.Backend``."""
        if graph not in self.graphs:
            return self.backend.load(graph, files, options)
        if self.backend.name == "onnxruntime":
            return self.backend.load(graph, {"model.onnx": self.graphs[graph].read_bytes()}, options)
        threads = options.threads or os.cpu_count() or 1
        settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
        return _OpenVino(shared_core().compile_model(self.graphs[graph], "CPU", settings))


@dataclass
class _OpenVino:
    """OpenVINO's session of an ONNX file. The runtime's own backend does not load ONNX files."""

    compiled: openvino.CompiledModel

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        results = self.compiled({name: inputs[name] for port in self.compiled.inputs for name in [port.any_name]})
        return {port.any_name: np.array(results[port]) for port in self.compiled.outputs}

    def close(self) -> None:
        pass


@dataclass
class Calibration(quantization.CalibrationDataReader):  # type: ignore[misc]
    """Gives the inputs of a graph to ONNX Runtime's quantiser, one after another."""

    inputs: list[Mapping[str, Any]]
    left: Iterator[Mapping[str, Any]] = field(init=False)

    def __post_init__(self) -> None:
        self.left = iter(self.inputs)

    def get_next(self) -> Mapping[str, Any] | None:
        """Returns the next inputs, or ``None`` after the last ones."""
        return next(self.left, None)


def sample(name: str) -> FloatArray:
    """The middle of a sample latent, [C, h, w]."""
    return middle(load_sample(name).latent, CELLS.height, CELLS.width)


def decode(engine: Engine, latent: FloatArray, scale: float) -> Picture:
    """Decodes a latent as one tile, and loads the graphs that it needs."""
    manifest = engine.manifest
    grid = Grid(CELLS, Size(*(round(manifest.patch * scale * side) for side in CELLS)), manifest.patch)
    enlargement = manifest.context_for(grid.scale)
    engine.load_for(enlargement)
    context = engine.context(latent, enlargement)
    inputs = inputs_of(grid, context, grid.tokens.box, manifest.halo.cells)
    return to_bytes(fetch(engine.run(DECODE, inputs, enlargement)[0], np.float32))


def plain(bundle: Bundle, candidate: Candidate, graph: str, folder: Path) -> Path:
    """Writes a graph as one ONNX file with float32 weights, which the quantiser needs."""
    files = bundle.read_graph(candidate.recipe, graph)
    own, weights = apart(files)
    (content,) = own.values()
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath, options.log_severity_level = str(folder / f"{graph}.basic.onnx"), 3
    if weights:
        contents = list(weights.values())
        options.add_external_initializers_from_files_in_memory([*weights], contents, [len(each) for each in contents])
    onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    made = folder / f"{graph}.onnx"
    quant_pre_process(folder / f"{graph}.basic.onnx", made, skip_optimization=True, skip_symbolic_shape=True)
    return made


def quantised(model: Path, inputs: list[Mapping[str, Any]]) -> Path:
    """Writes a graph with 8-bit weights, scaled per channel, and 8-bit activations, scaled per tensor."""
    made = model.with_suffix(".int8.onnx")
    quantization.quantize_static(
        model,
        made,
        Calibration(inputs),
        quant_format=quantization.QuantFormat.QDQ,
        op_types_to_quantize=["Conv", "MatMul"],
        per_channel=True,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
        calibrate_method=quantization.CalibrationMethod.MinMax,
    )
    return made


def rounded(model: Path) -> Path:
    """Writes a graph with weights that are rounded to 8 bits, scaled per output channel. It computes in float32."""
    graph = onnx.load(model)
    used = {node.input[1] for node in graph.graph.node if node.op_type == "Conv"}
    for tensor in graph.graph.initializer:
        if tensor.name in used:
            values = onnx.numpy_helper.to_array(tensor)
            step = np.abs(values).max(axis=tuple(range(1, values.ndim)), keepdims=True) / 127
            near = (np.round(values / np.maximum(step, 1e-12)) * step).astype(np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(near, tensor.name))
    made = model.with_suffix(".weights.onnx")
    onnx.save(graph, made)
    return made


def ladder(bundle: Bundle, scale: float, folder: Path) -> list[tuple[str, Candidate]]:
    """The names of the compared precisions, and the candidate that runs each."""
    candidates = [each for name in ("onnxruntime", "openvino") for each in _candidates(bundle, name)]
    exact = next(each for each in candidates if each.backend.name == "onnxruntime")
    recorder = Recorder(exact.backend)
    engine = Engine(bundle, replace(exact, backend=recorder))
    calibrated: dict[str, list[Mapping[str, Any]]] = {}
    for name in CALIBRATED:
        decode(engine, sample(name), scale)
        for graph, inputs in recorder.inputs.items():
            if graph.startswith(QUANTISED):
                calibrated.setdefault(graph, []).append(inputs)
    engine.close()
    models = {graph: plain(bundle, exact, graph, folder) for graph in calibrated}
    coarse = {graph: rounded(model) for graph, model in models.items()}
    whole = {graph: quantised(model, calibrated[graph]) for graph, model in models.items()}
    steps = []
    for candidate in candidates:
        steps.append((candidate.arithmetic, candidate))
        if candidate.exact:
            for name, graphs in (("8-bit weights", coarse), ("8-bit weights and activations", whole)):
                steps.append((name, replace(candidate, backend=Replacing(candidate.backend, graphs))))
    return steps


def _candidates(bundle: Bundle, name: str) -> list[Candidate]:
    return list(Survey.of(bundle.manifest, name, "cpu").candidates)


@click.command(cls=options.Command)
@options.model
@click.option("--scale", default=4.0, show_default=True)
@click.option("--runs", default=5, show_default=True, help="Number of runs. Their medians are printed.")
def main(model: Path, scale: float, runs: int) -> None:
    """Prints a table of engines and precisions against ONNX Runtime's float32."""
    bundle, latent, eye = Bundle.open(model), sample(DECODED), Lpips()
    with tempfile.TemporaryDirectory() as folder:
        steps = [(name, way, Engine(bundle, way)) for name, way in ladder(bundle, scale, Path(folder))]
        pictures = [decode(engine, latent, scale) for _, _, engine in steps]  # the first run takes longer
        times: list[list[float]] = [[] for _ in steps]
        for _ in range(runs):
            for (_, _, engine), each in zip(steps, times, strict=True):
                start = time.perf_counter()
                decode(engine, latent, scale)
                each.append(time.perf_counter() - start)
        click.echo(table.head("engine", "precision", "s", "of float32", "PSNR", "LPIPS"))
        first: dict[str, float] = {}
        for (name, way, engine), picture, each in zip(steps, pictures, times, strict=True):
            seconds = statistics.median(each)
            ratio = seconds / first.setdefault(way.backend.name, seconds)
            error, seen = psnr(picture, pictures[0], 255), eye.of(picture, pictures[0])
            figures = (f"{seconds:.2f}", f"{ratio:.2f}", f"{error:.1f}", f"{seen:.4f}")
            click.echo(table.row(way.backend.name, name, *figures))
            engine.close()


if __name__ == "__main__":
    main()
