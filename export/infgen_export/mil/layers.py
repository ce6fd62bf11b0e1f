"""The operations of Core ML programs that are layers of networks, each as a function of torch tensors.

The functions and their arguments have Core ML's names and defaults.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from infgen_export.mil.parameters import axes_of, ints


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Applies a linear layer."""
    return F.linear(x, weight, bias)


def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    strides: Tensor | None = None,
    pad_type: str = "valid",
    pad: Tensor | None = None,
    dilations: Tensor | None = None,
    groups: Tensor | int = 1,
) -> Tensor:
    """Applies a convolution over one to three axes."""
    rank = x.ndim - 2
    stride = [1] * rank if strides is None else ints(strides)
    dilation = [1] * rank if dilations is None else ints(dilations)
    margins = [0] * (2 * rank)
    if pad_type == "custom" and pad is not None:
        margins = ints(pad)
    elif pad_type in ("same", "same_lower"):
        for axis in range(rank):
            size, step = x.shape[2 + axis], stride[axis]
            reach = (weight.shape[2 + axis] - 1) * dilation[axis] + 1
            total = max(0, (math.ceil(size / step) - 1) * step + reach - size)
            less, more = total // 2, total - total // 2
            margins[2 * axis : 2 * axis + 2] = (more, less) if pad_type == "same_lower" else (less, more)
    if any(margins):
        # torch lists the margins from the last axis to the first.
        pairs = [margins[2 * axis : 2 * axis + 2] for axis in reversed(range(rank))]
        x = F.pad(x, [side for pair in pairs for side in pair])
    function = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[rank]
    return function(x, weight, bias, stride=stride, dilation=dilation, groups=int(groups))


def pad(x: Tensor, pad: Tensor, mode: str = "constant", constant_val: Tensor | float = 0.0) -> Tensor:
    """Pads the last axes."""
    # Core ML lists the margins from the first of these axes to the last, and torch from the last to the first.
    margins = ints(pad)
    pairs = [margins[index : index + 2] for index in range(0, len(margins), 2)]
    if mode == "constant":
        return F.pad(x, [side for pair in reversed(pairs) for side in pair], value=float(constant_val))
    # Drop leading dimensions without margins, because torch repeats edges only in the last three.
    while len(pairs) > 1 and not any(pairs[0]):
        pairs = pairs[1:]
    return F.pad(x, [side for pair in reversed(pairs) for side in pair], mode=mode)


def prelu(x: Tensor, alpha: Tensor) -> Tensor:
    """Scales values below 0 by a factor per channel."""
    return F.prelu(x, alpha)


def leaky_relu(x: Tensor, alpha: Tensor | float) -> Tensor:
    """Scales values below 0 by one factor. Core ML Tools makes it of a ``prelu`` whose factors are all the same."""
    return F.leaky_relu(x, float(alpha))


def batch_norm(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: Tensor | float = 1e-5,
) -> Tensor:
    """Normalises each channel by a given mean and variance."""
    return F.batch_norm(x, mean, variance, gamma, beta, eps=float(epsilon))


def layer_norm(
    x: Tensor,
    axes: Tensor | None = None,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: Tensor | float = 1e-5,
) -> Tensor:
    """Normalises over axes by the mean and variance of the values themselves."""
    over = axes_of(axes, x.ndim)
    centred = x - x.mean(over, keepdim=True)
    scaled = centred * torch.rsqrt(centred.square().mean(over, keepdim=True) + epsilon)
    shape = [side if axis in {o % x.ndim for o in over} else 1 for axis, side in enumerate(x.shape)]
    scaled = scaled if gamma is None else scaled * gamma.view(shape)
    return scaled if beta is None else scaled + beta.view(shape)


def gelu(x: Tensor, mode: str = "EXACT") -> Tensor:
    """Applies GELU, exactly or by one of two approximations."""
    if mode == "SIGMOID_APPROXIMATION":
        return x * torch.sigmoid(1.702 * x)
    return F.gelu(x, approximate="none" if mode == "EXACT" else "tanh")


def softmax(x: Tensor, axis: Tensor | int = -1) -> Tensor:
    """Applies softmax over an axis."""
    return x.softmax(int(axis))


def matmul(x: Tensor, y: Tensor, transpose_x: Tensor | bool = False, transpose_y: Tensor | bool = False) -> Tensor:
    """Multiplies matrices, each of which may be transposed first."""
    return (x.mT if transpose_x else x) @ (y.mT if transpose_y else y)


def attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None) -> Tensor:
    """Applies scaled dot-product attention."""
    return F.scaled_dot_product_attention(query, key, value, attn_mask)


def upsample_nearest(
    x: Tensor, scale_factor_height: Tensor | float = 1, scale_factor_width: Tensor | float = 1
) -> Tensor:
    """Enlarges the last two axes by repeating pixels."""
    factors = [float(scale_factor_height), float(scale_factor_width)]
    return F.interpolate(x, scale_factor=factors, mode="nearest")


def upsample_bilinear(
    x: Tensor,
    scale_factor_height: Tensor | float = 1,
    scale_factor_width: Tensor | float = 1,
    align_corners: Tensor | bool = True,
    half_pixel_centers: Tensor | bool | None = None,
) -> Tensor:
    """Enlarges the last two axes by linear interpolation between the centres of pixels."""
    if bool(align_corners) or not (half_pixel_centers is None or bool(half_pixel_centers)):
        raise NotImplementedError("upsample_bilinear is interpreted between the centres of pixels only")
    factors = [float(scale_factor_height), float(scale_factor_width)]
    return F.interpolate(x, scale_factor=factors, mode="bilinear", align_corners=False)


def pixel_shuffle(x: Tensor, upscale_factor: Tensor) -> Tensor:
    """Moves channels into pixels: [B, f*f*C, H, W] becomes [B, C, f*H, f*W]."""
    return F.pixel_shuffle(x, int(upscale_factor))


def pixel_unshuffle(x: Tensor, downscale_factor: Tensor) -> Tensor:
    """Moves pixels into channels: [B, C, f*H, f*W] becomes [B, f*f*C, H, W]."""
    return F.pixel_unshuffle(x, int(downscale_factor))
