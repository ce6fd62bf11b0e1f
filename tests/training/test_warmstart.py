"""What starts as layers of other networks computes what they compute."""

import dataclasses
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

from infgen_model import Enlargement, InfGen, Level, edge, paper
from infgen_model.checkpoint import load_checkpoint, save_checkpoint
from infgen_model.config import OF_SPACE
from infgen_model.enlarger import smooth
from infgen_rt.errors import InputError
from infgen_training import keep
from infgen_training.slopes import with_even_slopes, with_small_slopes
from infgen_training.teacher import Teacher, load_function
from infgen_training.views import View, to_tensor
from infgen_training.warmstart import (
    COPIED,
    copy_encoder,
    copy_enlarger,
    copy_trunk,
    encoder_config,
    fit_readout,
    rescale_enlarger,
)

from .conftest import TINY, tiny_model, view

PAPER = dataclasses.replace(
    paper("flux2", 32),
    width=16,
    inpe_features=8,
    blocks=1,
    heads=2,
    key_width=16,
    mlp_ratio=1,
    levels=(Level(8, 1), Level(8, 1), Level(8, 0)),
)


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


FITTING = dataclasses.replace(TINY, trunk=(*[Level(8, 2)] * 3, Level(8, 1)))
"""A model whose trunk is that decoder's."""


def latent(height: int, width: int) -> Tensor:
    return torch.randn(1, 32, height, width, generator=torch.Generator().manual_seed(0))


def trunk(model: InfGen, latent: Tensor) -> list[Tensor]:
    """Features at each of the trunk's resolutions."""
    features = [model.prefill(latent)]
    assert model.refine is not None
    for grow, level in zip(model.refine.grow, model.refine.levels, strict=True):
        features.append(level(grow(nn.functional.interpolate(features[-1], scale_factor=2))))
    return features


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def changed(model: nn.Module, before: dict[str, Tensor]) -> set[str]:
    return {name for name, value in model.state_dict().items() if not value.equal(before[name])}


@pytest.mark.parametrize("pooled", [True, False])
def test_the_trunk_computes_what_the_decoder_does(pooled: bool) -> None:
    teacher, student = decoder(pooled=pooled), InfGen(FITTING)
    ends = (5, 9, 13, 16)
    for end, features in zip(ends, trunk(student, latent(6, 5)), strict=True):
        assert not torch.allclose(features, teacher[:end](latent(6, 5)))
    before = state(student)
    copy_trunk(teacher, student)
    for end, features in zip(ends, trunk(student, latent(6, 5)), strict=True):
        assert torch.equal(features, teacher[:end](latent(6, 5)))
    assert all(name.startswith(COPIED) for name in changed(student, before))


@pytest.mark.parametrize("pooled", [True, False])
def test_the_picture_at_scale_1_is_the_decoders(pooled: bool) -> None:
    teacher, student = decoder(pooled=pooled), InfGen(FITTING)
    copy_trunk(teacher, student)
    with torch.inference_mode():
        expected = teacher(latent(6, 5))
        assert torch.allclose(student(latent(6, 5), (48, 40)), expected, atol=1e-5)
        # Nothing leaves the enlarger yet: all that is there is the enlarged picture.
        for factor in (2, 4):
            made = student(latent(6, 5), (factor * 48, factor * 40))
            enlarged = nn.functional.pixel_shuffle(smooth(expected, factor), factor)
            assert torch.allclose(made, enlarged, atol=1e-5)


@pytest.mark.parametrize(
    ("teacher", "text"),
    [
        (decoder(width=4), r"1.weight should have shape \[8, 32, 3, 3\], the teacher has shape \[4, 32, 3, 3\]"),
        (decoder(blocks=1), r"4.conv.0.weight should have shape .* the teacher lacks it"),
        (decoder(levels=2), r"12.conv.0.weight should have shape .* the teacher lacks it"),
        (decoder()[:-1], r"16.weight should have shape .* the teacher lacks it"),
        (nn.Sequential(nn.Conv2d(32, 3, 1)), "leave it out to start at random"),
    ],
)
def test_another_kind_of_decoder_is_refused_and_nothing_copied(teacher: nn.Module, text: str) -> None:
    student = InfGen(FITTING)
    before = state(student)
    with pytest.raises(InputError, match=text):
        copy_trunk(teacher, student)
    assert not changed(student, before)


def encoder(width: int = 8, blocks: int = 2, pooled: bool = False) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1), Block(width, False)]
    for level in range(3):
        layers += [nn.Conv2d(width, width, 3, stride=2, padding=1, bias=False)]
        layers += [Block(width, pooled and level == 2) for _ in range(blocks)]
    return nn.Sequential(*layers, nn.Conv2d(width, 32, 3, padding=1))


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_the_encoder_computes_what_the_teachers_last_layers_do(levels: int) -> None:
    teacher = encoder()
    student = InfGen(dataclasses.replace(TINY, encoder=(Level(8, 2),) * levels))
    copy_encoder(teacher, student)
    begin = len(teacher) - 1 - 3 * levels + 1  # behind the convolution that leads to the first level
    x = torch.randn(1, 8, 16, 24)
    mine = student.encode.levels[0](x)
    for shrink, level in zip(student.encode.shrink, student.encode.levels[1:], strict=True):
        mine = level(shrink(mine))
    assert torch.equal(student.encode.leave(mine), teacher[begin:](x))


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("blocks", [1, 2])
def test_an_encoder_of_the_teachers_resolutions_is_the_teachers(blocks: int, pooled: bool) -> None:
    teacher = encoder(blocks=blocks, pooled=pooled)
    config = encoder_config(teacher, TINY)
    assert config is not None and config.encoder == (Level(8, 1), *[Level(8, blocks)] * 3)
    assert config.encoder_pooled == pooled * blocks
    student = InfGen(config)
    copy_encoder(teacher, student)
    image = torch.rand(1, 3, 24, 32)
    assert torch.equal(student.encode(image), teacher(image))


def test_encoders_that_cannot_be_copied_exactly_have_no_config() -> None:
    early, both = encoder(), encoder(pooled=True)
    early[1] = Block(8, True)
    both[-5] = Block(8, True)  # at the resolution before the last one
    for other in (early, both, encoder()[1:], encoder()[:-1], nn.Conv2d(3, 4, 8, stride=8), nn.Identity()):
        assert encoder_config(other, TINY) is None


def test_a_model_is_kept_with_the_encoder_of_a_tiny_autoencoder(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "run", InfGen(TINY))
    autoencoder = tmp_path / "autoencoder.py"
    autoencoder.write_text(
        "import torch\nfrom tests.training.test_warmstart import decoder, encoder\n"
        "def load_encoder():\n    torch.manual_seed(1)\n    return encoder(pooled=True).half().float()\n"
        "load_decoder = decoder\n"
    )
    arguments = [str(tmp_path / "run"), "--encoder", str(autoencoder), "-o", str(tmp_path / "kept")]
    result = CliRunner().invoke(keep.main, arguments)
    assert result.exit_code == 0, result.output
    before, after = (load_checkpoint(tmp_path / name) for name in ("run", "kept"))
    assert after.config == dataclasses.replace(
        before.config, encoder=(Level(8, 1), *[Level(8, 2)] * 3), encoder_pooled=2
    )
    for name, value in after.state_dict().items():
        if not name.startswith("encode."):
            assert value.equal(before.state_dict()[name].half().float()), name
    image = torch.rand(1, 3, 24, 32)
    with torch.inference_mode():
        assert torch.equal(after.encode(image), Teacher.load(autoencoder).encode(image))
    autoencoder.write_text("from torch import nn\nload_encoder = load_decoder = nn.Identity\n")
    result = CliRunner().invoke(keep.main, arguments)
    assert result.exit_code == 1 and "is a checkpoint, and may be the base of others: use --force" in result.output
    result = CliRunner().invoke(keep.main, [*arguments, "--force"])
    assert result.exit_code == 1 and "only the encoder of a tiny autoencoder of TAESD's family" in result.output


def test_a_model_is_kept_as_the_average_of_two(tmp_path: Path) -> None:
    for name in ("run", "start"):
        save_checkpoint(tmp_path / name, InfGen(TINY))
    arguments = [str(tmp_path / "run"), "--mix", str(tmp_path / "start"), "0.25", "-o", str(tmp_path / "kept")]
    result = CliRunner().invoke(keep.main, arguments)
    assert result.exit_code == 0, result.output
    run, start, kept = (load_checkpoint(tmp_path / name).state_dict() for name in ("run", "start", "kept"))
    for name, value in kept.items():
        assert torch.allclose(value, 0.75 * run[name] + 0.25 * start[name], rtol=2e-3, atol=1e-3), name


def chain(model: InfGen) -> list[nn.Parameter]:
    """The slopes of the enlarger's chain."""
    assert model.refine is not None
    enlarger = model.refine.enlarger
    return [enlarger.activate.weight, *(block[1].weight for block in enlarger.blocks)]


def test_a_kept_model_has_no_steep_slopes_and_makes_the_same_pictures(tmp_path: Path) -> None:
    model = InfGen(TINY).eval()
    assert model.refine is not None
    with torch.no_grad():
        for parameter in model.refine.enlarger.parameters():
            parameter.normal_(std=0.2)
        for slopes in chain(model):
            slopes.copy_(torch.linspace(-1.5, 2.5, len(slopes)))
    small = with_small_slopes(model)
    assert all(before.max() > 1 >= after.max() for before, after in zip(chain(model), chain(small), strict=True))
    latent = torch.randn(1, TINY.latent_channels, 4, 5)
    for scale in (1, 2, 4):
        with torch.inference_mode():
            before, after = (each(latent, (32 * scale, 40 * scale)) for each in (model, small))
        assert torch.allclose(after, before, rtol=1e-4, atol=1e-4 * before.abs().max()), scale
    save_checkpoint(tmp_path / "run", model)
    result = CliRunner().invoke(keep.main, [str(tmp_path / "run"), "--small-slopes", "-o", str(tmp_path / "kept")])
    assert result.exit_code == 0, result.output
    arguments = [str(tmp_path / "kept"), "--mix", str(tmp_path / "run"), "0.5", "-o", str(tmp_path / "mixed")]
    result = CliRunner().invoke(keep.main, arguments)
    assert result.exit_code == 1 and "only one of the models has small slopes" in result.output
    assert all(slopes.max() <= 1 for slopes in chain(load_checkpoint(tmp_path / "kept")))


def test_slopes_that_hardly_differ_become_equal_and_others_stay(tmp_path: Path) -> None:
    model = tiny_model()
    finish, polish = model.refine.enlarger.finish["4"][2], model.refine.enlarger.polish["4"][1]
    with torch.no_grad():
        finish.weight.copy_(torch.linspace(0.05, 0.07, len(finish.weight)))
        polish.weight.copy_(torch.linspace(0, 0.2, len(polish.weight)))
    even = with_even_slopes(model)
    assert torch.allclose(even.refine.enlarger.finish["4"][2].weight, torch.tensor(0.06))
    assert len(even.refine.enlarger.finish["4"][2].weight.unique()) == 1
    assert torch.equal(even.refine.enlarger.polish["4"][1].weight, polish.weight)
    save_checkpoint(tmp_path / "run", model)
    result = CliRunner().invoke(keep.main, [str(tmp_path / "run"), "--small-slopes", "-o", str(tmp_path / "kept")])
    assert result.exit_code == 0, result.output
    kept = load_checkpoint(tmp_path / "kept")
    assert len(kept.refine.enlarger.finish["4"][2].weight.unique()) == 1


def test_a_model_is_given_a_polish_that_adds_nothing_yet(tmp_path: Path) -> None:
    *smaller, largest = TINY.enlargements
    plain = dataclasses.replace(TINY, enlargements=(*smaller, dataclasses.replace(largest, polish=0)))
    save_checkpoint(tmp_path / "run", InfGen(plain))
    arguments = [str(tmp_path / "run"), "--polish", "4", "-o", str(tmp_path / "kept")]
    result = CliRunner().invoke(keep.main, arguments)
    assert result.exit_code == 0, result.output
    before, after = (load_checkpoint(tmp_path / name) for name in ("run", "kept"))
    assert after.config == TINY and before.config == plain
    latent = torch.rand(1, TINY.latent_channels, 4, 5)
    with torch.inference_mode():
        assert (after(latent, (128, 160)) - before(latent, (128, 160))).abs().max() < 2e-3  # float16 weights
    result = CliRunner().invoke(keep.main, [str(tmp_path / "kept"), *arguments[1:], "--force"])
    assert result.exit_code == 1 and "has a finish, and no polish yet, can be given one" in result.output


def test_a_trunk_is_averaged_with_the_decoder_that_it_started_from(tmp_path: Path) -> None:
    model = InfGen(FITTING)
    teacher = decoder()
    whole, half, none = (keep.with_trunk(model, teacher, share).state_dict() for share in (1, 0.5, 0))
    before = model.state_dict()
    copied = {name for name, value in whole.items() if not value.equal(before[name])}
    assert copied and all(name.startswith(OF_SPACE) for name in copied)
    for name, value in before.items():
        assert none[name].equal(value)
        assert torch.allclose(half[name].float(), (value + whole[name]) / 2, atol=1e-6), name


def test_models_that_cannot_be_averaged_are_refused(tmp_path: Path) -> None:
    for name, config in (("run", TINY), ("other", PAPER)):
        save_checkpoint(tmp_path / name, InfGen(config))
    for given, message in (("other", "only models of the same architecture"), ("run", "in [0, 1], not 2")):
        arguments = [str(tmp_path / "run"), "--mix", str(tmp_path / given), "2" if given == "run" else "0.5"]
        result = CliRunner().invoke(keep.main, [*arguments, "-o", str(tmp_path / "kept")])
        assert result.exit_code == 1 and message in result.output
        assert not (tmp_path / "kept").exists()


@pytest.mark.parametrize("teacher", [encoder(width=4), encoder(blocks=1), nn.Identity()])
def test_another_kind_of_encoder_is_refused_and_nothing_copied(teacher: nn.Module) -> None:
    student = InfGen(dataclasses.replace(TINY, encoder=(Level(8, 2),) * 2))
    before = state(student)
    with pytest.raises(InputError, match="leave it out to start at random"):
        copy_encoder(teacher, student)
    assert not changed(student, before)


def test_a_model_without_trunk_and_enlarger_needs_no_others() -> None:
    student = InfGen(PAPER)
    before = state(student)
    copy_trunk(nn.Identity(), student)
    copy_enlarger(nn.Identity(), student)
    fit_readout(student, [view(0)])
    assert not changed(student, before)


def test_a_model_that_enlarges_nothing_needs_no_enlarger() -> None:
    student = InfGen(dataclasses.replace(TINY, enlargements=(Enlargement(1, 0),)))
    before = state(student)
    copy_enlarger(nn.Identity(), student)
    fit_readout(student, [view(0)])
    assert not changed(student, before)


class Compact(nn.Module):
    """SRVGGNetCompact, as far as a model takes from it."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.body = nn.Sequential(*layers)


def compact(width: int = 8, inner: int = 3, activation: type[nn.Module] = nn.PReLU) -> Compact:
    """All of its numbers are random."""
    layers: list[nn.Module] = []
    for index in range(1 + inner):
        layers += [nn.Conv2d(width if index else 3, width, 3, padding=1)]
        layers += [nn.PReLU(width) if activation is nn.PReLU else activation()]
    network = Compact([*layers, nn.Conv2d(width, 48, 3, padding=1)])
    for parameter in network.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return network


@pytest.mark.parametrize("inner", [2, 3])
def test_the_enlarger_sees_what_the_network_does(inner: int) -> None:
    network, student = compact(inner=inner), tiny_model()
    before = state(student)
    copy_enlarger(network, student)
    parts = ("enter", "activate", "blocks", "mix")
    assert {name.split(".")[2] for name in changed(student, before)} == {*parts}
    assert student.refine is not None
    enlarger = student.refine.enlarger
    reached: list[Tensor] = []
    for name, leave in enlarger.leave.items():
        first = next(enlarger.finish[name].children()) if name in enlarger.finish else leave
        first.register_forward_pre_hook(lambda _, given: reached.append(given[0]))
    features = torch.randn(1, 8, 12, 9)
    picture = enlarger.to_picture(features)
    for each in TINY.enlargements[1:]:
        enlarger.folded(features, picture, each)
    picture = picture.clamp(0, 1)
    for each, mine in zip(TINY.enlargements[1:], reached, strict=True):
        assert torch.allclose(mine, network.body[: 2 + 2 * each.blocks](picture), atol=1e-6)


@pytest.mark.parametrize(
    ("network", "text"),
    [
        (nn.Identity(), "is not SRVGGNetCompact: expected 3 convolutions or more"),
        (compact(inner=0), "is not SRVGGNetCompact"),
        (compact(width=4), r"does not fit: body.0 should have {'weight': \[8, 3, 3, 3\], 'bias': \[8\]}, not "),
        (compact(activation=nn.ReLU), r"does not fit: body.1 should have {'weight': \[8\]}, not {}"),
    ],
)
def test_another_kind_of_enlarger_is_refused_and_nothing_copied(network: nn.Module, text: str) -> None:
    student = tiny_model()
    before = state(student)
    with pytest.raises(InputError, match=text):
        copy_enlarger(network, student)
    assert not changed(student, before)


def test_a_last_layer_that_does_not_fit_leaves_the_first_ones_alone() -> None:
    student, network = tiny_model(), compact(inner=2)
    network.body[5] = nn.PReLU(3)
    before = state(student)
    with pytest.raises(InputError, match=r"body\.5 should have"):
        copy_enlarger(network, student)
    assert not changed(student, before)


@torch.no_grad()
def errors(model: InfGen, views: list[View], name: str) -> dict[int, float]:
    """Mean squared errors of enlarged pictures, by the factor."""
    found = {}
    for factor in (2, 4):
        parts = []
        for each in views:
            truth = to_tensor(getattr(each, name))[None]
            size = (8 * factor * each.cells,) * 2
            truth = nn.functional.interpolate(truth, size=size, mode="bicubic", antialias=True)
            parts.append((model(each.latent[None].float(), size) - truth)[..., 8:-8, 8:-8].square().mean())
        found[factor] = float(torch.stack(parts).mean())
    return found


def test_a_fitted_readout_is_nearer_to_its_targets(enlarger: Path) -> None:
    student = tiny_model()
    copy_enlarger(load_function(enlarger, "load_animevideo")(), student)
    views = [view(0), *(view(seed, sharp=True, photo=seed % 2 == 0) for seed in (1, 2, 3))]
    before, zeros = state(student), errors(student, views[1:], "sharp")
    fit_readout(student, views, count=8, cells=6)
    assert {name.rsplit(".", 2)[0] for name in changed(student, before)} == {"refine.enlarger.leave"}
    assert len(changed(student, before)) == 4
    fitted = errors(student, views[1:], "sharp")
    for factor in (2, 4):
        assert fitted[factor] < 0.8 * zeros[factor]
    # It leaves nothing behind, and is always the same.
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in student.modules())
    again = tiny_model()
    copy_enlarger(load_function(enlarger, "load_animevideo")(), again)
    fit_readout(again, views, count=8, cells=6)
    assert not changed(again, student.state_dict())
    # Other weights near by are worse: it is the best there is.
    assert student.refine is not None
    torch.manual_seed(0)
    for factor in (2, 4):
        leave = student.refine.enlarger.leave[str(factor)]
        assert isinstance(leave, nn.Conv2d)
        for _ in range(3):
            change = 0.2 * torch.randn_like(leave.weight) * leave.weight.std()
            leave.weight.data += change
            assert errors(student, views[1:], "sharp")[factor] > fitted[factor]
            leave.weight.data -= change


@torch.no_grad()
def transparent_model() -> InfGen:
    """Its trunk's picture is the known teacher's latent, enlarged."""
    model = tiny_model()
    assert model.refine is not None and model.prefill.enter is not None
    for part in (model.prefill, model.refine):
        for parameter in part.parameters():
            parameter.zero_()
    for layer in (model.prefill.enter, *model.refine.grow, model.refine.enlarger.to_picture):
        assert isinstance(layer, nn.Conv2d)
        for channel in range(3):
            layer.weight[channel, channel, 1, 1] = 1
    return model


def test_squares_tell_a_readout_what_whole_views_do(enlarger: Path) -> None:
    views, found = [view(seed) for seed in range(3)], []
    for count, cells in ((12, 8), (60, 4)):
        student = transparent_model()
        copy_enlarger(load_function(enlarger, "load_animevideo")(), student)
        fit_readout(student, views, count, cells)
        found.append(errors(student, views, "photo"))
    for factor in (2, 4):
        whole, squares = (each[factor] for each in found)
        assert squares < 1.03 * whole


def test_a_readout_is_fitted_to_photographs_where_nothing_is_sharp(enlarger: Path) -> None:
    student = tiny_model()
    copy_enlarger(load_function(enlarger, "load_animevideo")(), student)
    views = [view(seed, cells=cells) for seed, cells in ((0, 2), (1, 5), (2, 8))]
    zeros = errors(student, views, "photo")
    fit_readout(student, views, count=12)
    fitted = errors(student, views, "photo")
    assert all(fitted[factor] < 0.8 * zeros[factor] for factor in (2, 4))


def test_without_pictures_a_readout_stays_as_it_is() -> None:
    student = tiny_model()
    before = state(student)
    fit_readout(student, [view(0, photo=False)])
    assert not changed(student, before)


def test_the_preset_fits_the_networks_that_it_is_for() -> None:
    """TAEF2's widths and Real-ESRGAN's."""
    student = InfGen(edge())
    copy_trunk(decoder(width=64, blocks=3), student)
    copy_enlarger(compact(width=64, inner=16), student)


def test_rescaled_layers_give_values_of_about_1_and_the_same_picture() -> None:
    model = tiny_model()
    assert model.refine is not None
    with torch.no_grad():
        for block in model.refine.enlarger.blocks:
            for parameter in block.parameters():
                parameter.mul_(7.0 if parameter.ndim > 1 else 1.0)
        for parameter in model.refine.enlarger.leave.parameters():
            parameter.normal_(0, 0.1)  # a new model's are 0, and would hide what reaches them
    views, deepest = [view(seed=seed) for seed in range(3)], model.config.enlargements[-1]
    with torch.inference_mode():
        before = [model(each.latent[None].float(), (side, side)) for each in views for side in (128, 256)]
    rescale_enlarger(model, views, count=3)
    lengths: list[float] = []
    for block in model.refine.enlarger.blocks:
        block.register_forward_hook(lambda _, __, output: lengths.append(output.square().mean().item()))
    with torch.inference_mode():
        for each in views:
            model.context(each.latent[None].float(), deepest)
        seen = [*lengths]
        after = [model(each.latent[None].float(), (side, side)) for each in views for side in (128, 256)]
    count = len(model.refine.enlarger.blocks)
    assert all(0.9 < sum(seen[index::count]) / 3 < 1.1 for index in range(count))
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(before, after, strict=True))
