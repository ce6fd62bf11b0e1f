"""Runs: they learn, they can be interrupted anywhere, and they say what is wrong."""

import dataclasses
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file
from torch import Tensor

from infgen_export.checkpoint import load_checkpoint, save_checkpoint
from infgen_export.model import PRESETS, Grid, InfGen
from infgen_training.config import PARTS, TrainConfig
from infgen_training.data import Batch, LatentCache, random_view
from infgen_training.optimizer import TRUNK, make_optimizer, set_learning_rate
from infgen_training.train import Trainer, lesson, lessons, main, make_sampler

from ..export import tiny
from .conftest import gradient

OPTIMIZERS = ["muon", "adamw"]
CONFIG = TrainConfig(steps=6, trunk_rest=0, warmup=2, bfloat16=False, ema=0.9, encoder_every=4)


def trainer(seed: int, **changes: object) -> Trainer:
    torch.manual_seed(seed)
    return Trainer(dataclasses.replace(CONFIG, **changes), InfGen(tiny.EDGE), torch.device("cpu"))


def batch(seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    latent, target = torch.randn(2, 32, 5, 4, generator=generator), torch.rand(2, 3, 40, 32, generator=generator)
    return Batch(latent, Grid.whole((5, 4), (40, 32)), target)


def advance(trained: Trainer, steps: int) -> None:
    for _ in range(steps):
        native = batch(100 + trained.step) if trained.step % trained.config.encoder_every == 0 else None
        trained.train_step(batch(trained.step), native)


def everything(trained: Trainer) -> dict[str, Tensor]:
    """All that decides how a run goes on, by name."""
    state = {f"model.{name}": value for name, value in trained.model.state_dict().items()}
    state |= {f"average.{name}": value for name, value in trained.average.state_dict().items()}
    if trained.adversary:
        judge = trained.adversary.discriminator.state_dict()
        state |= {f"discriminator.{name}": value for name, value in judge.items()}
    for index, slots in trained.optimizer.state_dict()["state"].items():
        state |= {f"optimizer.{index}.{name}": torch.as_tensor(value) for name, value in slots.items()}
    for index, group in enumerate(trained.optimizer.param_groups):
        state |= {f"group.{index}.step": torch.tensor(group["step"])} if "step" in group else {}
    return {name: value.clone() for name, value in state.items()}


PUBLISHED: dict[str, Any] = {
    "optimizer": "adamw",
    "perceptual": "ms_ssim",
    "perceptual_weight": 0.1,
    "adversarial_weight": 0.1,
    "pyramid_weight": 0.5,
    "round_trip_weight": 1.0,
}


@pytest.mark.parametrize("changes", [{"optimizer": "muon"}, {"optimizer": "adamw"}, PUBLISHED, {"part": "decoder"}])
def test_an_interrupted_run_ends_where_it_would_have(tmp_path: Path, changes: dict[str, Any]) -> None:
    changes = {**changes, "trunk_rest": 2}
    whole = trainer(0, **changes)
    advance(whole, 6)

    first = trainer(0, **changes)
    advance(first, 3)
    first.save(tmp_path)
    saved = everything(first)
    second = trainer(1, **changes)
    second.load(tmp_path)
    assert second.step == 3
    assert [name for name, value in everything(second).items() if name in saved and not value.equal(saved[name])] == []
    advance(second, 3)

    expected, actual = everything(whole), everything(second)
    # What a group counts is set on loading, before its optimiser would.
    assert expected.keys() - actual.keys() == set()
    assert [name for name, value in expected.items() if not value.equal(actual[name])] == []
    assert not actual["model.prefill.enter.weight"].equal(saved["model.prefill.enter.weight"])


@pytest.mark.parametrize(("ema", "shares"), [(0.999, (10 / 11, 10 / 12)), (0.01, (0.99, 0.99))])
def test_the_checkpoint_is_an_average_that_forgets_the_start(
    tmp_path: Path, ema: float, shares: tuple[float, float]
) -> None:
    trained = trainer(0, ema=ema)
    weights = []
    for _ in range(3):
        advance(trained, 1)
        weights.append(trained.model.state_dict()["decode.inpe.mlp.0.weight"].clone())
    trained.save(tmp_path)
    expected = weights[0]
    for share, weight in zip(shares, weights[1:], strict=True):
        expected = (1 - share) * expected + share * weight
    saved = load_checkpoint(tmp_path / "checkpoint").state_dict()["decode.inpe.mlp.0.weight"]
    assert torch.allclose(saved, expected, atol=1e-6) and not torch.allclose(saved, weights[2], atol=1e-6)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint", "state.safetensors"]


@pytest.mark.parametrize("bfloat16", [False, True])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_single_batch_is_learnt(optimizer: str, bfloat16: bool) -> None:
    rates = {"lr": 1e-2, "muon_lr": 0.05, "copied_share": 1.0}
    trained = trainer(0, optimizer=optimizer, steps=30, warmup=3, bfloat16=bfloat16, **rates)
    latent = tiny.latent(5, 4)
    target = torch.nn.functional.interpolate(0.5 + 0.15 * latent[:, :3], scale_factor=8, mode="bilinear")
    lesson = Batch(latent, Grid.whole((5, 4), (40, 32)), target)
    losses = [trained.train_step(lesson, lesson) for _ in range(30)]
    assert losses[-1]["l1"] < 0.5 * losses[0]["l1"]
    assert losses[-1]["encoder"] < 0.8 * losses[0]["encoder"]


@pytest.mark.parametrize("part", PARTS)
def test_lessons_are_the_same_and_in_order_whatever_the_number_of_loaders(part: str) -> None:
    """From any step on, to the last one."""
    photos = [gradient(300, 200, 0.25)]
    rng = np.random.default_rng(0)
    views = [random_view(rng, photos, (4, 5), 4.0) for _ in range(6)]
    cache = LatentCache(views, [torch.randn(32, 4, 5).half() for _ in views])
    config = dataclasses.replace(CONFIG, part=part, steps=13, cells=60, tile=4, encoder_every=2)
    sampler = make_sampler(config, photos, cache)
    expected = [lesson(sampler, config, step) for step in range(2, 13)]
    for loaders in (1, 4, 30):
        made = list(lessons(sampler, dataclasses.replace(config, loaders=loaders), 2))
        assert len(made) == len(expected)
        for mine, truth in zip(made, expected, strict=True):
            for a, b in zip(mine, truth, strict=True):
                assert (a is None) == (b is None)
                if a is not None and b is not None:
                    assert a.latent.equal(b.latent) and a.target.equal(b.target)
                    assert a.grid.token_y.equal(b.grid.token_y) and a.grid.token_x.equal(b.grid.token_x)
    turns = [(batch is not None, native is not None) for batch, native in expected]
    alternating = [(True, step % 2 == 0) for step in range(2, 13)]
    assert turns == {"all": alternating, "decoder": [(True, False)] * 11, "encoder": [(False, True)] * 11}[part]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a compiler")
def test_a_compiled_model_learns_the_same(tmp_path: Path) -> None:
    """Shapes that change included; its state has the names of any other model's."""
    plain, compiled = trainer(0), trainer(0, compile=True)
    assert everything(plain).keys() == everything(compiled).keys()
    wide = Batch(tiny.latent(6, 4, batch=3), Grid.whole((6, 4), (60, 40)), torch.rand(3, 3, 64, 40))
    native = Batch(tiny.latent(6, 4, batch=3), Grid.whole((6, 4), (48, 32)), torch.rand(3, 3, 48, 32))
    for given in ((batch(0), batch(1)), (wide, native)):
        losses = [trained.train_step(*given) for trained in (plain, compiled)]
        assert losses[0].keys() == losses[1].keys()
        for name, loss in losses[0].items():
            assert torch.allclose(loss, losses[1][name], rtol=1e-3), name
    compiled.save(tmp_path)
    resumed = trainer(1)
    resumed.load(tmp_path)
    expected = {name: value for name, value in everything(compiled).items() if not name.startswith("group.")}
    assert [name for name, value in expected.items() if not value.equal(everything(resumed)[name])] == []


def test_every_loss_of_the_published_recipe_moves_the_model() -> None:
    """Each weight, set to 0, leads to other weights after a step."""
    ends = {}
    for name in (None, "perceptual_weight", "pyramid_weight", "adversarial_weight", "round_trip_weight"):
        trained = trainer(0, **{**PUBLISHED, **({name: 0.0} if name else {})})
        losses = trained.train_step(batch(0), batch(1))
        assert all(math.isfinite(loss) for loss in losses.values())
        ends[name] = (len(losses), trained.model.state_dict()["decode.upsampler.to_pixels.weight"].clone())
    assert ends[None][0] == 6
    for name in list(ends)[1:]:
        assert ends[name][0] == 5 and not ends[name][1].equal(ends[None][1]), name


def test_an_encoder_that_learns_alone_leaves_the_decoder_as_it_is(photos: Path, teacher: Path, start: Path) -> None:
    assert run(photos, teacher, start, part="encoder", round_trip_weight=0.5).exit_code == 0
    before = load_checkpoint(start).state_dict()
    after = load_checkpoint(photos.parent / "run" / "checkpoint").state_dict()
    changed = {name.split(".")[0] for name, value in after.items() if not value.equal(before[name])}
    assert changed == {"encode"}
    log = [line.split(",") for line in (photos.parent / "run" / "log.csv").read_text().splitlines()]
    assert all(row[1] == "nan" and math.isfinite(float(row[5])) and math.isfinite(float(row[6])) for row in log)


def test_a_decoder_that_learns_alone_leaves_the_encoder_as_it_is(photos: Path, teacher: Path, start: Path) -> None:
    assert run(photos, teacher, start, part="decoder").exit_code == 0
    before = load_checkpoint(start).state_dict()
    after = load_checkpoint(photos.parent / "run" / "checkpoint").state_dict()
    changed = {name.split(".")[0] for name, value in after.items() if not value.equal(before[name])}
    assert changed == {"prefill", "refine", "decode"}


def test_what_is_named_learns_and_nothing_else(photos: Path, teacher: Path, start: Path) -> None:
    name = "decode.upsampler."
    result = run(photos, teacher, start, part="decoder", learns=(name,))
    assert result.exit_code == 0, result.output
    before = load_checkpoint(start).state_dict()
    after = load_checkpoint(photos.parent / "run" / "checkpoint").state_dict()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed and all(key.startswith(name) for key in changed)
    # What does not learn is in the checkpoint and need not be in the state too.
    state = load_file(photos.parent / "run" / "state.safetensors")
    assert all(key.split("/")[1].startswith(name) for key in state if not key.startswith("optimizer/"))


def test_the_trunk_rests_while_the_rest_of_the_model_is_untrained() -> None:
    trained = trainer(0, trunk_rest=2)
    before = everything(trained)
    advance(trained, 2)
    rested = everything(trained)
    advance(trained, 1)
    after = everything(trained)
    trunk = [name for name in before if name.removeprefix("model.").startswith(TRUNK)]
    assert trunk and all(rested[name].equal(before[name]) for name in trunk)
    assert not any(after[name].equal(rested[name]) for name in trunk)
    assert not rested["model.refine.to_detail.weight"].equal(before["model.refine.to_detail.weight"])


def test_the_encoder_learns_on_its_turns_only() -> None:
    trained = trainer(0)
    before = everything(trained)
    advance(trained, 1)
    after = everything(trained)
    assert not after["model.encode.enter.weight"].equal(before["model.encode.enter.weight"])
    trained.train_step(batch(1), None)
    last = everything(trained)
    for name, value in last.items():
        if name.startswith("model.encode."):
            assert value.equal(after[name]), name
    assert not last["model.decode.upsampler.to_pixels.weight"].equal(after["model.decode.upsampler.to_pixels.weight"])


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("kind", tiny.CONFIGS)
def test_every_parameter_is_optimised_once(kind: str, optimizer: str) -> None:
    model = InfGen(tiny.CONFIGS[kind])
    groups = make_optimizer(model, dataclasses.replace(CONFIG, optimizer=optimizer)).param_groups
    given = [parameter for group in groups for parameter in group["params"]]
    assert len(given) == len({id(parameter) for parameter in given}) == len(list(model.parameters()))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for group in groups:
        inside = {names[id(parameter)] for parameter in group["params"]}
        if group.get("use_muon"):
            assert all(parameter.ndim >= 2 for parameter in group["params"])
            assert "decode.upsampler.to_pixels.weight" not in inside
            first = (
                "decode.blocks.0.attention.query",
                "prefill.blocks.0.convolve.0",
                "encode.levels.0.0.convolve.0",
            )
            assert {f"{name}.weight" for name in first} & inside
        share = CONFIG.copied_share if any(name.startswith("encode.levels.") for name in inside) else 1.0
        if share == 1.0:
            assert not any(name.startswith(TRUNK) for name in inside)
        assert group["peak"] == share * (CONFIG.muon_lr if group.get("use_muon") else CONFIG.lr)


@pytest.mark.parametrize("warmup", [0, 10])
def test_the_learning_rate_rises_and_falls(warmup: int) -> None:
    config = TrainConfig(steps=110, warmup=warmup, lr=2e-3, muon_lr=0.05, final=0.02)
    optimizer = make_optimizer(InfGen(tiny.EDGE), config)
    shares = []
    for step in range(config.steps + 5):
        set_learning_rate(optimizer, config, step)
        muon, adamw = (group["lr"] for group in optimizer.param_groups[:2])
        assert muon / 0.05 == pytest.approx(adamw / 2e-3)
        shares.append(adamw / 2e-3)
    assert shares[:warmup] == pytest.approx([(step + 1) / 10 for step in range(warmup)])
    assert shares[warmup] == max(shares) == pytest.approx(1)
    assert shares[warmup:111] == sorted(shares[warmup:111], reverse=True)
    assert shares[(110 + warmup) // 2] == pytest.approx(0.51)
    assert shares[110:] == pytest.approx([0.02] * 5)


def test_the_schedule_is_whole_even_when_all_of_it_is_warm_up() -> None:
    config = TrainConfig(steps=5, warmup=5)
    optimizer = make_optimizer(InfGen(tiny.EDGE), config)
    set_learning_rate(optimizer, config, 5)
    assert all(math.isfinite(group["lr"]) for group in optimizer.param_groups)


@pytest.mark.parametrize("changes", [{"preset": "huge"}, {"optimizer": "sgd"}, {"perceptual": "vgg"}, {"part": "head"}])
def test_unknown_names_in_a_config_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="is unknown: expected one of"):
        TrainConfig(**changes)


def test_loaders_are_at_least_one() -> None:
    with pytest.raises(ValueError, match="loaders must be 1 or more, not 0"):
        TrainConfig(loaders=0)


@pytest.mark.parametrize("scales", [(4.0, 0.5), (0.0, 1.0), (-1.0, 2.0)])
def test_impossible_scales_are_refused(scales: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="scales must be two rising positive numbers"):
        TrainConfig(scales=scales)


# The command.

SETTINGS = {
    "steps": 3,
    "trunk_rest": 0,
    "warmup": 1,
    "shapes": [[4, 4], [4, 6]],
    "views": 6,
    "cells": 32,
    "tile": 4,
    "save_every": 2,
    "bfloat16": False,
    "exclude": [],
    "encoder_every": 2,
}


@pytest.fixture
def start(tmp_path: Path) -> Path:
    """A checkpoint of a tiny model to start from: presets take minutes."""
    save_checkpoint(tmp_path / "start", tiny.model(tiny.EDGE))
    return tmp_path / "start"


def run(photos: Path, teacher: Path, start: Path | None, **changes: object) -> Result:
    """Trains in the folder `run` beside the photographs."""
    options = ["--photos", photos, "--teacher", teacher, "-o", photos.parent / "run"]
    options += ["--start", start] if start else []
    for name, value in (SETTINGS | changes).items():
        options += ["--set", f"{name}={value if isinstance(value, str) else json.dumps(value)}"]
    return CliRunner().invoke(main, [*map(str, options), "--device", "cpu"])


def steps_of(folder: Path) -> list[int]:
    return [int(line.split(",")[0]) for line in (folder / "log.csv").read_text().splitlines()]


def test_a_run_from_photographs_to_a_checkpoint(photos: Path, teacher: Path, start: Path) -> None:
    folder = photos.parent / "run"
    result = run(photos, teacher, start)
    assert result.exit_code == 0, result.output
    names = {path.name for path in folder.iterdir()}
    assert names == {"checkpoint", "state.safetensors", "latents.safetensors", "train.json", "log.csv"}
    assert steps_of(folder) == [1, 2, 3]
    log = [line.split(",") for line in (folder / "log.csv").read_text().splitlines()]
    assert [row[5] == "nan" for row in log] == [False, True, False]
    assert all(math.isfinite(float(row[1])) and row[2] == row[3] == row[4] == row[6] == "nan" for row in log)
    assert json.loads((folder / "train.json").read_text())["views"] == 6
    trained, before = load_checkpoint(folder / "checkpoint"), load_checkpoint(start)
    assert trained.config == before.config
    assert not trained.state_dict()["prefill.enter.weight"].equal(before.state_dict()["prefill.enter.weight"])


def test_a_preset_and_a_seed_decide_all_of_a_run(photos: Path, teacher: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRESETS, "paper", lambda *_: tiny.PAPER)
    folder, states = photos.parent / "run", []
    for number, seed in enumerate((5, 5, 6)):
        assert run(photos, teacher, None, preset="paper", seed=seed, warm_start=False).exit_code == 0
        assert load_checkpoint(folder / "checkpoint").config == tiny.PAPER
        states.append((folder / "state.safetensors").read_bytes())
        folder.rename(photos.parent / f"run{number}")
    assert states[0] == states[1] != states[2]


def test_a_finished_run_goes_on_when_it_is_given_more_steps(photos: Path, teacher: Path, start: Path) -> None:
    folder = photos.parent / "run"
    run(photos, teacher, start)
    cache = (folder / "latents.safetensors").read_bytes()
    teacher.write_text("raise RuntimeError('the cache is there: nobody needs a teacher')")

    before = (folder / "checkpoint" / "model.safetensors").read_bytes()
    again = run(photos, teacher, start)
    assert again.exit_code == 0 and steps_of(folder) == [1, 2, 3]
    assert (folder / "checkpoint" / "model.safetensors").read_bytes() == before

    more = run(photos, teacher, start, steps=5)
    assert more.exit_code == 0, more.output
    assert steps_of(folder) == [1, 2, 3, 4, 5]
    assert (folder / "checkpoint" / "model.safetensors").read_bytes() != before
    assert (folder / "latents.safetensors").read_bytes() == cache


def test_a_run_goes_on_from_checkpoint_state_and_config_alone(photos: Path, teacher: Path, start: Path) -> None:
    """Which is what is kept of a run: photographs are encoded anew, and settings need not be told again."""
    folder = photos.parent / "run"
    assert run(photos, teacher, start).exit_code == 0
    kept = photos.parent / "kept"
    shutil.copytree(folder, kept, ignore=shutil.ignore_patterns("latents.safetensors", "log.csv"))
    assert run(photos, teacher, start, steps=5).exit_code == 0
    options = ["--photos", photos, "--teacher", teacher, "-o", kept, "--set", "steps=5", "--device", "cpu"]
    result = CliRunner().invoke(main, list(map(str, options)))
    assert result.exit_code == 0, result.output
    for name in ("state.safetensors", "train.json", "checkpoint/model.safetensors", "checkpoint/config.json"):
        assert (kept / name).read_bytes() == (folder / name).read_bytes(), name
    assert steps_of(kept) == [4, 5]


def test_a_run_that_was_killed_ends_where_it_would_have(
    photos: Path, teacher: Path, start: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = photos.parent / "run"
    assert run(photos, teacher, start, steps=5).exit_code == 0
    expected = (folder / "state.safetensors").read_bytes()
    folder.rename(photos.parent / "uninterrupted")

    train_step = Trainer.train_step

    def killed(self: Trainer, *batches: Batch) -> dict[str, Tensor]:
        if self.step == 3:
            raise KeyboardInterrupt
        return train_step(self, *batches)

    monkeypatch.setattr(Trainer, "train_step", killed)
    assert run(photos, teacher, start, steps=5).exit_code != 0
    monkeypatch.setattr(Trainer, "train_step", train_step)
    assert run(photos, teacher, start, steps=5).exit_code == 0
    assert (folder / "state.safetensors").read_bytes() == expected
    assert steps_of(folder) == [1, 2, 3, 4, 5]


def test_a_run_that_diverges_stops_and_keeps_what_was_saved(
    photos: Path, teacher: Path, start: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = photos.parent / "run"
    assert run(photos, teacher, start, steps=3).exit_code == 0
    saved = [folder / "checkpoint" / "model.safetensors", folder / "state.safetensors"]
    before = [file.read_bytes() for file in saved]
    train_step = Trainer.train_step

    def diverging(self: Trainer, *batches: Batch) -> dict[str, Tensor]:
        return {name: loss * math.inf for name, loss in train_step(self, *batches).items()}

    monkeypatch.setattr(Trainer, "train_step", diverging)
    result = run(photos, teacher, start, steps=5)
    assert result.exit_code == 1 and "at step 4 a loss is no longer finite" in result.output
    assert "with lower lr and muon_lr" in result.output
    assert [file.read_bytes() for file in saved] == before


def test_drawn_pictures_join_the_photographs(photos: Path, teacher: Path, start: Path) -> None:
    assert run(photos, teacher, start, drawn=2, views=40).exit_code == 0
    views = LatentCache.load(photos.parent / "run" / "latents.safetensors").views
    assert {view.photo for view in views} == {0, 1, 2, 3}
    assert run(photos, teacher, start, drawn=2, views=40, steps=4).exit_code == 0


def test_a_run_keeps_the_settings_that_its_cache_was_made_with(photos: Path, teacher: Path, start: Path) -> None:
    """With a photograph less, every view after it would show another picture than its latent."""
    folder = photos.parent / "run"
    run(photos, teacher, start)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for changes in (
        {"exclude": ["a"]},
        {"views": 7},
        {"drawn": 1},
        {"shapes": [[4, 4]]},
        {"optimizer": "adamw"},
        {"seed": 1},
        {"part": "decoder"},
    ):
        result = run(photos, teacher, start, steps=5, **changes)
        (name,) = changes
        assert result.exit_code == 1 and f"was made with {name} " in result.output, changes
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


BAD = {
    "field": ({"colour": "red"}, "unknown field 'colour'"),
    "type": ({"steps": "many"}, "config.steps is str, expected int"),
    "shape": ({"shapes": [[4]]}, "config.shapes[0] has 1 items, expected 2"),
    "preset": ({"preset": "huge"}, "preset 'huge' is unknown: expected one of edge, paper"),
    "optimiser": ({"optimizer": "sgd"}, "optimizer 'sgd' is unknown: expected one of muon, adamw"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_settings_are_named(photos: Path, teacher: Path, start: Path, name: str) -> None:
    changes, text = BAD[name]
    result = run(photos, teacher, start, **changes)
    assert result.exit_code == 2 and text in result.output
    assert not (photos.parent / "run").exists()


def test_a_folder_without_photographs_is_named(teacher: Path, start: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    result = run(tmp_path / "empty", teacher, start)
    assert result.exit_code == 1 and "Error: no photographs (.webp, .jpg, .png) in " in result.output


def test_a_checkpoint_that_cannot_be_started_from_is_named(photos: Path, teacher: Path, start: Path) -> None:
    (start / "model.safetensors").unlink()
    result = run(photos, teacher, start)
    assert result.exit_code == 1 and "lacks model.safetensors" in result.output
