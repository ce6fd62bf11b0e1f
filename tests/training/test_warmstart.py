"""What starts as a tiny autoencoder's layers computes what they compute."""

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from infgen_export.model import InfGen, Level
from infgen_rt.errors import InputError
from infgen_training.warmstart import copy_encoder, copy_trunk

from ..export import tiny


class Block(nn.Module):
    """The block of TAESD's decoders, as its authors write it."""

    def __init__(self, width: int, pooled: bool) -> None:
        super().__init__()
        convolutions = [nn.Conv2d(width, width, 3, padding=1) for _ in range(3)]
        self.conv = nn.Sequential(convolutions[0], nn.ReLU(), convolutions[1], nn.ReLU(), convolutions[2])
        self.pool = nn.Sequential(
            nn.Conv2d(width, 4 * width, 1, bias=False),
            nn.GroupNorm(4, 4 * width),
            nn.ReLU(),
            nn.Conv2d(4 * width, width, 1, bias=False),
        )
        self.pooled = pooled
        if not pooled:
            del self.pool

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.pool(x) if self.pooled else x
        return torch.relu(self.conv(x) + x)


class Clamp(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 3 * torch.tanh(x / 3)


def decoder(width: int = 8, levels: int = 3, blocks: int = 2, pooled: bool = True) -> nn.Sequential:
    layers: list[nn.Module] = [Clamp(), nn.Conv2d(32, width, 3, padding=1), nn.ReLU()]
    for level in range(levels):
        layers += [Block(width, pooled and level == 0) for _ in range(blocks)]
        layers += [nn.Upsample(scale_factor=2), nn.Conv2d(width, width, 3, padding=1, bias=False)]
    return nn.Sequential(*layers, Block(width, False), nn.Conv2d(width, 3, 3, padding=1))


def model(*trunk: Level) -> InfGen:
    return InfGen(dataclasses.replace(tiny.EDGE, trunk=trunk))


def trunk(model: InfGen, latent: torch.Tensor) -> list[torch.Tensor]:
    """Features at each of the trunk's resolutions."""
    features = [model.prefill(latent)]
    for grow, level in zip(model.refine.grow, model.refine.levels, strict=True):
        features.append(level(grow(nn.functional.interpolate(features[-1], scale_factor=2))))
    return features


@pytest.mark.parametrize("pooled", [True, False])
@pytest.mark.parametrize("levels", [1, 2, 3])
def test_the_trunk_computes_what_the_decoder_does(levels: int, pooled: bool) -> None:
    torch.manual_seed(0)
    teacher, student = decoder(pooled=pooled), model(*[Level(8, 2)] * levels)
    latent = tiny.latent(6, 5)
    for index, features in enumerate(trunk(student, latent)):
        assert not torch.allclose(features, teacher[: 5 + 4 * index](latent))
    copy_trunk(teacher, student)
    for index, features in enumerate(trunk(student, latent)):
        assert torch.equal(features, teacher[: 5 + 4 * index](latent))


@pytest.mark.parametrize(
    ("teacher", "text"),
    [
        (decoder(width=4), r"1.weight should have shape \[8, 32, 3, 3\], the teacher has shape \[4, 32, 3, 3\]"),
        (decoder(blocks=1), r"4.conv.0.weight should have shape .* the teacher lacks it"),
        (nn.Sequential(nn.Conv2d(32, 3, 1)), "set warm_start=false to start at random"),
    ],
)
def test_another_kind_of_decoder_is_refused_and_nothing_copied(teacher: nn.Module, text: str) -> None:
    student = model(Level(8, 2), Level(8, 2))
    before = {name: value.clone() for name, value in student.state_dict().items()}
    with pytest.raises(InputError, match=text):
        copy_trunk(teacher, student)
    assert all(value.equal(before[name]) for name, value in student.state_dict().items())


def encoder(width: int = 8, blocks: int = 2) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1), Block(width, False)]
    for _ in range(3):
        layers += [nn.Conv2d(width, width, 3, stride=2, padding=1, bias=False)]
        layers += [Block(width, False) for _ in range(blocks)]
    return nn.Sequential(*layers, nn.Conv2d(width, 32, 3, padding=1))


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_the_encoder_computes_what_the_teachers_last_layers_do(levels: int) -> None:
    torch.manual_seed(0)
    teacher = encoder()
    student = InfGen(dataclasses.replace(tiny.EDGE, encoder=(Level(8, 2),) * levels))
    copy_encoder(teacher, student)
    begin = len(teacher) - 1 - 3 * levels + 1  # behind the convolution that leads to the first level
    x = torch.randn(1, 8, 16, 24)
    mine = student.encode.levels[0](x)
    for shrink, level in zip(student.encode.shrink, student.encode.levels[1:], strict=True):
        mine = level(shrink(mine))
    assert torch.equal(student.encode.leave(mine), teacher[begin:](x))


@pytest.mark.parametrize("teacher", [encoder(width=4), encoder(blocks=1), nn.Identity()])
def test_another_kind_of_encoder_is_refused_and_nothing_copied(teacher: nn.Module) -> None:
    student = InfGen(dataclasses.replace(tiny.EDGE, encoder=(Level(8, 2),) * 2))
    before = {name: value.clone() for name, value in student.state_dict().items()}
    with pytest.raises(InputError, match="set warm_start=false to start at random"):
        copy_encoder(teacher, student)
    assert all(value.equal(before[name]) for name, value in student.state_dict().items())


def test_a_model_without_a_trunk_needs_no_decoder() -> None:
    copy_trunk(nn.Identity(), InfGen(tiny.PAPER))
