"""The OpenVINO target: OpenVINO IR, converted from the torch module so that the bounds of dimensions are kept."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from infgen_export.pool import Array, Pool
from infgen_export.recipes import Recipe
from infgen_export.targets import Options, depends_on
from infgen_export.targets.depth_to_space import with_depth_to_space
from infgen_export.targets.dims import described_bounds
from infgen_export.targets.transposed import with_transposed_convolutions
from infgen_model.graphs import Graph
from infgen_rt.bundle.graphs import REFINE, Tensorspec
from infgen_runtimes import openvino
from infgen_runtimes.telemetry import without_openvino_telemetry

with without_openvino_telemetry():
    import nncf
    import openvino as ov

SUFFIX = ".xml"
SHARED = False
POOLED = True
NAMED = False
BACKEND = "openvino"
NATIVE = True
_DTYPES = {"f16": "<f2", "f32": "<f4", "i8": "i1", "i32": "<i4", "i64": "<i8"}


def trace(graph: Graph, example: tuple[Tensor, ...], options: Options) -> ov.Model:
    """The graph in float32; see ``Target``."""
    inputs = [(spec.name, _shape(spec, graph)) for spec in graph.inputs]
    model = ov.convert_model(with_transposed_convolutions(graph.module), example_input=example, input=inputs)
    if graph.kind.name == REFINE.name:
        # In decode, whose input and output have channels first, it would take longer.
        with_depth_to_space(model)
    for port, spec in zip((*model.inputs, *model.outputs), (*graph.inputs, graph.output), strict=True):
        port.get_tensor().set_names({spec.name})
        port.get_node().set_friendly_name(spec.name)
    return model


def convert(
    traced: ov.Model,
    graph: Graph,
    path: Path,
    metadata: Mapping[str, str],
    recipe: Recipe,
    options: Options,
) -> None:
    """Writes a graph as an ``.xml`` and a ``.bin`` file; see ``Target``."""
    model = traced.clone()
    descriptions = {f"about.{spec.name}": spec.about for spec in (*graph.inputs, graph.output)}
    for name, value in {**metadata, **described_bounds(graph.bounds), **descriptions}.items():
        model.set_rt_info(value, ["infgen", name])
    positional = _positional(model, graph)
    if recipe.precision == "int8":
        ignored = nncf.IgnoredScope(names=sorted(positional), validate=False)
        model = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_SYM, ignored_scope=ignored)
    ov.save_model(model, path, compress_to_fp16=False)
    if recipe.precision != "fp32":
        _keep_precision(path, positional)
    if recipe.precision == "fp16":
        half = path.with_name(f"half-{path.name}")
        model = openvino.shared_core().read_model(path)
        ov.save_model(model, half, compress_to_fp16=True)
        del model  # it maps the file that is replaced below into memory
        for suffix in (".xml", ".bin"):
            half.with_suffix(suffix).replace(path.with_suffix(suffix))


def _shape(spec: Tensorspec, graph: Graph) -> ov.PartialShape:
    """The shape of an input with its bounds."""
    lows, highs = ({name: bound[i] for name, bound in graph.bounds.items()} for i in (0, 1))
    return ov.PartialShape([ov.Dimension(*sides) for sides in zip(spec.at(lows), spec.at(highs), strict=True)])


def _positional(model: ov.Model, graph: Graph) -> set[str]:
    """Names of the operations that must stay float32, because no data reaches them (see ``depends_on``)."""
    operations = model.get_ordered_ops()
    nodes = [
        (
            node.get_type_name(),
            [node.input_value(index).get_node().get_friendly_name() for index in range(node.get_input_size())],
            [node.get_friendly_name()],
        )
        for node in operations
    ]
    found = depends_on(graph.data, nodes)
    # Operations of both kinds may use the same weight. It is positional only if no operation with data uses it.
    shared = {source for _, sources, (name,) in nodes if name in found for source in sources}
    return {name for kind, _, (name,) in nodes if name not in found and (kind != "Constant" or name not in shared)} - {
        spec.name for spec in graph.inputs
    }


def _keep_precision(file: Path, names: set[str]) -> None:
    """Marks operations so that they are computed, and their weights stored, in float32 only.

    OpenVINO has no Python function for this. The mark is an attribute in the file (``ov::disable_fp16_compression``).
    """
    tree = ElementTree.parse(file)
    for layer in tree.iter("layer"):
        if layer.get("name") in names:
            marks = layer.find("rt_info")
            marks = ElementTree.SubElement(layer, "rt_info") if marks is None else marks
            ElementTree.SubElement(marks, "attribute", {"name": "precise", "version": "0"})
    tree.write(file)


def load(path: Path, graph: str, precision: str | None = None) -> Session:
    """Loads a graph into OpenVINO on the CPU, in float32 or a native precision; see ``Target``."""
    return Session(path, precision or "f32")


def weights(path: Path) -> dict[str, Array]:
    """The constants by name, without their shapes; see ``Target``."""
    content = path.with_suffix(".bin").read_bytes()
    return {name: _constant(data, content) for name, data in _constants(ElementTree.parse(path))}


def pack(path: Path, output: Path, pools: Sequence[Pool]) -> None:
    """Writes the graph with references to the pool's file instead of its ``.bin`` file; see ``Target``."""
    tree, content, (pool,) = ElementTree.parse(path), path.with_suffix(".bin").read_bytes(), pools
    for _, data in _constants(tree):
        data.set("offset", str(pool.offset(_constant(data, content))))
    tree.write(output)


def _constants(tree: ElementTree.ElementTree[ElementTree.Element]) -> Iterator[tuple[str, ElementTree.Element]]:
    """Name and ``data`` element of each constant."""
    for layer in tree.iter("layer"):
        data = layer.find("data")
        if layer.get("type") == "Const" and data is not None:
            yield str(layer.get("name")), data


def _constant(data: ElementTree.Element, content: bytes) -> Array:
    """The numbers of a constant, without its shape."""
    start, length = int(data.get("offset", 0)), int(data.get("size", 0))
    # Types that NumPy lacks are compared as bytes.
    dtype = _DTYPES.get(str(data.get("element_type")), "u1")
    return np.frombuffer(content[start : start + length], np.dtype(dtype))


def native_precisions() -> tuple[str, ...]:
    """The low precision that OpenVINO chooses by itself on this CPU, if it has one."""
    capabilities = openvino.shared_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return ("bf16",) if "BF16" in capabilities else ()


class Session:
    """A converted graph in OpenVINO on the CPU; see ``targets.Session``.

    Args:
        path: The graph's ``.xml`` file.
        precision: Precision of the arithmetic, as a value of ``INFERENCE_PRECISION_HINT``. Without it, OpenVINO would
            choose bfloat16 if the CPU supports it.
    """

    def __init__(self, path: Path, precision: str = "f32") -> None:
        core = openvino.shared_core()
        model = core.read_model(path)
        self.operations: Counter[str] = Counter(node.get_type_name() for node in model.get_ordered_ops())
        self._session = openvino.Session(core, lambda: model, precision, {})

    def __call__(self, inputs: dict[str, Tensor]) -> Tensor:
        """Runs the graph on named inputs."""
        (output,) = self._session.run({name: value.numpy() for name, value in inputs.items()}).values()
        return torch.from_numpy(output)
