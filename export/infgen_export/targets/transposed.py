"""Replaces pixel shuffles by transposed convolutions, because some runtimes move data slowly."""

from __future__ import annotations

import copy
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from infgen_model.upsampler import Upsampler


class TransposedConvolution(nn.Module):
    """A 1x1 convolution and a pixel shuffle as one transposed convolution.

    A shuffle copies memory with large strides. All shuffles together took an eighth of a tile's time in ONNX Runtime
    with one thread, and a fifth with two threads (``benchmarks.profile``).

    A transposed convolution has one bias per channel, but the pair has one for every position in a patch. The biases
    are therefore stored as the weights of an additional input channel, which is always 1.
    """

    def __init__(self, convolve: nn.Conv2d, shuffle: nn.PixelShuffle) -> None:
        super().__init__()
        self.factor = shuffle.upscale_factor
        outputs, inputs = convolve.weight.shape[:2]
        patch = (outputs // self.factor**2, self.factor, self.factor)
        bias = torch.zeros(outputs) if convolve.bias is None else convolve.bias
        weights = [convolve.weight.flatten(1).T.reshape(inputs, *patch), bias.reshape(1, *patch)]
        self.weight = nn.Parameter(torch.cat(weights).detach(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """Returns [B, D, factor H, factor W] for an input [B, C, H, W]."""
        return F.conv_transpose2d(F.pad(x, (0, 0, 0, 0, 0, 1), value=1.0), self.weight, stride=self.factor)


def with_transposed_convolutions(module: nn.Module) -> nn.Module:
    """Copies a module, and replaces 1x1 convolutions with a pixel shuffle after them by ``TransposedConvolution``.

    The results of the copy are the same up to rounding.
    """
    module = copy.deepcopy(module)
    for each in module.modules():
        if isinstance(each, Upsampler):
            each.merge()
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.Sequential) and [type(layer) for layer in child] == [nn.Conv2d, nn.PixelShuffle]:
                convolve, shuffle = cast(nn.Conv2d, child[0]), cast(nn.PixelShuffle, child[1])
                if convolve.kernel_size == (1, 1):
                    setattr(parent, name, TransposedConvolution(convolve, shuffle))
    return module
