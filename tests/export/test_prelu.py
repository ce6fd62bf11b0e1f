"""PReLU is replaced by operations with the same result, wherever its slopes are constants per channel."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from infgen_export.targets.prelu import without_prelu

CHANNELS = 5


def model_of(slopes: np.ndarray[Any, Any], constant: bool = True) -> onnx.ModelProto:
    """Two PReLU with the same slopes, one after the other."""
    kind, image = onnx.TensorProto.FLOAT, [1, CHANNELS, "h", "w"]
    inputs = [helper.make_tensor_value_info("image", kind, image)]
    if not constant:
        inputs.append(helper.make_tensor_value_info("slopes", kind, slopes.shape))
    nodes = [helper.make_node("PRelu", ["image", "slopes"], ["middle"])]
    nodes.append(helper.make_node("PRelu", ["middle", "slopes"], ["result"]))
    graph = helper.make_graph(
        nodes,
        "graph",
        inputs,
        [helper.make_tensor_value_info("result", kind, image)],
        [numpy_helper.from_array(slopes, "slopes")] if constant else [],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def run(model: onnx.ModelProto, **inputs: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (result,) = session.run(None, inputs)
    return np.asarray(result)


def kinds(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


@pytest.mark.parametrize("steepest", [1, 3])
def test_slopes_of_any_sign_and_size_give_the_same_result(steepest: float) -> None:
    slopes = np.array([-1.5, 0, 0.25, 1, steepest], np.float32).reshape(CHANNELS, 1, 1)
    image = np.random.default_rng(0).normal(size=(1, CHANNELS, 7, 9)).astype(np.float32)
    model = model_of(slopes)
    before = run(model, image=image)
    assert before.min() < -1 < 1 < before.max()
    without_prelu(model)
    onnx.checker.check_model(model, full_check=True)
    assert "PRelu" not in kinds(model)
    np.testing.assert_allclose(run(model, image=image), before, rtol=1e-5, atol=1e-6)
    assert "slopes" not in {tensor.name for tensor in model.graph.initializer}


@pytest.mark.parametrize(
    ("shape", "constant"),
    [((1,), True), ((1, 1), True), ((CHANNELS, 3, 1), True), ((CHANNELS, 1, 1), False)],
    ids=["one slope", "one slope of two axes", "a slope per row", "slopes that are an input"],
)
def test_other_slopes_are_left_alone(shape: tuple[int, ...], constant: bool) -> None:
    slopes = np.linspace(-0.5, 0.5, int(np.prod(shape)), dtype=np.float32).reshape(shape)
    model = model_of(slopes, constant)
    before = model.SerializeToString()
    without_prelu(model)
    assert model.SerializeToString() == before


@pytest.mark.parametrize(
    ("least", "steepest", "operations"),
    [(-0.5, 1.0, 2), (-0.5, 1.5, 3), (0.25, 0.25, 0), (-0.5, -0.5, 0)],
    ids=["at most 1", "above 1", "all the same", "all the same and negative"],
)
def test_the_number_of_operations_of_each_kind_of_slopes(
    tmp_path: Path, least: float, steepest: float, operations: int
) -> None:
    """In ONNX Runtime's own layout, between two convolutions."""
    kind, image = onnx.TensorProto.FLOAT, [1, 16, "h", "w"]
    weights = np.random.default_rng(0).normal(size=(16, 16, 3, 3)).astype(np.float32)
    slopes = np.linspace(least, steepest, 16, dtype=np.float32).reshape(16, 1, 1)
    nodes = [
        helper.make_node("Conv", ["image", "weights"], ["before"], pads=[1] * 4),
        helper.make_node("PRelu", ["before", "slopes"], ["middle"]),
        helper.make_node("Conv", ["middle", "weights"], ["result"], pads=[1] * 4),
    ]
    values = [helper.make_tensor_value_info(name, kind, image) for name in ("image", "result")]
    constants = [numpy_helper.from_array(weights, "weights"), numpy_helper.from_array(slopes, "slopes")]
    graph = helper.make_graph(nodes, "graph", values[:1], values[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    given = np.random.default_rng(1).normal(size=(1, 16, 9, 7)).astype(np.float32)
    before = run(model, image=given)
    without_prelu(model)
    np.testing.assert_allclose(run(model, image=given), before, rtol=1e-4, atol=1e-3)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found = kinds(onnx.load(tmp_path / "optimised.onnx"))
    moves = [kind for kind in found if kind.startswith("Reorder")]
    if not moves:
        pytest.skip("ONNX Runtime has no layout of its own on this processor")
    assert len(found) - len(moves) == 2 + operations
