"""Gives the PReLUs of an enlarger slopes with which ONNX graphs compute them faster.

Slopes of the chain become at most 1, which does not change what the model computes.

A PReLU with the slope a > 0 maps x to -a times what a PReLU with the slope 1 / a maps -x to. The change of sign and the
factor become part of the convolutions before and after it. With slopes of at most 1, the ONNX exporter computes a PReLU
in two operations instead of three (``infgen_export.targets.prelu``). If all channels have the same slope, the PReLU
becomes part of the convolution before it. So slopes of a layer that hardly differ become equal.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from infgen_model import InfGen

_HARDLY = 0.02
"""How far the slopes of a layer may be from their mean to become equal to it."""


def with_small_slopes(model: InfGen) -> InfGen:
    """Makes a model that computes the same, and whose chain of convolutions has no slope above 1.

    Args:
        model: The model. It is not changed. A model without an enlarger has nothing to change.
    """
    made = copy.deepcopy(model)
    if made.refine is None:
        return made
    enlarger, enlargements = made.refine.enlarger, [each for each in model.config.enlargements if each.factor > 1]
    if not enlargements:
        return made
    blocks: list[Any] = [*enlarger.blocks]
    finishes: dict[str, Any] = dict(enlarger.finish.items())
    for index, activation in enumerate([enlarger.activate, *(block[1] for block in blocks)]):
        before = [enlarger.enter, enlarger.mix] if index == 0 else [blocks[index - 1][0]]
        after = [block[0] for block in blocks[index : index + 1]]
        for each in enlargements:
            if each.blocks == index:
                name = str(each.factor)
                after += [enlarger.leave[name], *([finishes[name][0]] if each.finish else [])]
        _turn(activation, before, after)
    return made


@torch.no_grad()
def with_even_slopes(model: InfGen) -> InfGen:
    """Makes a model in which the slopes of a layer are equal if they hardly differ.

    A picture of the largest enlargement then has 86 dB against the one before, in ``training/checkpoints/edge-flux2``.

    Args:
        model: The model. It is not changed.
    """
    made = copy.deepcopy(model)
    for layer in made.modules():
        if isinstance(layer, nn.PReLU):
            slopes, mean = layer.weight, layer.weight.mean()
            if (slopes - mean).abs().max() <= _HARDLY:
                slopes.copy_(mean.expand_as(slopes))
    return made


@torch.no_grad()
def _turn(activation: nn.PReLU, before: list[nn.Conv2d], after: list[nn.Conv2d]) -> None:
    """Changes an activation's slopes, the convolutions whose sum it gets, and those that read its result."""
    slopes = activation.weight
    steep = slopes > 1
    sign = torch.where(steep, -1.0, 1.0)
    for layer in before:
        layer.weight.mul_(sign[:, None, None, None])
        if layer.bias is not None:
            layer.bias.mul_(sign)
    factors = torch.where(steep, -slopes, torch.ones_like(slopes))
    for layer in after:
        layer.weight.mul_(factors[:, None, None])
    slopes.copy_(torch.where(steep, 1 / slopes, slopes))
