"""A trunk of another latent space learns to give what the rest of a finished model expects. Nothing else changes."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from torch import Tensor, nn

from infgen_model import InfGen
from infgen_model.checkpoint import load_checkpoint, save_checkpoint
from infgen_model.config import OF_SPACE, OF_TRUNK
from infgen_model.sharing import shares
from infgen_training import trunk
from infgen_training.batches import Batches, Turns
from infgen_training.config import Lesson, TrainConfig
from infgen_training.losses import feature_distance
from infgen_training.teacher import Teacher
from infgen_training.train import main
from infgen_training.trainer import Trainer
from infgen_training.views import View, save_shards

from .conftest import TINY, some_views
from .test_warmstart import decoder, encoder

CPU = torch.device("cpu")
CONFIG = TrainConfig(
    part="trunk",
    latent_space="sdxl",
    latent_channels=4,
    cells=6,
    lessons=(Lesson(1, 1.0, 2, 0.0, 0.0),),
    warmup=1,
    lr=3e-3,
    ema=0.5,
    bfloat16=False,
    noise=0.0,
    features=0.5,
)

AUTOENCODER = """
import torch
from torch import nn
from tests.training.test_warmstart import decoder


class Encoder(nn.Module):
    def forward(self, image):
        colours = nn.functional.avg_pool2d(image.float(), 8)
        return torch.cat([4 * colours - 2, colours.mean(1, keepdim=True)], 1)


def load_encoder():
    return Encoder()


def load_decoder():
    torch.manual_seed(5)
    network = decoder(blocks=1, pooled=False)
    network[1] = nn.Conv2d(4, 8, 3, padding=1)
    return network
"""


@pytest.fixture
def autoencoder(tmp_path: Path) -> Path:
    """A tiny autoencoder of a space with 4 channels, without global statistics."""
    file = tmp_path / "autoencoder.py"
    file.write_text(AUTOENCODER)
    return file


@pytest.fixture
def guide() -> InfGen:
    """A finished model, with the numbers of its file."""
    torch.manual_seed(0)
    model = InfGen(TINY).eval()
    with torch.no_grad():
        model.decode.upsampler.to_pixels.weight.normal_(0, 0.1)  # a new model's tokens change nothing yet
        for value in model.state_dict().values():
            value.copy_(value.half())
    return model


@pytest.fixture
def views(autoencoder: Path) -> list[View]:
    return trunk.in_space(some_views(), Teacher.load(autoencoder), Path("none"), CPU)


def new_trunk(guide: InfGen, autoencoder: Path, views: list[View]) -> InfGen:
    return trunk.new_trunk(CONFIG, guide, Teacher.load(autoencoder), views)


def distance(model: InfGen, guide: InfGen, views: list[View]) -> float:
    """Between the last features of two trunks."""
    assert model.refine is not None and guide.refine is not None
    total = 0.0
    with torch.no_grad():
        for view in views:
            assert view.guide is not None
            made = model.refine.grown(model.prefill(view.latent[None].float()))
            true = guide.refine.grown(guide.prefill(view.guide[None].float()))
            total += float(feature_distance(made[:, :-3], true[:, :-3]))
    return total / len(views)


def test_views_keep_their_latents_beside_those_of_the_new_space(autoencoder: Path, views: list[View]) -> None:
    for view, before in zip(views, some_views(), strict=True):
        assert view.guide is not None and view.guide.equal(before.latent)
        assert view.latent.shape == (4, 8, 8) and view.latent.dtype == torch.float16
        assert torch.allclose(view.latent[:3].float(), 4 * before.latent[:3].float() - 2, atol=0.02)


class Negative(torch.nn.Module):
    """Another autoencoder's encoder."""

    def __init__(self, encoder: torch.nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return -self.encoder(image)


def test_latents_are_encoded_once_and_again_for_other_views_and_teachers(
    tmp_path: Path, autoencoder: Path, views: list[View]
) -> None:
    file = tmp_path / trunk.LATENTS
    trunk.save_latents(file, views)
    marked = [views[0], *(dataclasses.replace(view, latent=view.latent + 1) for view in views[1:])]
    trunk.save_latents(file, marked)
    teacher = Teacher.load(autoencoder)
    again = trunk.in_space(some_views(), teacher, file, CPU)
    assert all(a.latent.equal(b.latent) for a, b in zip(again, marked, strict=True))
    other = trunk.in_space(some_views()[::-1], teacher, file, CPU)
    assert other[0].latent.equal(views[-1].latent)
    another = Teacher(Negative(teacher.encoder), teacher.decoder)
    assert trunk.in_space(some_views(), another, file, CPU)[1].latent.equal(-views[1].latent)
    file.write_bytes(b"damaged")
    assert trunk.in_space(some_views(), teacher, file, CPU)[0].latent.equal(views[0].latent)


def test_a_new_trunk_has_the_teachers_picture_and_features_like_the_guides(
    guide: InfGen, autoencoder: Path, views: list[View]
) -> None:
    model = new_trunk(guide, autoencoder, views)
    assert model.config.name == "tiny-sdxl" and not model.config.pooled and model.statistics is None
    assert (model.config.latent_space, model.config.latent_channels) == ("sdxl", 4)
    layers = Teacher.load(autoencoder).decoder
    assert model.refine is not None and model.refine.adapt is not None
    latent = views[0].latent[None].float()
    with torch.no_grad():
        assert torch.allclose(model.refine.grown(model.prefill(latent))[:, -3:], layers(latent), atol=1e-4)
    fitted = distance(model, guide, views)
    with torch.no_grad():
        model.refine.adapt.weight.copy_(torch.eye(8)[..., None, None])
        model.refine.adapt.bias.zero_()
    assert fitted < 0.7 * distance(model, guide, views)


def test_the_encoder_of_a_tiny_autoencoder_is_taken_as_it_is(
    guide: InfGen, autoencoder: Path, views: list[View]
) -> None:
    torch.manual_seed(6)
    teacher = dataclasses.replace(
        Teacher.load(autoencoder), encoder=encoder()[:-1].append(nn.Conv2d(8, 4, 3, padding=1))
    )
    model = trunk.new_trunk(CONFIG, guide, teacher, views)
    image = torch.rand(1, 3, 32, 24)
    assert model.encode(image).equal(teacher.encode(image))


def test_another_kind_of_encoder_is_fitted_to_the_new_latents(
    guide: InfGen, autoencoder: Path, views: list[View]
) -> None:
    model = new_trunk(guide, autoencoder, views)
    for view in views:
        image = torch.from_numpy(view.small).permute(2, 0, 1)[None].float() / 255
        with torch.no_grad():
            wrong = model.encode(image)[0] - view.latent.float()
        assert wrong.square().mean() < 0.6 * view.latent.float().var()


def test_a_trunk_learns_features_first_then_pictures_and_nothing_else_changes(
    guide: InfGen, autoencoder: Path, views: list[View]
) -> None:
    model = new_trunk(guide, autoencoder, views)
    trained, batches = Trainer(CONFIG, model, None, CPU, guide=guide), Batches(views, CONFIG, TINY.enlargements)
    one = batches.draw(0)
    losses = [trained.train_step(one, 0.1) for _ in range(15)]
    assert set(losses[0]) == {"coarse", "fine"}
    assert losses[-1]["coarse"] < 0.6 * losses[0]["coarse"] and losses[-1]["fine"] < 0.9 * losses[0]["fine"]
    losses = [trained.train_step(one, 0.6) for _ in range(15)]
    assert set(losses[0]) == {"pixels", "gradient"}
    assert losses[-1]["pixels"] < losses[0]["pixels"]
    for each in (trained.model, trained.average):
        state = each.state_dict()
        shared = {name: value for name, value in guide.state_dict().items() if not name.startswith(OF_SPACE)}
        assert shared and all(value.equal(state[name]) for name, value in shared.items())
        fitted = new_trunk(guide, autoencoder, views).encode.leave
        assert each.encode.leave.weight.equal(fitted.weight)
        start = new_trunk(guide, autoencoder, views).state_dict()
        changed = {name for name, value in state.items() if not value.equal(start[name])}
        assert changed == {name for name, _ in each.named_parameters() if CONFIG.teaches(name, each.config)}


# The command.


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    save_shards(tmp_path / "shards", some_views(), "some")
    return tmp_path / "shards"


@pytest.fixture
def start(tmp_path: Path, guide: InfGen) -> Path:
    save_checkpoint(tmp_path / "start", guide, torch.float16)
    return tmp_path / "start"


def run(shards: Path, folder: Path, *options: object, **changes: Any) -> Result:
    names = ("part", "latent_space", "latent_channels", "cells", "warmup", "bfloat16", "lr")
    settings = {name: getattr(CONFIG, name) for name in names} | {"lessons": [dataclasses.asdict(CONFIG.lessons[0])]}
    given = ["--shards", shards, "-o", folder, "--device", "cpu", "--minutes", 0.02, *options]
    for name, value in (settings | changes).items():
        given += ["--set", f"{name}={value if isinstance(value, str) else json.dumps(value)}"]
    return CliRunner().invoke(main, [*map(str, given)])


def test_a_run_writes_a_whole_model_of_the_new_space_and_goes_on(
    shards: Path, start: Path, autoencoder: Path, guide: InfGen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, encode, encoded = tmp_path / "run", Teacher.encode, list[Tensor]()
    monkeypatch.setattr(Teacher, "encode", lambda self, image: encoded.append(image) or encode(self, image))
    for again in (False, True):
        encoded.clear()
        result = run(shards, folder, "--start", start, "--teacher", autoencoder)
        assert result.exit_code == 0, result.output
        model = load_checkpoint(folder / "checkpoint")
        assert (model.config.latent_space, model.config.pooled) == ("sdxl", False)
        assert shares(guide, model)
        with torch.inference_mode():
            assert model(torch.randn(1, 4, 5, 6), (80, 96)).shape == (1, 3, 80, 96)
        # The latents are kept. Few are computed again, to see that the teacher is the same.
        assert (len(encoded) < len(some_views())) == again
    assert (folder / trunk.LATENTS).is_file()
    other = InfGen(TINY)
    save_checkpoint(tmp_path / "other", other, torch.float16)
    result = run(shards, folder, "--start", tmp_path / "other", "--teacher", autoencoder)
    assert result.exit_code == 1 and "continue with the --start that the run began with" in result.output


def test_a_trunk_that_was_kept_is_trained_further(
    shards: Path, start: Path, autoencoder: Path, views: list[View], guide: InfGen, tmp_path: Path
) -> None:
    """From its own checkpoint, which stores only what belongs to its space."""
    before = new_trunk(guide, autoencoder, views)
    save_checkpoint(tmp_path / "sdxl", before, torch.float16, start)
    both = ("--start", tmp_path / "sdxl", "--teacher", autoencoder)
    result = run(shards, tmp_path / "run", *both, "--minutes", 0)
    assert result.exit_code == 0, result.output
    state = load_checkpoint(tmp_path / "run" / "checkpoint").state_dict()
    assert all(value.half().equal(state[name].half()) for name, value in before.state_dict().items())
    assert run(shards, tmp_path / "run", *both, lr=1e-2).exit_code == 0
    after = load_checkpoint(tmp_path / "run" / "checkpoint")
    changed = {name for name, value in after.state_dict().items() if not value.equal(state[name])}
    assert changed and all(CONFIG.teaches(name, after.config) for name in changed)
    result = run(shards, tmp_path / "other", *both, features=0.5)
    assert result.exit_code == 1 and "features needs --start with a model of another latent space" in result.output


def test_what_a_trunk_lacks_is_named(
    shards: Path, start: Path, autoencoder: Path, teacher: Path, tmp_path: Path
) -> None:
    both = ("--start", start, "--teacher", autoencoder)
    pooled = tmp_path / "wide.py"
    pooled.write_text(AUTOENCODER.replace("decoder(", "decoder(width=10, ").replace("(4, 8", "(4, 10"))
    for options, changes, text in (
        (("--start", start), {}, "a trunk needs --start, the checkpoint of a finished model, and --teacher"),
        (both[2:], {}, "a trunk needs --start, the checkpoint of a finished model, and --teacher"),
        (both, {"latent_channels": 16}, "have 4 channels, not 16: name its space with"),
        (("--start", start, "--teacher", pooled), {}, "the teacher is not one that this model can start from"),
    ):
        result = run(shards, tmp_path / "run", *options, **changes)
        assert result.exit_code == 1 and text in result.output, result.output
        assert not (tmp_path / "run").exists()


def test_a_decoder_with_other_layers_is_not_in_the_way_of_statistics(guide: InfGen, views: list[View]) -> None:
    """A teacher with global statistics gives a trunk that has them too."""

    class Pooled(torch.nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return image

    network = decoder(blocks=1)
    network[1] = torch.nn.Conv2d(4, 8, 3, padding=1)
    model = trunk.new_trunk(CONFIG, guide, Teacher(Pooled(), network), views)
    assert model.config.pooled and model.statistics is not None


# Several spaces at once.


def test_models_trained_together_share_all_but_what_belongs_to_a_space(
    guide: InfGen, autoencoder: Path, views: list[View]
) -> None:
    config = dataclasses.replace(CONFIG, part="decoder", latent_space="flux2", latent_channels=32, others=1.0)
    other = new_trunk(guide, autoencoder, views)
    before = {name: value.clone() for name, value in other.state_dict().items()}
    trained = Trainer(config, guide, None, CPU, others=[other])
    turns = Turns([Batches(each, config, TINY.enlargements) for each in (some_views(), views)], config)
    for step in range(6):
        losses = trained.train_step(turns.draw(step), 0.5)
        assert set(losses) == {"pixels", "gradient"} and all(torch.isfinite(each) for each in losses.values())
    for model, first in ((other, guide), (trained.averages[1], trained.average)):
        assert shares(first, model)
        changed = {name for name, value in model.state_dict().items() if not value.equal(before[name])}
        assert any(name.startswith(OF_TRUNK) for name in changed)
        assert any(not name.startswith(OF_SPACE) for name in changed)
    learning = [value for group in trained.optimizer.param_groups for value in group["params"]]
    assert len(learning) == len(set(learning))


def test_encoders_trained_together_share_all_but_their_last_layers(
    guide: InfGen, autoencoder: Path, views: list[View]
) -> None:
    config = dataclasses.replace(CONFIG, part="encoder", latent_space="flux2", latent_channels=32, others=0.5)
    other = new_trunk(guide, autoencoder, views)
    before = [{name: value.clone() for name, value in model.state_dict().items()} for model in (guide, other)]
    trained = Trainer(config, guide, None, CPU, others=[other])
    turns = Turns([Batches(each, config, TINY.enlargements) for each in (some_views(), views)], config)
    for step in range(8):
        trained.train_step(turns.draw(step), 0.5)
    assert shares(*trained.models) and shares(*trained.averages)
    for model, old in zip(trained.models, before, strict=True):
        changed = {name for name, value in model.state_dict().items() if not value.equal(old[name])}
        assert changed == {name for name in old if name.startswith("encode.")}


def test_other_spaces_have_their_turns(views: list[View]) -> None:
    config = dataclasses.replace(CONFIG, part="decoder", others=0.5)
    batches = [Batches(each, config, TINY.enlargements) for each in (some_views(), views, views)]
    turns = [Turns(batches, config).draw(step) for step in range(200)]
    assert [batch.latents[0].shape[0] == 32 for batch in turns] == [batch.model == 0 for batch in turns]
    counts = [sum(batch.model == index for batch in turns) for index in range(3)]
    assert 70 < counts[0] < 130 and min(counts[1:]) > 25
    alone = dataclasses.replace(config, others=0.0)
    assert {Turns(batches, alone).draw(step).model for step in range(50)} == {0}


def test_a_run_of_several_spaces_writes_each_and_goes_on(
    shards: Path, start: Path, autoencoder: Path, guide: InfGen, views: list[View], tmp_path: Path
) -> None:
    save_checkpoint(tmp_path / "sdxl", new_trunk(guide, autoencoder, views), torch.float16, start)
    folder = tmp_path / "run"
    together = ("--start", start, "--other", tmp_path / "sdxl", autoencoder)
    whole = {"part": "decoder", "latent_space": "flux2", "latent_channels": 32, "others": 1.0}
    for _ in range(2):
        result = run(shards, folder, *together, **whole)
        assert result.exit_code == 0, result.output
        own, other = (load_checkpoint(folder / name) for name in ("checkpoint", "checkpoint-sdxl"))
        assert (own.config.latent_space, other.config.latent_space) == ("flux2", "sdxl")
        assert shares(own, other) and not shares(guide, other)
    assert (folder / "latents-sdxl.safetensors").is_file()


def test_a_model_of_other_parts_cannot_be_trained_together(
    shards: Path, start: Path, autoencoder: Path, guide: InfGen, views: list[View], tmp_path: Path
) -> None:
    stranger = new_trunk(InfGen(TINY), autoencoder, views)
    save_checkpoint(tmp_path / "stranger", stranger, torch.float16)
    given = ("--start", start, "--other", tmp_path / "stranger", autoencoder)
    whole = {"part": "decoder", "latent_space": "flux2", "latent_channels": 32}
    result = run(shards, tmp_path / "run", *given, **whole)
    assert result.exit_code == 1 and "shares nothing with the model of this run" in result.output
    result = run(shards, tmp_path / "run", *given, "--teacher", autoencoder)
    assert (
        result.exit_code == 1 and "trained together with a decoder or an encoder, not with part=trunk" in result.output
    )
    assert not (tmp_path / "run").exists()
