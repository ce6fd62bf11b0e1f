"""Runs: they learn, they can be interrupted anywhere, and they say what is wrong."""

import dataclasses
import json
import math
import shutil
from collections.abc import Iterator
from functools import partialmethod
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file
from torch import Tensor, nn

from infgen_model import PRESETS, InfGen
from infgen_model.checkpoint import load_checkpoint, save_checkpoint
from infgen_model.config import OF_SPACE
from infgen_rt.errors import InputError
from infgen_training import train
from infgen_training.batches import Batch, Batches
from infgen_training.config import Lesson, TrainConfig
from infgen_training.losses import Vgg
from infgen_training.precision import has_bfloat16
from infgen_training.teacher import load_function
from infgen_training.train import drawn, main
from infgen_training.trainer import Diverged, Trainer, make_optimizer
from infgen_training.views import View, save_shards
from infgen_training.warmstart import COPIED

from .conftest import TINY, some_views, tiny_model, view
from .test_warmstart import PAPER

CPU = torch.device("cpu")
PARTS = ("decoder", "encoder")
"""A trunk, which needs a second model, has tests of its own."""
LESSONS = tuple(Lesson(factor, 1.0, 1, 0.4, 0.4) for factor in (1, 2, 4))
CONFIG = TrainConfig(cells=6, lessons=LESSONS, warmup=2, ema=0.9, bfloat16=False, noise=0.0)


def trainer(seed: int = 0, vgg: Vgg | None = None, step: int = 0, **changes: Any) -> Trainer:
    return Trainer(dataclasses.replace(CONFIG, **changes), tiny_model(seed), vgg, CPU, step)


def batch(factor: int, views: list[View] | None = None, **changes: Any) -> Batch:
    """Of one enlargement, at exactly that scale unless ``between`` is given."""
    lesson = next(each for each in LESSONS if each.factor == factor)
    lessons = (dataclasses.replace(lesson, batch=changes.pop("batch", 1)),)
    values: dict[str, Any] = {"between": 0.0, "lessons": lessons} | changes
    config = dataclasses.replace(CONFIG, **values)
    return Batches(some_views() if views is None else views, config, TINY.enlargements).draw(0)


def state(model: InfGen) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def changed(model: InfGen, before: dict[str, Tensor]) -> set[str]:
    return {name for name, value in model.state_dict().items() if not value.equal(before[name])}


# One step after another.


@pytest.mark.parametrize(("factor", "bfloat16"), [(1, False), (1, True), (4, False)])
def test_a_decoder_learns_a_single_batch(factor: int, bfloat16: bool) -> None:
    if bfloat16 and not has_bfloat16(CPU):
        pytest.skip("this processor imitates bfloat16")
    trained = trainer(lr=1e-2, copied_share=1.0, bfloat16=bfloat16)
    one = batch(factor, [view(0, cells=6, sharp=True)], sharp=1.0)
    losses = [trained.train_step(one, 0.0) for _ in range(15)]
    assert set(losses[0]) == {"pixels", "gradient", *(["grid", "reduced"] if factor > 1 else [])}
    assert losses[-1]["pixels"] < 0.5 * losses[0]["pixels"]
    assert all(loss.dtype == torch.float32 for loss in losses[-1].values())


def test_an_encoder_learns_a_single_batch() -> None:
    trained = trainer(part="encoder", lr=1e-2, copied_share=1.0)
    one = batch(1, part="encoder")
    losses = [trained.train_step(one, 0.0) for _ in range(15)]
    assert set(losses[0]) == {"latent", "pixels"}
    assert losses[-1]["latent"] < 0.5 * losses[0]["latent"]


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_a_model_that_sharpens_learns_nothing_else(factor: int) -> None:
    config = dataclasses.replace(CONFIG, sharpen=0.4)
    trained = Trainer(config, tiny_model(), None, CPU, guide=tiny_model())
    losses = trained.train_step(batch(factor), 0.0)
    assert set(losses) == {"pixels", "gradient"}
    assert (losses["pixels"].item() < 1e-6) == (factor == 1)  # it starts as the model whose pictures it learns
    assert trained.guide is not None and changed(trained.guide, state(tiny_model())) == set()


@pytest.mark.parametrize("part", PARTS)
def test_what_is_not_of_the_part_stays_as_it_is(part: str) -> None:
    trained = trainer(part=part)
    before = state(trained.model)
    for _ in range(2):
        trained.train_step(batch(2, part=part), 0.0)
    for model in (trained.model, trained.average):
        found = {name.split(".")[0] for name in changed(model, before)}
        assert found == ({"encode"} if part == "encoder" else {"prefill", "refine", "decode"})


def test_what_spaces_share_learns_without_their_trunks() -> None:
    trained = trainer(part="shared")
    before = state(trained.model)
    trained.train_step(batch(4), 0.0)
    found = changed(trained.model, before)
    assert not [name for name in found if name.startswith(OF_SPACE)]
    assert {name.split(".")[0] for name in found} == {"refine", "decode"}


LARGEST = {"part": "largest", "between": 0.0, "lessons": (Lesson(4, 1.0, 2, 0.0, 0.0),)}


def test_the_largest_enlargement_learns_alone_from_what_is_kept_of_the_views() -> None:
    trained, whole = trainer(**LARGEST), trainer(reduced=0.5, **LARGEST | {"part": "decoder"})
    one = batch(4, [view(0, cells=6, sharp=True)], batch=2, part="largest", sharp=1.0)
    before, first = state(trained.model), trained.train_step(one, 0.0)
    for name, loss in whole.train_step(one, 0.0).items():
        assert first[name].item() == pytest.approx(loss.item(), rel=2e-3)  # what is kept is float16
    names = {name for name in before if name.startswith(trained.model.config.of_largest)}
    assert {name.split(".")[2] for name in names} == {"blocks", "leave", "finish", "polish"}
    assert not [name for name in names if name.startswith("refine.enlarger.blocks.0.")]  # scale 2 uses it too
    # Other squares of the same view are cut from what is kept of it.
    kept = trained.largest._begun
    assert len(kept) == 1
    losses = [trained.train_step(one, 0.0) for _ in range(3)]
    assert trained.largest._begun is kept and len(kept) == 1
    assert changed(trained.model, before) == names
    assert sum(losses[-1].values()) < sum(first.values())


def test_a_square_is_cut_from_what_is_kept_where_it_is_in_its_view() -> None:
    """Its inner pixels are those of the whole view, which is decoded once."""
    large = view(3, cells=12, sharp=True)
    config = dataclasses.replace(CONFIG, **LARGEST | {"cells": 10})
    one = Batches([large], config, TINY.enlargements).draw(1)
    assert any(corner != (0, 0) for corner in one.corners)
    trained = Trainer(config, tiny_model(), None, CPU)
    with torch.no_grad():
        made = trained.largest.picture(one)
        whole = trained.model(large.latent[None].float(), (12 * 32, 12 * 32))
    for square, (row, column) in zip(made, one.corners, strict=True):
        true = whole[0, :, 32 * row : 32 * (row + 10), 32 * column : 32 * (column + 10)]
        inner = (..., slice(32, -32), slice(32, -32))
        assert (square[inner] - true[inner]).abs().max() < 2e-3


def test_the_largest_enlargement_learns_in_bfloat16_too() -> None:
    """Also on processors that have no bfloat16. Autocast could not stack what is kept in float16."""
    one = batch(4, [view(0, cells=6, sharp=True)], batch=2, part="largest", sharp=1.0)
    trained = trainer(**LARGEST)
    with torch.autocast("cpu", torch.bfloat16):
        made = trained.largest.picture(one)
    assert made.isfinite().all() and made.requires_grad


def test_a_model_without_a_largest_enlargement_cannot_train_it() -> None:
    config = dataclasses.replace(CONFIG, **LARGEST)
    with pytest.raises(InputError, match="needs a model with an enlargement by 4"):
        Trainer(config, InfGen(PAPER), None, CPU)


def test_a_smaller_enlargement_leaves_what_only_larger_ones_need() -> None:
    trained = trainer()
    before = state(trained.model)
    trained.train_step(batch(2, sharp=1.0), 0.0)
    found = {name.rpartition(".")[0] for name in changed(trained.model, before)}
    assert "refine.enlarger.leave.2" in found and "refine.enlarger.leave.4" not in found


@pytest.mark.parametrize(("between", "factor"), [(0.0, 2), (0.0, 4), (1.0, 2), (1.0, 4)])
def test_a_scale_is_learnt_with_the_enlargement_that_it_is_decoded_with(between: float, factor: int) -> None:
    one = batch(factor, between=between)
    enlargement = trainer().enlargement(one)
    assert enlargement == TINY.enlargement_for((one.scale, one.scale)) and enlargement is not None
    assert enlargement.factor == factor


def test_photographs_count_less_than_what_the_latent_tells() -> None:
    """What is not in the latent is not to be averaged away, but for a little."""
    views = [view(0, cells=6, sharp=True)]
    soft, sharp = (trainer().train_step(batch(4, views, sharp=share), 0.0) for share in (0.0, 1.0))
    assert set(soft) == {"pixels", "grid", "reduced"} and set(sharp) == {"pixels", "gradient", "grid", "reduced"}
    full = trainer(soft=1.0).train_step(batch(4, views, sharp=0.0), 0.0)
    assert soft["pixels"].item() == pytest.approx(CONFIG.soft * full["pixels"].item(), rel=1e-5)


def test_no_loss_sees_the_margin() -> None:
    one = batch(4, [view(0, cells=6, sharp=True)], sharp=1.0)
    assert one.sharp is not None
    frame = torch.ones(32 * 6, 32 * 6, dtype=torch.bool)
    frame[32:-32, 32:-32] = False
    other = dataclasses.replace(one, sharp=torch.where(frame, 255 - one.sharp, one.sharp))
    assert trainer().train_step(one, 0.0) == trainer().train_step(other, 0.0)
    seen = dataclasses.replace(one, sharp=255 - one.sharp)
    assert trainer().train_step(one, 0.0)["pixels"] != trainer().train_step(seen, 0.0)["pixels"]


def test_statistics_are_those_of_the_whole_latent() -> None:
    one = batch(1, [view(0, cells=8)])
    assert one.latents[0].shape[-1] == 8 > one.cells
    outside = one.latents[0].clone()
    row, column = one.corners[0]
    outside[:3] += 1
    outside[:3, row : row + 6, column : column + 6] -= 1
    other = dataclasses.replace(one, latents=(outside,))
    assert trainer().train_step(one, 0.0)["pixels"] != trainer().train_step(other, 0.0)["pixels"]


EVERY: dict[str, tuple[str, dict[str, Any]]] = {
    "pixels": ("decoder", {"soft": 0.0}),
    "gradient": ("decoder", {"gradient": 0.0}),
    "reduced": ("decoder", {"reduced": 0.0}),
    "perceptual": ("decoder", {"perceptual": 0.0}),
    "adversarial": ("decoder", {"adversarial": 0.0}),
    "round trip": ("encoder", {"round_trip": 0.0}),
    "encoder's perceptual": ("encoder", {"perceptual": 0.0}),
}


@pytest.mark.parametrize("name", EVERY)
def test_every_loss_of_the_config_reaches_the_model(name: str, vgg: Vgg) -> None:
    """Each weight, set to 0, leads to other gradients."""
    part, changes = EVERY[name]
    gradients = []
    for given in ({}, changes):
        torch.manual_seed(0)
        one = batch(2, [view(0, cells=6, sharp=True)], sharp=0.0 if name == "pixels" else 1.0)
        of_lesson = {key: value for key, value in given.items() if key in ("perceptual", "adversarial")}
        one = dataclasses.replace(one, lesson=dataclasses.replace(one.lesson, **of_lesson))
        of_run = {key: value for key, value in given.items() if key not in of_lesson}
        trained = trainer(vgg=vgg, part=part, adversary_from=0.0, **of_run)
        with torch.no_grad():  # a new model's tokens change nothing yet
            trained.model.decode.upsampler.to_pixels.weight.normal_(0, 0.1)
        losses = trained.train_step(one, 0.5)
        assert all(math.isfinite(loss) for loss in losses.values())
        leaf = trained.model.encode.leave if part == "encoder" else trained.model.prefill.enter
        assert leaf is not None
        gradients.append(trained.optimizer.state[leaf.weight]["exp_avg"])
    assert gradients[0].abs().max() > 0
    assert (gradients[0] - gradients[1]).norm() > 1e-3 * gradients[0].norm()


def test_the_adversary_learns_first_and_is_heard_later(vgg: Vgg) -> None:
    trained = trainer(vgg=vgg, adversary_from=0.4)
    for done, learns, heard in ((0.0, False, False), (0.31, False, False), (0.33, True, False), (0.41, True, True)):
        before = [parameter.clone() for parameter in trained.adversary.parameters()]
        losses = trained.train_step(batch(1), done)
        after = list(trained.adversary.parameters())
        assert ("adversarial" in losses) == heard, done
        assert all(a.equal(b) for a, b in zip(before, after, strict=True)) != learns, done
    assert trained.balance is not None and trained.balance > 0


def test_the_adversary_is_listened_to_more_and_more_in_proportion_to_lpips(vgg: Vgg) -> None:
    found = []
    for done in (*(CONFIG.adversary_from + more for more in (0.02, 0.06, 0.08)), 0.9):
        torch.manual_seed(0)
        trained = trainer(vgg=vgg)
        trained.balance = 7.0  # as if it had been weighed before
        trained.step = 1
        found.append(trained.train_step(batch(1), done)["adversarial"].item())
    assert [each / found[-1] for each in found] == pytest.approx([0.25, 0.75, 1, 1], rel=1e-3)


@pytest.mark.parametrize("clean", [0.0, 0.5])
def test_what_is_sharp_alone_teaches_the_adversary_only_where_it_shall(clean: float, vgg: Vgg) -> None:
    """It is what an enlarger made, not a photograph."""
    trained = trainer(vgg=vgg)
    before = [parameter.clone() for parameter in trained.adversary.parameters()]
    one = batch(2, [view(0, sharp=True, photo=False)], sharp=1.0)
    losses = trained.train_step(dataclasses.replace(one, lesson=dataclasses.replace(one.lesson, clean=clean)), 0.9)
    assert "adversarial" in losses
    same = all(a.equal(b) for a, b in zip(before, trained.adversary.parameters(), strict=True))
    assert same == (clean == 0)


def test_lpips_sees_a_crop(vgg: Vgg, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    forward = Vgg.forward

    def seeing(self: Vgg, image: Tensor) -> list[Tensor]:
        sizes.append(tuple(image.shape[-2:]))
        return forward(self, image)

    monkeypatch.setattr(Vgg, "forward", seeing)
    trained = trainer(vgg=vgg, crop=48)
    for factor in (4, 1):
        trained.train_step(batch(factor), 0.0)
    assert sizes == [(48, 48)] * 2 + [(32, 32)] * 2


@pytest.mark.parametrize(("ema", "shares"), [(0.999, (10 / 11, 10 / 12)), (0.01, (0.99, 0.99))])
def test_the_checkpoint_is_an_average_that_forgets_the_start(
    tmp_path: Path, ema: float, shares: tuple[float, float]
) -> None:
    trained = trainer(ema=ema, lr=0.02, copied_share=1.0)
    weights = []
    for _ in range(3):
        trained.train_step(batch(1), 0.0)
        weights.append(trained.model.state_dict()["prefill.enter.weight"].clone())
    trained.save(tmp_path, 0.5)
    expected = weights[0]
    for share, weight in zip(shares, weights[1:], strict=True):
        expected = (1 - share) * expected + share * weight
    average = trained.average.state_dict()["prefill.enter.weight"]
    assert torch.allclose(average, expected, atol=1e-6) and not torch.allclose(average, weights[2], atol=1e-5)
    saved = load_checkpoint(tmp_path / "checkpoint").state_dict()
    assert all(value.equal(saved[name].half().float()) for name, value in saved.items())
    assert saved["prefill.enter.weight"].equal(average.half().float())


@pytest.mark.parametrize(("warmup", "began"), [(0, 0), (10, 0), (10, 500)])
def test_the_learning_rate_rises_and_falls(warmup: int, began: int) -> None:
    trained = trainer(warmup=warmup, final=0.05, lr=2e-3, copied_share=0.25, step=began)
    shares = []
    one = batch(1, cells=3)
    for step in range(20):
        trained.train_step(one, step / 16)
        new, copied = (group["lr"] for group in trained.optimizer.param_groups)
        assert copied == pytest.approx(0.25 * new)
        shares.append(new / 2e-3)
    cosine = [max(0.05, (1 + math.cos(math.pi * min(1, step / 16))) / 2) for step in range(20)]
    warm = [min(1, (step + 1) / max(1, warmup)) for step in range(20)]
    assert shares == pytest.approx([a * b for a, b in zip(cosine, warm, strict=True)])
    assert shares[-3:] == pytest.approx([0.05] * 3)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("config", [TINY, PAPER], ids=["edge", "paper"])
def test_every_parameter_that_learns_is_optimised_once(config: Any, part: str) -> None:
    run = dataclasses.replace(CONFIG, part=part)
    trained = Trainer(run, InfGen(config), None, CPU)
    names = {id(value): name for name, value in trained.model.named_parameters()}
    found = [(names[id(value)], group["peak"]) for group in trained.optimizer.param_groups for value in group["params"]]
    learning = [name for name in names.values() if name.startswith("encode.") == (part == "encoder")]
    assert sorted(name for name, _ in found) == sorted(learning)
    for name, peak in found:
        assert peak == (run.copied_share * run.lr if name.startswith(COPIED) else run.lr)
    copied = {name for name, _ in found if name.startswith(COPIED)}
    assert bool(copied) == (part == "encoder" or config is TINY)
    assert not any(name.startswith("decode.") for name in copied)


def test_copied_layers_are_those_that_a_warm_start_fills() -> None:
    model = tiny_model()
    groups = make_optimizer([model], dataclasses.replace(CONFIG, copied_share=0.5)).param_groups
    names = {id(value): name for name, value in model.named_parameters()}
    slow = {names[id(value)] for value in groups[1]["params"]}
    assert {
        "prefill.enter.weight",
        "refine.grow.2.weight",
        "refine.enlarger.to_picture.bias",
        "encode.leave.bias",
    } < slow
    assert not any(
        name.startswith(("refine.enlarger.leave", "refine.enlarger.blocks", "encode.enter")) for name in slow
    )


def test_a_step_without_a_finite_gradient_is_left_out_and_many_in_a_row_end_the_run() -> None:
    learner, one = trainer(), batch(4)
    broken = dataclasses.replace(one, latents=tuple(torch.full_like(each, float("nan")) for each in one.latents))
    before = state(learner.model)
    learner.train_step(broken, 0.0)
    assert all(value.equal(before[name]) for name, value in learner.model.state_dict().items())
    learner.train_step(one, 0.0)
    assert any(not value.equal(before[name]) for name, value in learner.model.state_dict().items())
    with pytest.raises(Diverged, match="no gradient was finite"):
        for _ in range(20):
            learner.train_step(broken, 0.0)


def test_batches_that_are_made_ahead_are_in_order() -> None:
    batches = Batches(some_views(), CONFIG, TINY.enlargements)
    ahead: Iterator[Batch] = drawn(batches, 7)
    for step in range(7, 15):
        mine, expected = next(ahead), batches.draw(step)
        assert mine.corners == expected.corners and mine.small.equal(expected.small)


@pytest.mark.slow
def test_a_compiled_model_learns_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shapes that change included; its state has the names of any other model's.

    The graphs are captured as for a GPU, and run without generated code, which takes minutes to compile for a CPU.
    """
    captured = partialmethod(nn.Module.compile, backend="aot_eager")
    monkeypatch.setattr(nn.Module, "compile", captured)
    plain, compiled = trainer(), trainer(compile=True)
    for one in (batch(1), batch(2), batch(4, batch=2), batch(4, between=1.0)):
        losses = [each.train_step(one, 0.0) for each in (plain, compiled)]
        assert losses[0].keys() == losses[1].keys()
        for name, loss in losses[0].items():
            assert torch.allclose(loss, losses[1][name], rtol=1e-3), name
    compiled.save(tmp_path, 0.0)
    assert load_checkpoint(tmp_path / "checkpoint").state_dict().keys() == plain.model.state_dict().keys()


# The config.


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"preset": "huge"}, "preset 'huge' is unknown: expected one of edge, paper"),
        ({"part": "head"}, "part 'head' is unknown: expected one of decoder, encoder"),
        ({"lessons": ()}, "lessons must have shares"),
        ({"lessons": (Lesson(1, 0.0, 1, 0, 0),)}, "lessons must have shares"),
        ({"lessons": (Lesson(1, 2.0, 1, 0, 0), Lesson(2, -1.0, 1, 0, 0))}, "lessons must have shares"),
        ({"lessons": (Lesson(8, 1.0, 1, 0, 0),)}, "a factor from 1 to 4 and a batch of 1 or more, not 8 and 1"),
        ({"lessons": (Lesson(2, 1.0, 0, 0, 0),)}, "a factor from 1 to 4 and a batch of 1 or more, not 2 and 0"),
        ({"cells": 4, "margin": 2}, "a margin of 2 cells leaves nothing of 4"),
        ({"minutes": 0.0}, "minutes must be above 0"),
        ({"sharpen": -0.1}, "sharpen must be 0 or above and finite, not -0.1"),
        ({"sharpen": 0.4, "part": "encoder"}, "sharpen is for the parts decoder and shared, not for encoder"),
        ({"part": "largest"}, "the part largest learns at scale 4 only: give lessons of factor 4, and between=0"),
        (LARGEST | {"between": 0.2}, "the part largest learns at scale 4 only"),
        *(({name: float("nan")}, f"{name} ") for name in ("lr", "ema", "clip", "minutes", "noise", "grid", "final")),
        ({"lr": -1.0}, "lr must be above 0 and finite, not -1"),
        ({"ema": 2.0}, r"ema is a share, in \[0, 1\], not 2"),
        ({"seed": -1}, "seed must be 0 or above"),
        ({"crop": 0}, "crop must be 32 or more"),
        ({"lessons": (Lesson(2, 1.0, 1, float("nan"), 0),)}, "a lesson's weights must be 0 or above and finite"),
        ({"sharp": 1.5}, r"sharp is a share, in \[0, 1\], not 1.5"),
    ],
)
def test_impossible_configs_are_refused(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        TrainConfig(**changes)


# The command.

SETTINGS = {
    "minutes": 0.1,
    "warmup": 1,
    "cells": 3,
    "bfloat16": False,
    "lessons": [dataclasses.asdict(each) for each in LESSONS],
}
SECONDS = 6
"""That a run of those settings takes, a second per step."""


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    save_shards(folder, some_views(), "some")
    return folder


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a run of a tiny preset goes; on a clock on which every step takes a second and nothing else any time."""
    monkeypatch.setitem(PRESETS, "edge", lambda space, channels: dataclasses.replace(TINY, latent_channels=channels))
    now, train_step = [100.0], Trainer.train_step

    def timed(self: Trainer, one: Batch, done: float) -> dict[str, Tensor]:
        now[0] += 1
        return train_step(self, one, done)

    monkeypatch.setattr(train, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(Trainer, "train_step", timed)
    return tmp_path / "run"


def run(shards: Path, folder: Path, *options: object, **changes: object) -> Result:
    given = ["--shards", shards, "-o", folder, *options, "--device", "cpu"]
    settings = changes if (folder / "train.json").exists() else SETTINGS | changes
    for name, value in settings.items():
        given += ["--set", f"{name}={value if isinstance(value, str) else json.dumps(value)}"]
    return CliRunner().invoke(main, [*map(str, given)])


def progress(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "progress.json").read_text())
    return found


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_from_shards_to_a_checkpoint(
    shards: Path, folder: Path, vgg_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "_SAY_EVERY", 3)
    result = run(shards, folder, "--vgg", vgg_file, cells=6, adversary_from=0.4)
    assert result.exit_code == 0, result.output
    assert set(contents(folder)) == {
        "checkpoint/config.json",
        "checkpoint/model.safetensors",
        "adversary.safetensors",
        "train.json",
        "progress.json",
        "log.jsonl",
    }
    weights = load_file(folder / "checkpoint" / "model.safetensors")
    assert all(value.dtype == torch.float16 for value in weights.values())
    judge = load_file(folder / "adversary.safetensors")
    assert all(value.dtype == torch.float16 for name, value in judge.items() if name != "scales")
    assert judge["scales"].min() > 0
    assert progress(folder) == {
        "step": SECONDS,
        "minutes": pytest.approx(0.1),
        "balance": pytest.approx(progress(folder)["balance"], abs=0),
    }
    assert progress(folder)["balance"] > 0
    config = json.loads((folder / "train.json").read_text())
    assert set(config) == {field.name for field in dataclasses.fields(TrainConfig)} and config["cells"] == 6
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == [3, 6] and log[1]["minutes"] == pytest.approx(5 / 60)
    names = {name for line in log for name in line} - {"step", "minutes"}
    assert {name.split(" ")[1] for name in names} >= {"pixels", "perceptual", "adversarial"}
    assert all(math.isfinite(value) for line in log for value in line.values())
    assert "step 3, 0.0 min: " in result.output and "step 6, 0.1 min: " in result.output
    assert load_checkpoint(folder / "checkpoint").config == TINY
    # All of it is taken up again.
    again = run(shards, folder, "--vgg", vgg_file, minutes=0.12)
    assert again.exit_code == 0, again.output
    assert progress(folder)["step"] in (7, 8) and load_file(folder / "adversary.safetensors")["scales"].equal(
        judge["scales"]
    )


def test_a_slice_stops_in_time_and_the_next_one_goes_on(
    shards: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, float, list[float]]] = []
    train_step = Trainer.train_step

    def watched(self: Trainer, one: Batch, done: float) -> dict[str, Tensor]:
        losses = train_step(self, one, done)
        seen.append((self.step, done, [group["lr"] for group in self.optimizer.param_groups]))
        return losses

    monkeypatch.setattr(Trainer, "train_step", watched)
    for steps in (2, 4):
        assert run(shards, folder, "--minutes", 2 / 60).exit_code == 0
        assert progress(folder) == {"step": steps, "minutes": pytest.approx(steps / 60), "balance": None}
    assert run(shards, folder).exit_code == 0
    assert progress(folder)["step"] == SECONDS
    assert [step for step, *_ in seen] == [1, 2, 3, 4, 5, 6]
    assert [done for _, done, _ in seen] == pytest.approx([step / SECONDS for step in range(SECONDS)])
    # The schedule is that of a run that was not interrupted.
    lr = TrainConfig.lr
    cosine = [lr * (1 + math.cos(math.pi * step / SECONDS)) / 2 for step in range(SECONDS)]
    assert [rates[0] for *_, rates in seen] == pytest.approx(cosine)
    before = contents(folder)
    assert run(shards, folder).exit_code == 0  # done
    assert contents(folder) == before
    assert run(shards, folder, minutes=0.15).exit_code == 0
    assert progress(folder)["step"] == 9


def test_a_pause_is_not_training(shards: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train_step = Trainer.train_step

    def stopped(self: Trainer, one: Batch, done: float) -> dict[str, Tensor]:
        if self.step == 1:
            for _ in range(1000):
                train_step.__closure__[0].cell_contents[0] += 1  # type: ignore[index]
        return train_step(self, one, done)

    monkeypatch.setattr(Trainer, "train_step", stopped)
    assert run(shards, folder, minutes=0.2).exit_code == 0
    assert progress(folder)["step"] == 12 - 4  # the second took five


def test_a_run_is_saved_now_and_then_and_goes_on_from_there(
    shards: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_step = Trainer.train_step

    def killed(self: Trainer, one: Batch, done: float) -> dict[str, Tensor]:
        if self.step == 5:
            raise KeyboardInterrupt
        return train_step(self, one, done)

    monkeypatch.setattr(Trainer, "train_step", killed)
    assert run(shards, folder, save_every=1.5 / 60).exit_code != 0
    assert progress(folder) == {"step": 4, "minutes": pytest.approx(4 / 60), "balance": None}
    monkeypatch.setattr(Trainer, "train_step", train_step)
    assert run(shards, folder).exit_code == 0
    assert progress(folder)["step"] == SECONDS
    assert not list(folder.rglob("*.partial"))


def test_a_preset_and_a_seed_decide_all_of_a_run(shards: Path, folder: Path) -> None:
    states = []
    for number, seed in enumerate((5, 5, 6)):
        assert run(shards, folder, seed=seed).exit_code == 0
        states.append(contents(folder / "checkpoint"))
        folder.rename(folder.parent / f"run{number}")
    assert states[0] == states[1] != states[2]


def test_a_model_without_enlargements_is_trained_too(
    shards: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PRESETS, "paper", lambda space, channels: PAPER)
    result = run(shards, folder, preset="paper", between=0.5)
    assert result.exit_code == 0, result.output
    assert load_checkpoint(folder / "checkpoint").config == PAPER


@pytest.mark.parametrize("part", PARTS)
def test_a_run_starts_from_a_checkpoint(shards: Path, folder: Path, part: str) -> None:
    start = folder.parent / "start"
    model = tiny_model(7)
    for value in model.state_dict().values():
        value.copy_(value.half())
    save_checkpoint(start, model)
    result = run(shards, folder, "--start", start, part=part)
    assert result.exit_code == 0, result.output
    trained = load_checkpoint(folder / "checkpoint")
    found = {name.split(".")[0] for name in changed(trained, state(model))}
    assert found == ({"encode"} if part == "encoder" else {"prefill", "refine", "decode"})
    # Only a new run starts there.
    shutil.rmtree(start)
    start.mkdir()
    assert run(shards, folder, "--start", start, minutes=0.12).exit_code == 0
    result = run(shards, folder.parent / "other", "--start", start)
    assert result.exit_code == 1 and "start lacks config.json" in result.output


def test_a_run_learns_the_sharpened_pictures_of_its_start(shards: Path, folder: Path) -> None:
    result = run(shards, folder, sharpen=0.4)
    assert result.exit_code == 1 and "sharpen needs --start, the checkpoint of the model whose" in result.output
    save_checkpoint(folder.parent / "start", tiny_model(7))
    for _ in range(2):  # a continued run too
        result = run(shards, folder, "--start", folder.parent / "start", "--minutes", 0.02, sharpen=0.4)
        assert result.exit_code == 0, result.output


def test_a_new_run_starts_from_the_networks_of_others(
    shards: Path, folder: Path, enlarger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trunk, encoder and enlarger are copied, and what leaves the enlarger is fitted to the views."""
    teacher = folder.parent / "autoencoder.py"
    teacher.write_text(
        "from tests.training.test_warmstart import decoder, encoder\n"
        "import torch\n"
        "torch.manual_seed(1)\n"
        "DECODER, ENCODER = decoder(blocks=1), encoder(blocks=1)\n"
        "def load_decoder():\n    return DECODER\n"
        "def load_encoder():\n    return ENCODER\n"
    )
    result = run(shards, folder, "--teacher", teacher, "--enlarger", enlarger, "--minutes", 0)
    assert result.exit_code == 0, result.output
    assert progress(folder) == {"step": 0, "minutes": 0, "balance": None}
    model, expected = load_checkpoint(folder / "checkpoint"), tiny_model()
    origin = load_function(teacher, "load_decoder")()
    latent = torch.randn(1, 32, 4, 5)
    with torch.inference_mode():
        assert torch.allclose(model(latent, (32, 40)), origin(latent), atol=0.01)
    assert model.refine is not None and expected.refine is not None
    network = load_function(enlarger, "load_animevideo")()
    ours, theirs = (each.weight.flatten() for each in (model.refine.enlarger.enter, network.body[0]))
    assert torch.allclose(ours / ours.norm(), theirs / theirs.norm(), atol=1e-3)  # but for their scale
    assert all(value.abs().max() > 0 for value in model.refine.enlarger.leave.parameters())
    assert not torch.allclose(model.encode.leave.weight, expected.encode.leave.weight, atol=1e-3)
    # A run that goes on needs neither.
    for file in (teacher, enlarger):
        file.write_text("raise RuntimeError('nobody needs this')")
    assert run(shards, folder, "--teacher", teacher, "--enlarger", enlarger).exit_code == 0
    assert progress(folder)["step"] == SECONDS


def test_networks_that_do_not_fit_are_named(shards: Path, folder: Path, teacher: Path, enlarger: Path) -> None:
    for options, text in (
        (["--teacher", teacher], "the teacher is not one that this model can start from: 1.weight should have shape"),
        (["--teacher", enlarger], "enlarger.py defines no function load_encoder()"),
        (["--enlarger", teacher], "teacher.py defines no function load_animevideo()"),
        (["--vgg", teacher], "teacher.py does not hold VGG16 and LPIPS's weights"),
    ):
        result = run(shards, folder, *options)
        assert result.exit_code == 1 and text in result.output, result.output
        assert not folder.exists()


def test_a_run_that_diverges_stops_and_keeps_what_was_saved(shards: Path, folder: Path) -> None:
    assert run(shards, folder).exit_code == 0
    before = {name: value for name, value in contents(folder).items() if name != "train.json"}
    result = run(shards, folder, minutes=0.5, lr=1e30, save_every=0.1)
    assert result.exit_code == 1
    assert "at step 17 the loss is " in result.output and "the same command with a lower lr goes on" in result.output
    assert {name: value for name, value in contents(folder).items() if name != "train.json"} == before
    assert run(shards, folder, minutes=0.15, lr=1e-4, save_every=5.0).exit_code == 0
    assert progress(folder)["step"] == 9


def test_a_run_keeps_what_its_weights_were_made_with(shards: Path, folder: Path) -> None:
    assert run(shards, folder, part="decoder").exit_code == 0
    before = contents(folder)
    for name, value in {
        "preset": "paper", "part": "encoder", "latent_space": "sdxl", "latent_channels": 16,
    }.items():  # fmt: skip
        result = run(shards, folder, **{name: value})
        assert result.exit_code == 1 and f"was made with {name} " in result.output, result.output
        assert f"not {value}: use another folder for a new run" in " ".join(result.output.split())
    assert contents(folder) == before
    # All else may change, and is kept in turn.
    assert run(shards, folder, lr=1e-3, minutes=0.12).exit_code == 0
    assert run(shards, folder).exit_code == 0
    config = json.loads((folder / "train.json").read_text())
    assert (config["lr"], config["minutes"], config["cells"]) == (1e-3, 0.12, 3)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "field": ({"colour": "red"}, "unknown field 'colour'"),
    "type": ({"minutes": "many"}, "config.minutes is str, expected float"),
    "lesson": ({"lessons": [{"factor": 2}]}, "config.lessons[0] lacks 'share'"),
    "preset": ({"preset": "huge"}, "preset 'huge' is unknown: expected one of edge, paper"),
    "cells": ({"cells": 2}, "a margin of 1 cells leaves nothing of 2"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_settings_are_named(shards: Path, folder: Path, name: str) -> None:
    changes, text = BAD[name]
    result = run(shards, folder, **changes)
    assert result.exit_code == 2 and text in result.output
    assert not folder.exists()


def test_views_that_do_not_fit_are_named(shards: Path, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for options, changes, text in (
        ((tmp_path / "empty", folder), {}, "no shards (*.safetensors) in "),
        ((shards, folder), {"cells": 20}, "none of 6 views has 20 cells per side"),
        ((shards, folder), {"latent_channels": 16}, "the views' latents have 32 channels, those of the model 16"),
    ):
        result = run(*options, **changes)  # type: ignore[arg-type]
        assert result.exit_code == 1 and text in " ".join(result.output.split()), result.output
        assert not folder.exists()


def test_a_config_that_cannot_be_read_is_named(shards: Path, folder: Path) -> None:
    folder.mkdir()
    (folder / "train.json").write_text("{")
    result = run(shards, folder)
    assert result.exit_code == 1 and "train.json is damaged" in result.output


def test_weights_that_are_not_finite_never_replace_those_of_a_run(shards: Path, folder: Path) -> None:
    assert run(shards, folder, "--minutes", 0.02).exit_code == 0
    before = contents(folder)
    trained = trainer()
    with torch.no_grad():
        next(trained.average.parameters()).fill_(torch.nan)
    with pytest.raises(InputError, match="is not written: 1 tensors hold NaN or infinity"):
        trained.save(folder, 0.0)
    assert contents(folder) == before


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("progress.json", "garbage", "progress.json is damaged"),
        ("progress.json", "[]", "progress.json is damaged: it has no JSON object"),
        ("progress.json", '{"step": "many"}', "progress.json is damaged: step is 'many'"),
        ("progress.json", None, "lacks progress.json, which tells where it stands"),
        ("adversary.safetensors", "garbage", "adversary.safetensors is damaged"),
        ("train.json", "[]", "train.json is damaged: it has no JSON object"),
        ("train.json", '{"minutes": -1.0}', "train.json is damaged: minutes must be above 0"),
    ],
)
def test_a_damaged_file_of_a_run_is_named(
    shards: Path, folder: Path, name: str, content: str | None, text: str
) -> None:
    assert run(shards, folder, "--minutes", 0.02).exit_code == 0
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_text(content)
    before = contents(folder)
    result = run(shards, folder, "--minutes", 0.02, grid=1.0)
    assert result.exit_code == 1 and text in result.output.replace("\n", "")
    assert contents(folder) == before


@pytest.mark.parametrize("device", ["foo", "cuda:99"])
def test_a_device_that_cannot_be_used_is_found_before_work(shards: Path, folder: Path, device: str) -> None:
    result = CliRunner().invoke(main, ["--shards", str(shards), "-o", str(folder), "--device", device])
    assert result.exit_code == 2 and f"'{device}' cannot be used" in result.output and not folder.exists()
