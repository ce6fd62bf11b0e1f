"""Replaces PReLU by operations that keep ONNX Runtime's fast memory layout on a CPU."""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper


def without_prelu(model: onnx.ModelProto) -> None:
    """Replaces PReLU by s * x + relu((1 - s) * x), in place. The result differs by rounding.

    On CPUs, ONNX Runtime computes convolutions in a layout of its own (NCHWc), in which it has no PReLU. Every PReLU
    makes it change the layout twice. The new operations exist in that layout: products per channel are written as
    normalisations, which become convolutions of one channel each, and these take in the Relu and the addition. Where a
    slope s is above 1, the product with (1 - s) comes after the Relu, as an operation of its own. If all channels have
    the same slope, the PReLU becomes a LeakyRelu, which the convolution before it takes in at no cost.

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
        scales = slopes.ravel()
        if (scales == scales[0]).all():
            nodes.append(onnx.helper.make_node("LeakyRelu", [value], [result], alpha=float(scales[0])))
            continue
        if scales.max() > 1:
            nodes.append(onnx.helper.make_node("Relu", [value], [positive]))
            nodes.append(_product(model, positive, 1 - scales, rest))
        else:
            nodes.append(_product(model, value, 1 - scales, positive))
            nodes.append(onnx.helper.make_node("Relu", [positive], [rest]))
        nodes.append(_product(model, value, scales, sloped))
        nodes.append(onnx.helper.make_node("Add", [sloped, rest], [result]))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input}
    for name in constants.keys() - used:
        model.graph.initializer.remove(constants[name])


def _product(model: onnx.ModelProto, given: str, scales: NDArray[np.float32], product: str) -> onnx.NodeProto:
    """A node that multiplies each channel by its scale. Its constants are added to the model."""
    weights = {"scale": scales, "zero": np.zeros_like(scales), "one": np.ones_like(scales)}
    for name, array in weights.items():
        model.graph.initializer.append(numpy_helper.from_array(array, f"{product}_{name}"))
    inputs = [given, *(f"{product}_{name}" for name in ("scale", "zero", "zero", "one"))]
    return onnx.helper.make_node("BatchNormalization", inputs, [product], epsilon=0.0)
