"""The table of the supported operations of Core ML programs, each as a function of torch tensors.

Operations on single values are defined here, and the others in ``layers`` and ``shapes``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from coremltools.converters.mil.mil import types
from torch import Tensor

from infgen_export.mil import layers, shapes
from infgen_export.mil.parameters import DTYPES, axes_of

Kind = Callable[..., Tensor | tuple[Tensor, ...]]

_NAMED = {types.builtin_to_string(kind): dtype for kind, dtype in DTYPES.items()}


# The reference of all operations: https://apple.github.io/coremltools/source/coremltools.converters.mil.mil.ops.defs.html


def _clip(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    return torch.minimum(torch.maximum(x, alpha), beta)


def _divide(x: Tensor, y: Tensor) -> Tensor:
    return torch.div(x, y, rounding_mode=None if x.is_floating_point() else "trunc")


def _log(x: Tensor, epsilon: Tensor | float = 1e-45) -> Tensor:
    return torch.log(x + epsilon)


def _inverse(x: Tensor, epsilon: Tensor | float = 1e-4) -> Tensor:
    return 1 / (x + epsilon)


def _rsqrt(x: Tensor, epsilon: Tensor | float = 1e-12) -> Tensor:
    return torch.rsqrt(x + epsilon)


def _cast(x: Tensor, dtype: str) -> Tensor:
    return x.to(_NAMED[dtype])


def _reduce(function: Callable[..., Tensor]) -> Kind:
    def reduce(x: Tensor, axes: Tensor | None = None, keep_dims: Tensor | bool = False) -> Tensor:
        return function(x, axes_of(axes, x.ndim), bool(keep_dims))

    return reduce


def _dequantize_blocks(data: Tensor, scale: Tensor, offset: Tensor | None = None) -> Tensor:
    """Dequantizes weights as stored for iOS 18 and later, with a scale and optionally an offset for every block."""

    def spread(blocks: Tensor) -> Tensor:
        for axis, side in enumerate(data.shape):
            blocks = blocks.repeat_interleave(side // blocks.shape[axis], axis)
        return blocks

    centred = data.float() if offset is None else data.float() - spread(offset)
    return centred * spread(scale)


def _dequantize_channels(quantized_data: Tensor, zero_point: Tensor, scale: Tensor, axis: Tensor) -> Tensor:
    """Dequantizes weights as stored before iOS 18, with a scale and an offset for every channel of one axis."""
    shape = [1] * quantized_data.ndim
    shape[int(axis)] = -1
    return (quantized_data - zero_point.reshape(shape)).float() * scale.reshape(shape)


def _unary(function: Callable[[Tensor], Tensor]) -> Kind:
    return lambda x: function(x)


def _binary(function: Callable[[Tensor, Tensor], Tensor]) -> Kind:
    return lambda x, y: function(x, y)


def _kinds(names: Iterable[str], wrap: Callable[[Any], Kind]) -> dict[str, Kind]:
    """Operations that have the same name in torch."""
    return {name: wrap(getattr(torch, name)) for name in names}


KINDS: dict[str, Kind] = {
    **_kinds(("abs", "ceil", "cos", "exp", "floor", "logical_not", "relu", "sigmoid", "sin"), _unary),
    **_kinds(("sqrt", "square", "tanh"), _unary),
    **_kinds(("add", "less_equal", "greater_equal", "less", "greater", "logical_and", "logical_or"), _binary),
    **_kinds(("maximum", "minimum", "mul", "not_equal", "pow", "sub"), _binary),
    "batch_norm": layers.batch_norm,
    "cast": _cast,
    "clip": _clip,
    "concat": shapes.concat,
    "constexpr_affine_dequantize": _dequantize_channels,
    "constexpr_blockwise_shift_scale": _dequantize_blocks,
    "conv": layers.conv,
    "equal": _binary(torch.eq),
    "expand_dims": shapes.expand_dims,
    "floor_div": _binary(torch.floor_divide),
    "gather": shapes.gather,
    "gelu": layers.gelu,
    "identity": _unary(torch.clone),
    "inverse": _inverse,
    "layer_norm": layers.layer_norm,
    "leaky_relu": layers.leaky_relu,
    "linear": layers.linear,
    "log": _log,
    "matmul": layers.matmul,
    "pad": layers.pad,
    "pixel_shuffle": layers.pixel_shuffle,
    "pixel_unshuffle": layers.pixel_unshuffle,
    "prelu": layers.prelu,
    "range_1d": shapes.range_1d,
    "real_div": _binary(_divide),
    "reduce_max": _reduce(torch.amax),
    "reduce_mean": _reduce(torch.mean),
    "reduce_min": _reduce(torch.amin),
    "reduce_sum": _reduce(torch.sum),
    "reshape": shapes.reshape,
    "rsqrt": _rsqrt,
    "scaled_dot_product_attention": layers.attention,
    "select": lambda cond, a, b: torch.where(cond, a, b),
    "shape": shapes.shape,
    "slice_by_index": shapes.slice_by_index,
    "slice_by_size": shapes.slice_by_size,
    "softmax": layers.softmax,
    "split": shapes.split,
    "squeeze": shapes.squeeze,
    "stack": shapes.stack,
    "tile": shapes.tile,
    "transpose": shapes.transpose,
    "upsample_bilinear": layers.upsample_bilinear,
    "upsample_nearest_neighbor": layers.upsample_nearest,
}
"""All supported kinds of operation. Each takes Core ML's parameters by name, and returns one tensor or a tuple."""
