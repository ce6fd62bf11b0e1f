"""Pixel shuffles by 2 become transposed convolutions with the same result."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper

from infgen_export.targets.shuffles import without_shuffles


@pytest.mark.parametrize(
    ("factor", "mode", "kind"),
    [(2, "CRD", "ConvTranspose"), (2, "DCR", "DepthToSpace"), (4, "CRD", "DepthToSpace")],
)
def test_a_shuffle_by_two_is_a_transposed_convolution(factor: int, mode: str, kind: str) -> None:
    image = helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, [1, 48, "h", "w"])
    result = helper.make_tensor_value_info("result", onnx.TensorProto.FLOAT, [1, 48 // factor**2, "H", "W"])
    nodes = [
        helper.make_node("Relu", ["image"], ["positive"]),
        helper.make_node("DepthToSpace", ["positive"], ["result"], blocksize=factor, mode=mode),
    ]
    graph = helper.make_graph(nodes, "graph", [image], [result])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    given = {"image": np.random.default_rng(0).normal(size=(1, 48, 5, 7)).astype(np.float32)}

    def run() -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        return np.asarray(session.run(None, given)[0])

    before = run()
    without_shuffles(model)
    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node] == ["Relu", kind]
    assert np.array_equal(run(), before)
