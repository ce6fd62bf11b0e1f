"""Makes the graphs that cut, join and round arrays on ONNX Runtime's device: ``python runtimes/make_graphs.py``.

ONNX Runtime has no functions for this. The graphs are made in advance, because making them needs the package ``onnx``,
which the runtime does not depend on.
"""

from collections.abc import Sequence
from pathlib import Path

import onnx
from onnx import TensorProto, helper
from onnx.helper import make_node

FOLDER = Path(__file__).parent / "infgen_runtimes" / "graphs"
OPSET, IR = 18, 10
FLOAT, INTEGER = TensorProto.FLOAT, TensorProto.INT64


def value(name: str, kind: int, rank: int = 4) -> onnx.ValueInfoProto:
    """A value of any shape."""
    return helper.make_tensor_value_info(name, kind, [f"{name}_{axis}" for axis in range(rank)])


def model(
    name: str,
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    kind: int = FLOAT,
    rank: int = 4,
    **constants: float,
) -> onnx.ModelProto:
    """A graph of nodes that compute a result named ``out`` from inputs and scalar constants."""
    scalars = [helper.make_tensor(key, FLOAT, (), [number]) for key, number in constants.items()]
    graph = helper.make_graph(nodes, name, inputs, [value("out", kind, rank)], scalars)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR)


def levels(name: str, kind: int, largest: int) -> onnx.ModelProto:
    """A graph that clamps values to [0, 1] and rounds them to integers up to the largest."""
    nodes = [
        make_node("Clip", ["data", "zero", "one"], ["clipped"]),
        make_node("Mul", ["clipped", "largest"], ["scaled"]),
        make_node("Add", ["scaled", "half"], ["shifted"]),
        make_node("Cast", ["shifted"], ["out"], to=kind),
    ]
    return model(name, nodes, [value("data", FLOAT)], kind, zero=0.0, one=1.0, largest=float(largest), half=0.5)


def graphs() -> dict[str, onnx.ModelProto]:
    """All graphs, by the names of their files."""
    data = value("data", FLOAT)
    bounds = [helper.make_tensor_value_info(name, INTEGER, [4]) for name in ("starts", "ends")]
    pair = [data, value("more", FLOAT)]
    # A finite number times 0 is 0, so the sum is NaN if any number is not finite.
    finite = [
        make_node("Mul", ["data", "zero"], ["nothing"]),
        make_node("ReduceSum", ["nothing"], ["out"], keepdims=0),
    ]
    return {
        "cut": model("cut", [make_node("Slice", ["data", "starts", "ends"], ["out"])], [data, *bounds]),
        "join_2": model("join", [make_node("Concat", ["data", "more"], ["out"], axis=2)], pair),
        "join_3": model("join", [make_node("Concat", ["data", "more"], ["out"], axis=3)], pair),
        "finite": model("finite", finite, [data], rank=0, zero=0.0),
        "uint8": levels("uint8", TensorProto.UINT8, 255),
        "uint16": levels("uint16", TensorProto.UINT16, 65535),
    }


if __name__ == "__main__":
    for name, made in graphs().items():
        onnx.checker.check_model(made)
        (FOLDER / f"{name}.onnx").write_bytes(made.SerializeToString(deterministic=True))
