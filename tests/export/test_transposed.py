"""Transposed convolutions give what convolutions and pixel shuffles gave."""

import pytest
import torch
from torch import nn

from infgen_export.inputs import trace_inputs
from infgen_export.targets import Options, onnx
from infgen_export.targets.transposed import TransposedConvolution, with_transposed_convolutions
from infgen_model import InfGen
from infgen_model.graphs import graphs_of

from . import tiny


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("factor", [2, 3])
def test_a_transposed_convolution_is_the_pair_that_it_replaces(factor: int, bias: bool) -> None:
    pair = nn.Sequential(nn.Conv2d(5, 4 * factor**2, 1, bias=bias), nn.PixelShuffle(factor))
    model = nn.Sequential(pair, nn.ReLU())
    image = torch.randn(2, 5, 7, 9)
    with torch.inference_mode():
        expected, changed = model(image), with_transposed_convolutions(model)
        assert torch.allclose(changed(image), expected, atol=1e-6)
    assert isinstance(changed[0], TransposedConvolution)
    assert model[0] is pair and all(parameter.requires_grad for parameter in model.parameters())


def test_others_are_left_alone() -> None:
    wide = nn.Sequential(nn.Conv2d(5, 8, 3, padding=1), nn.PixelShuffle(2))
    model = nn.Sequential(wide, nn.Sequential(nn.Conv2d(2, 4, 1), nn.ReLU()), nn.PixelShuffle(2))
    changed = with_transposed_convolutions(model)
    assert [type(module) for module in changed.modules()] == [type(module) for module in model.modules()]


@pytest.mark.slow
def test_decode_is_exported_with_them() -> None:
    model = InfGen(tiny.EDGE).eval()
    graph = next(each for each in graphs_of(model) if each.kind.name == "decode")
    traced = onnx.trace(graph, trace_inputs(graph, model), Options())
    kinds = [node.op_type for node in traced.graph.node]
    assert kinds.count("ConvTranspose") == len(tiny.EDGE.levels)
    # The context's fine grid and its picture, and the last one, behind a 3x3 convolution.
    assert kinds.count("DepthToSpace") == 3
