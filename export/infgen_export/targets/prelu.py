"""Replaces PReLU by operations that keep ONNX Runtime's fast memory layout on a CPU."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper


def without_prelu(model: onnx.ModelProto) -> None:
    """Replaces PReLU by s * x + (1 - s) * relu(x), in place. The result differs by rounding.

    On CPUs, ONNX Runtime computes convolutions in a layout of its own (NCHWc), in which it has no PReLU. Every PReLU
    makes it change the layout twice. The new operations exist in that layout: products per channel are written as
    normalisations, which become convolutions of one channel each. A chain of convolutions and PReLU takes a fifth less
    time.

    A PReLU is left as it is, unless its slopes are constants with one value per channel.

    Args:
        model: The model, which is changed.
    """
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        tensor = constants.get(node.input[1]) if node.op_type == "PRelu" else None
        slopes = None if tensor is None else numpy_helper.to_array(tensor)
        if slopes is None or slopes.ndim < 3 or slopes.size != slopes.shape[-3]:
            nodes.append(node)
            continue
        (value, _), (result,) = node.input, node.output
        positive, sloped, rest = (f"{result}_{each}" for each in ("positive", "sloped", "rest"))
        nodes.append(onnx.helper.make_node("Relu", [value], [positive]))
        for given, scale, product in ((value, slopes.ravel(), sloped), (positive, 1 - slopes.ravel(), rest)):
            scaled, zero, one = (f"{product}_{each}" for each in ("scale", "zero", "one"))
            for name, array in ((scaled, scale), (zero, np.zeros_like(scale)), (one, np.ones_like(scale))):
                model.graph.initializer.append(numpy_helper.from_array(array, name))
            weights = [scaled, zero, zero, one]
            nodes.append(onnx.helper.make_node("BatchNormalization", [given, *weights], [product], epsilon=0.0))
        nodes.append(onnx.helper.make_node("Add", [sloped, rest], [result]))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input}
    for name in constants.keys() - used:
        model.graph.initializer.remove(constants[name])
