"""The operations of Core ML programs, each as a function of torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from coremltools.converters.mil.mil import types
from torch import Tensor

Kind = Callable[..., Tensor | tuple[Tensor, ...]]

DTYPES = {
    types.fp16: torch.float16,
    types.fp32: torch.float32,
    types.int8: torch.int8,
    types.uint8: torch.uint8,
    types.int16: torch.int16,
    types.uint16: torch.uint16,
    types.int32: torch.int32,
    types.bool: torch.bool,
}
"""Core ML's types and the torch types that they correspond to."""
_NAMED = {types.builtin_to_string(kind): dtype for kind, dtype in DTYPES.items()}


# Parameters, which are also tensors in Core ML.


def _ints(value: Tensor) -> list[int]:
    return [int(part) for part in value.flatten()]


def _bools(value: Tensor | None, count: int) -> list[bool]:
    return [False] * count if value is None else [bool(part) for part in value.flatten()]


def _axes(value: Tensor | None, rank: int) -> list[int]:
    return list(range(rank)) if value is None else _ints(value)


# The operations: https://apple.github.io/coremltools/source/coremltools.converters.mil.mil.ops.defs.html


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


def _gelu(x: Tensor, mode: str = "EXACT") -> Tensor:
    if mode == "SIGMOID_APPROXIMATION":
        return x * torch.sigmoid(1.702 * x)
    return F.gelu(x, approximate="none" if mode == "EXACT" else "tanh")


def _softmax(x: Tensor, axis: Tensor | int = -1) -> Tensor:
    return x.softmax(int(axis))


def _reduce(function: Callable[..., Tensor]) -> Kind:
    def reduce(x: Tensor, axes: Tensor | None = None, keep_dims: Tensor | bool = False) -> Tensor:
        return function(x, _axes(axes, x.ndim), bool(keep_dims))

    return reduce


def _matmul(x: Tensor, y: Tensor, transpose_x: Tensor | bool = False, transpose_y: Tensor | bool = False) -> Tensor:
    return (x.mT if transpose_x else x) @ (y.mT if transpose_y else y)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.linear(x, weight, bias)


def _conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    strides: Tensor | None = None,
    pad_type: str = "valid",
    pad: Tensor | None = None,
    dilations: Tensor | None = None,
    groups: Tensor | int = 1,
) -> Tensor:
    rank = x.ndim - 2
    stride = [1] * rank if strides is None else _ints(strides)
    dilation = [1] * rank if dilations is None else _ints(dilations)
    margins = [0] * (2 * rank)
    if pad_type == "custom" and pad is not None:
        margins = _ints(pad)
    elif pad_type in ("same", "same_lower"):
        for axis in range(rank):
            size, step = x.shape[2 + axis], stride[axis]
            reach = (weight.shape[2 + axis] - 1) * dilation[axis] + 1
            total = max(0, (math.ceil(size / step) - 1) * step + reach - size)
            less, more = total // 2, total - total // 2
            margins[2 * axis : 2 * axis + 2] = (more, less) if pad_type == "same_lower" else (less, more)
    if any(margins):
        # torch starts with the last axis.
        pairs = [margins[2 * axis : 2 * axis + 2] for axis in reversed(range(rank))]
        x = F.pad(x, [side for pair in pairs for side in pair])
    function = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[rank]
    return function(x, weight, bias, stride=stride, dilation=dilation, groups=int(groups))


def _pad(x: Tensor, pad: Tensor, mode: str = "constant", constant_val: Tensor | float = 0.0) -> Tensor:
    # The margins are for the last dimensions, and torch starts with the last one.
    margins = _ints(pad)
    pairs = [margins[index : index + 2] for index in range(0, len(margins), 2)]
    if mode == "constant":
        return F.pad(x, [side for pair in reversed(pairs) for side in pair], value=float(constant_val))
    # Drop leading dimensions without margins, because torch repeats edges only in the last three.
    while len(pairs) > 1 and not any(pairs[0]):
        pairs = pairs[1:]
    return F.pad(x, [side for pair in reversed(pairs) for side in pair], mode=mode)


def _prelu(x: Tensor, alpha: Tensor) -> Tensor:
    return F.prelu(x, alpha)


def _batch_norm(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: Tensor | float = 1e-5,
) -> Tensor:
    return F.batch_norm(x, mean, variance, gamma, beta, eps=float(epsilon))


def _layer_norm(
    x: Tensor,
    axes: Tensor | None = None,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: Tensor | float = 1e-5,
) -> Tensor:
    over = _axes(axes, x.ndim)
    centred = x - x.mean(over, keepdim=True)
    scaled = centred * torch.rsqrt(centred.square().mean(over, keepdim=True) + epsilon)
    shape = [side if axis in {o % x.ndim for o in over} else 1 for axis, side in enumerate(x.shape)]
    scaled = scaled if gamma is None else scaled * gamma.view(shape)
    return scaled if beta is None else scaled + beta.view(shape)


def _attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None) -> Tensor:
    return F.scaled_dot_product_attention(query, key, value, attn_mask)


def _upsample_nearest(
    x: Tensor, scale_factor_height: Tensor | float = 1, scale_factor_width: Tensor | float = 1
) -> Tensor:
    factors = [float(scale_factor_height), float(scale_factor_width)]
    return F.interpolate(x, scale_factor=factors, mode="nearest")


def _pixel_shuffle(x: Tensor, upscale_factor: Tensor) -> Tensor:
    return F.pixel_shuffle(x, int(upscale_factor))


def _pixel_unshuffle(x: Tensor, downscale_factor: Tensor) -> Tensor:
    return F.pixel_unshuffle(x, int(downscale_factor))


def _shape(x: Tensor) -> Tensor:
    return torch.tensor(x.shape, dtype=torch.int32)


def _reshape(x: Tensor, shape: Tensor) -> Tensor:
    # 0 keeps the dimension. As in torch, -1 is the dimension that follows from the others.
    return x.reshape([x.shape[axis] if side == 0 else side for axis, side in enumerate(_ints(shape))])


def _transpose(x: Tensor, perm: Tensor) -> Tensor:
    return x.permute(_ints(perm))


def _expand_dims(x: Tensor, axes: Tensor) -> Tensor:
    rank = x.ndim + axes.numel()
    for axis in sorted(axis % rank for axis in _ints(axes)):
        x = x.unsqueeze(axis)
    return x


def _squeeze(x: Tensor, axes: Tensor | None = None) -> Tensor:
    return x.squeeze(_axes(axes, x.ndim))


def _concat(values: list[Tensor], axis: Tensor, interleave: Tensor | bool = False) -> Tensor:
    if interleave:
        return torch.stack(values, int(axis) + 1).flatten(int(axis), int(axis) + 1)
    return torch.cat([value.reshape(1) if value.ndim == 0 else value for value in values], int(axis))


def _stack(values: list[Tensor], axis: Tensor) -> Tensor:
    return torch.stack(values, int(axis))


def _split(
    x: Tensor, axis: Tensor, num_splits: Tensor | None = None, split_sizes: Tensor | None = None
) -> tuple[Tensor, ...]:
    if split_sizes is None:
        assert num_splits is not None
        split_sizes = torch.full((int(num_splits),), x.shape[int(axis)] // int(num_splits))
    return torch.split_with_sizes(x, _ints(split_sizes), int(axis))


def _tile(x: Tensor, reps: Tensor) -> Tensor:
    return x.repeat(_ints(reps))


def _gather(
    x: Tensor,
    indices: Tensor,
    axis: Tensor | int = 0,
    batch_dims: Tensor | int = 0,
    validate_indices: Tensor | bool = False,
) -> Tensor:
    if int(batch_dims):
        raise NotImplementedError("gather with batch_dims")
    axis = int(axis) % x.ndim
    # Negative indices count from the end. An index out of range is undefined in Core ML and an error here.
    wrapped = torch.where(indices < 0, indices + x.shape[axis], indices)
    return x.index_select(axis, wrapped.flatten()).reshape([*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]])


def _slice_by_index(
    x: Tensor,
    begin: Tensor,
    end: Tensor,
    stride: Tensor | None = None,
    begin_mask: Tensor | None = None,
    end_mask: Tensor | None = None,
    squeeze_mask: Tensor | None = None,
) -> Tensor:
    steps = [1] * x.ndim if stride is None else _ints(stride)
    firsts, lasts = _ints(begin), _ints(end)
    open_first, open_last, squeezed = (_bools(mask, x.ndim) for mask in (begin_mask, end_mask, squeeze_mask))
    for axis in reversed(range(x.ndim)):
        if squeezed[axis]:
            x = x.select(axis, firsts[axis])
            continue
        span = slice(None if open_first[axis] else firsts[axis], None if open_last[axis] else lasts[axis], steps[axis])
        indices = range(*span.indices(x.shape[axis]))
        if steps[axis] == 1:
            x = x.narrow(axis, indices.start, len(indices))
        else:
            x = x.index_select(axis, torch.tensor(list(indices), dtype=torch.int64))
    return x


def _slice_by_size(x: Tensor, begin: Tensor, size: Tensor) -> Tensor:
    for axis, (first, count) in enumerate(zip(_ints(begin), _ints(size), strict=True)):
        first %= x.shape[axis]
        x = x.narrow(axis, first, x.shape[axis] - first if count == -1 else count)
    return x


def _range(start: Tensor, end: Tensor, step: Tensor) -> Tensor:
    return torch.arange(start.item(), end.item(), step.item(), dtype=start.dtype)


def _dequantize_blocks(data: Tensor, scale: Tensor, offset: Tensor | None = None) -> Tensor:
    """Dequantizes weights as iOS 18 and later store them: a scale, and optionally an offset, for every block."""

    def spread(blocks: Tensor) -> Tensor:
        for axis, side in enumerate(data.shape):
            blocks = blocks.repeat_interleave(side // blocks.shape[axis], axis)
        return blocks

    centred = data.float() if offset is None else data.float() - spread(offset)
    return centred * spread(scale)


def _dequantize_channels(quantized_data: Tensor, zero_point: Tensor, scale: Tensor, axis: Tensor) -> Tensor:
    """Dequantizes weights as stored before iOS 18: a scale and an offset for every channel of one axis."""
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
    "batch_norm": _batch_norm,
    "cast": _cast,
    "clip": _clip,
    "concat": _concat,
    "constexpr_affine_dequantize": _dequantize_channels,
    "constexpr_blockwise_shift_scale": _dequantize_blocks,
    "conv": _conv,
    "equal": _binary(torch.eq),
    "expand_dims": _expand_dims,
    "floor_div": _binary(torch.floor_divide),
    "gather": _gather,
    "gelu": _gelu,
    "identity": _unary(torch.clone),
    "inverse": _inverse,
    "layer_norm": _layer_norm,
    "linear": _linear,
    "log": _log,
    "matmul": _matmul,
    "pad": _pad,
    "pixel_shuffle": _pixel_shuffle,
    "pixel_unshuffle": _pixel_unshuffle,
    "prelu": _prelu,
    "range_1d": _range,
    "real_div": _binary(_divide),
    "reduce_max": _reduce(torch.amax),
    "reduce_mean": _reduce(torch.mean),
    "reduce_min": _reduce(torch.amin),
    "reduce_sum": _reduce(torch.sum),
    "reshape": _reshape,
    "rsqrt": _rsqrt,
    "scaled_dot_product_attention": _attention,
    "select": lambda cond, a, b: torch.where(cond, a, b),
    "shape": _shape,
    "slice_by_index": _slice_by_index,
    "slice_by_size": _slice_by_size,
    "softmax": _softmax,
    "split": _split,
    "squeeze": _squeeze,
    "stack": _stack,
    "tile": _tile,
    "transpose": _transpose,
    "upsample_nearest_neighbor": _upsample_nearest,
}
"""All supported kinds of operation. Each takes Core ML's parameters by name and returns one result or a tuple."""
