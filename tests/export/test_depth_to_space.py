"""OpenVINO graphs: pixel shuffles as one operation."""

from __future__ import annotations

from collections import Counter

import numpy as np
import openvino as ov
import pytest
import torch
from torch import Tensor, nn

from infgen_export.targets.depth_to_space import with_depth_to_space
from infgen_runtimes.openvino import shared_core

SIDES = ov.PartialShape([1, 24, (1, 64), (1, 64)])


class Shuffles(nn.Module):
    """Shuffles between other operations, and transposes that are no shuffles."""

    def __init__(self, factor: int) -> None:
        super().__init__()
        self.before = nn.Conv2d(24, 12 * factor**2, 3, padding=1)
        self.shuffle = nn.PixelShuffle(factor)
        self.after = nn.Conv2d(12, 24, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Returns a tensor of 24 channels."""
        turned = x.transpose(2, 3).reshape(1, 24, -1, x.shape[2])
        return self.after(self.shuffle(self.before(turned.transpose(2, 3)))) + 1


def converted(module: nn.Module) -> ov.Model:
    return ov.convert_model(module.eval(), example_input=torch.zeros(1, 24, 5, 7), input=[("x", SIDES)])


def kinds(model: ov.Model) -> Counter[str]:
    return Counter(node.get_type_name() for node in model.get_ops())


@pytest.mark.parametrize("factor", [2, 3])
def test_a_shuffle_becomes_one_operation_with_the_same_result(factor: int) -> None:
    module = Shuffles(factor)
    model = converted(module)
    assert "DepthToSpace" not in kinds(model)  # otherwise, the converter does this already
    before = kinds(model)
    with_depth_to_space(model)
    assert kinds(model)["DepthToSpace"] == 1
    assert kinds(model)["Transpose"] == before["Transpose"] - 1
    compiled = shared_core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    x = torch.rand(1, 24, 6, 9)
    (result,) = compiled(x.numpy()).values()
    assert np.abs(result - module(x).detach().numpy()).max() < 1e-5


def test_other_transposes_are_left_alone() -> None:
    class Unshuffles(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.pixel_unshuffle(nn.functional.interpolate(x, scale_factor=2), 2)

    model = converted(Unshuffles())
    before = kinds(model)
    with_depth_to_space(model)
    assert kinds(model) == before
