"""ONNX: traced by ``torch.export``, every spatial dimension dynamic."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import torch
from torch import Tensor
from torch.export import Dim

from infgen_export.graphs import Graph, Tensorspec

OPSET = 20
BACKEND = "onnxruntime"
"""The runtime backend that these graphs are for."""


def convert(
    graph: Graph, example: tuple[Tensor, ...], file: Path, metadata: dict[str, str], opset: int = OPSET
) -> None:
    """Writes a graph as one ``.onnx`` file, weights inside.

    Args:
        graph: What to convert; its module is in evaluation mode.
        example: Arguments to trace with.
        file: Written; its folder exists.
        metadata: Model properties; descriptions and bounds of the inputs are added.
        opset: ONNX operator set.
    """
    dims = {name: Dim(name, min=low, max=high) for name, (low, high) in graph.bounds.items()}
    program = torch.onnx.export(
        graph.module,
        example,
        dynamo=True,
        opset_version=opset,
        input_names=[spec.name for spec in graph.inputs],
        output_names=[graph.output.name],
        dynamic_shapes=tuple(_dynamic_axes(spec, dims) for spec in graph.inputs),
        external_data=False,
        verbose=False,
    )
    assert program is not None
    model: onnx.ModelProto = program.model_proto
    bounds = {f"bounds.{name}": f"{low}..{high}" for name, (low, high) in graph.bounds.items()}
    onnx.helper.set_model_props(model, metadata | bounds)
    for value, spec in zip((*model.graph.input, *model.graph.output), (*graph.inputs, graph.output), strict=True):
        value.doc_string = spec.about
        # The tracer knows outputs by symbols of its own, such as s39.
        for axis, dim in enumerate(spec.shape):
            if isinstance(dim, str) and value.type.tensor_type.shape.dim[axis].dim_param:
                value.type.tensor_type.shape.dim[axis].dim_param = dim
    # Stack traces of the exporting machine's files and torch's own names say nothing to a user and double the size of
    # small graphs. Shapes in between are inferred by whoever needs them.
    del model.graph.value_info[:], model.graph.metadata_props[:]
    for part in (*model.graph.node, *model.graph.input, *model.graph.output, *model.graph.initializer):
        del part.metadata_props[:]
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, file)


class Session:
    """A converted graph in ONNX Runtime on the CPU."""

    def __init__(self, file: Path) -> None:
        self._session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])

    def __call__(self, inputs: dict[str, Tensor]) -> Tensor:
        """Runs it on named inputs."""
        (output,) = self._session.run(None, {name: value.numpy() for name, value in inputs.items()})
        return torch.from_numpy(output)


def _dynamic_axes(spec: Tensorspec, dims: dict[str, Any]) -> dict[int, Any]:
    axes = {}
    for axis, dim in enumerate(spec.shape):
        if isinstance(dim, str):
            factor, _, name = dim.rpartition("*")
            axes[axis] = int(factor) * dims[name] if factor else dims[name]
    return axes
