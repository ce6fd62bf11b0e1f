"""The ONNX target, traced by ``torch.export``. Every spatial dimension is dynamic unless the recipe fixes it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import numpy_helper
from torch import Tensor

from infgen_export.pool import LEAST_BYTES, Array, Pool
from infgen_export.recipes import Recipe
from infgen_export.targets import LEAST_WEIGHTS, Options, depends_on
from infgen_export.targets.dims import described_bounds, dynamic_shapes
from infgen_export.targets.prelu import without_prelu
from infgen_export.targets.shuffles import without_shuffles
from infgen_export.targets.transposed import with_transposed_convolutions
from infgen_model.graphs import Graph

SUFFIX = ".onnx"
SHARED = False
POOLED = True
NAMED = False
BACKEND = "onnxruntime"
NATIVE = True

_LEAST_SHORTENED = 1_000
"""Smallest number of values in a weight that is stored as float16. For fewer, the cast costs more than it saves."""


def trace(graph: Graph, example: tuple[Tensor, ...], options: Options) -> onnx.ModelProto:
    """The graph in float32; see ``Target``."""
    program = torch.onnx.export(
        with_transposed_convolutions(graph.module),
        example,
        dynamo=True,
        opset_version=options.opset,
        input_names=[spec.name for spec in graph.inputs],
        output_names=[graph.output.name],
        dynamic_shapes=dynamic_shapes(graph),
        external_data=False,
        verbose=False,
    )
    assert program is not None
    model: onnx.ModelProto = program.model_proto
    return model


def convert(
    traced: onnx.ModelProto,
    graph: Graph,
    path: Path,
    metadata: Mapping[str, str],
    recipe: Recipe,
    options: Options,
) -> None:
    """Writes a graph as one ``.onnx`` file that includes the weights; see ``Target``."""
    model = onnx.ModelProto()
    model.CopyFrom(traced)
    if recipe.precision == "fp16":  # for GPUs
        _halve(model, graph)
    else:
        without_prelu(model)
        without_shuffles(model)
        if recipe.precision == "int8":
            _quantize(model, graph)
        else:
            _shorten(model)
    _describe(model, graph, metadata)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def _describe(model: onnx.ModelProto, graph: Graph, metadata: Mapping[str, str]) -> None:
    """Writes names, descriptions and properties, and removes what only matters on the exporting machine."""
    onnx.helper.set_model_props(model, {**metadata, **described_bounds(graph.bounds)})
    for value, spec in zip((*model.graph.input, *model.graph.output), (*graph.inputs, graph.output), strict=True):
        value.doc_string = spec.about
        # The tracer gives the dimensions of outputs names of its own, such as s39.
        for axis, dim in enumerate(spec.shape):
            if isinstance(dim, str) and value.type.tensor_type.shape.dim[axis].dim_param:
                value.type.tensor_type.shape.dim[axis].dim_param = dim
    # Stack traces of the exporting machine and torch's own names are useless to a user and double the size of small
    # graphs. Tools that need the intermediate shapes can infer them.
    del model.graph.value_info[:], model.graph.metadata_props[:]
    for part in (*model.graph.node, *model.graph.input, *model.graph.output, *model.graph.initializer):
        del part.metadata_props[:]


def _positional(model: onnx.ModelProto, graph: Graph) -> list[onnx.NodeProto]:
    """The nodes that must stay float32, because no data reaches them (see ``depends_on``)."""
    nodes = [(node.op_type, node.input, node.output) for node in model.graph.node]
    found = depends_on(graph.data, nodes)
    return [node for node in model.graph.node if found.isdisjoint(node.output)]


def _halve(model: onnx.ModelProto, graph: Graph) -> None:
    """Converts a graph to float16 arithmetic, with float32 inputs and outputs.

    ONNX Runtime's own converter rounds every input of the nodes that it keeps in float32 to float16 and back, which
    costs coordinates 50 dB. This function does not change the positional nodes, and casts their results once where
    other nodes use them.
    """
    single, half = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16
    values = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    floats = {name for name, tensor in weights.items() if tensor.data_type == single}
    floats |= {
        value.name
        for value in (*values.value_info, *values.input, *values.output)
        if value.type.tensor_type.elem_type == single
    }
    keep = {name for node in _positional(model, graph) for name in node.output} | {spec.name for spec in graph.inputs}
    nodes: list[onnx.NodeProto] = []
    casts: dict[str, str] = {}

    def halved(name: str) -> str:
        """The float16 copy of a value that stays float32, made when it is first needed."""
        if name not in casts:
            casts[name] = f"{name}_half"
            if name in weights:
                array = numpy_helper.to_array(weights[name]).astype(np.float16)
                model.graph.initializer.append(numpy_helper.from_array(array, casts[name]))
            else:
                nodes.append(onnx.helper.make_node("Cast", [name], [casts[name]], to=half))
        return casts[name]

    for node in model.graph.node:
        if keep.isdisjoint(node.output):
            for index, name in enumerate(node.input):
                # The scales of Resize are always float32.
                if name in floats and (name in keep or name in weights) and not (node.op_type == "Resize" and index):
                    node.input[index] = halved(name)
            for attribute in node.attribute:
                if node.op_type == "Cast" and attribute.name == "to" and attribute.i == single:
                    attribute.i = half
        nodes.append(node)
    output = graph.output.name
    for node in nodes:
        node.output[:] = [f"{output}_half" if name == output else name for name in node.output]
        node.input[:] = [f"{output}_half" if name == output else name for name in node.input]
    nodes.append(onnx.helper.make_node("Cast", [f"{output}_half"], [output], to=single))
    del model.graph.node[:], model.graph.value_info[:]
    model.graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input}
    for tensor in [tensor for tensor in model.graph.initializer if tensor.name not in used]:
        model.graph.initializer.remove(tensor)


def _shorten(model: onnx.ModelProto) -> None:
    """Stores weights as float16 where this changes no value. Runtimes cast them to float32 when they load the graph.

    The weights of checkpoints usually are float16, so this halves the file.
    """
    for tensor in list(model.graph.initializer):
        weights = numpy_helper.to_array(tensor)
        if weights.dtype != np.float32 or weights.size < _LEAST_SHORTENED:
            continue
        with np.errstate(over="ignore"):
            halves = weights.astype(np.float16)
        if np.array_equal(halves, weights):
            name = f"{tensor.name}_half"
            model.graph.initializer.remove(tensor)
            model.graph.initializer.append(numpy_helper.from_array(halves, name))
            model.graph.node.insert(0, onnx.helper.make_node("Cast", [name], [tensor.name], to=onnx.TensorProto.FLOAT))


def _quantize(model: onnx.ModelProto, graph: Graph) -> None:
    """Stores weights in 8 bits, symmetric, with one scale per output channel.

    Runtimes convert them to float32 when they load the graph. Transposed convolutions have one scale per input channel.
    Their biases are an input channel, which therefore has its own scale.

    ONNX Runtime's own quantizers also quantize activations, which makes this model worse than the required 40 dB.
    """
    keep = {name for node in _positional(model, graph) for name in node.input}
    for tensor in list(model.graph.initializer):
        weights = numpy_helper.to_array(tensor)
        if tensor.name in keep or weights.dtype != np.float32 or weights.size < LEAST_WEIGHTS or weights.ndim < 2:
            continue
        axis = 0 if weights.ndim == 4 else weights.ndim - 1
        others = tuple(other for other in range(weights.ndim) if other != axis)
        scale = np.maximum(np.abs(weights).max(others), 1e-12).astype(np.float32) / 127
        shape = [1] * weights.ndim
        shape[axis] = -1
        steps = np.round(weights / scale.reshape(shape)).astype(np.int8)
        model.graph.initializer.remove(tensor)
        names = (f"{tensor.name}_steps", f"{tensor.name}_scale")
        model.graph.initializer.extend(
            numpy_helper.from_array(array, name) for array, name in zip((steps, scale), names, strict=True)
        )
        model.graph.node.insert(0, onnx.helper.make_node("DequantizeLinear", names, [tensor.name], axis=axis))


def load(path: Path, graph: str, precision: str | None = None) -> Session:
    """Loads a graph into ONNX Runtime on the CPU; see ``Target``."""
    return Session(path)


def weights(path: Path) -> dict[str, Array]:
    """The initializers, except for small ones, which stay in the graph; see ``Target``."""
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}
    return {name: array for name, array in arrays.items() if array.nbytes >= LEAST_BYTES}


def pack(path: Path, output: Path, pools: Sequence[Pool]) -> None:
    """Writes the graph with external data, which ONNX looks for in the graph's own folder; see ``Target``."""
    model, (pool,) = onnx.load(path), pools
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.nbytes < LEAST_BYTES:
            continue
        external = onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
        external.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", pool.file.name), ("offset", pool.offset(array)), ("length", array.nbytes)):
            external.external_data.add(key=key, value=str(value))
        tensor.CopyFrom(external)
    output.write_bytes(model.SerializeToString())


def native_precisions() -> tuple[str, ...]:
    """There are none, because ONNX Runtime computes in the graph's own precision."""
    return ()


class Session:
    """A converted graph in ONNX Runtime on the CPU; see ``targets.Session``."""

    def __init__(self, path: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        # Unlike PyTorch, ONNX Runtime starts a thread per core even if this process may use fewer of them.
        options.intra_op_num_threads = torch.get_num_threads()
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.operations = Counter(node.op_type for node in onnx.load(path, load_external_data=False).graph.node)

    def __call__(self, inputs: dict[str, Tensor]) -> Tensor:
        """Runs the graph on named inputs."""
        (output,) = self._session.run(None, {name: value.numpy() for name, value in inputs.items()})
        return torch.from_numpy(output)
