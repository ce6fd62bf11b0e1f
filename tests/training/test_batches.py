"""Batches are decided by their step, and show what their latents do."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from infgen_rt.errors import InputError
from infgen_training.batches import Batch, Batches
from infgen_training.config import Lesson, TrainConfig
from infgen_training.views import View

from .conftest import TINY, some_views, view

CPU = torch.device("cpu")
ONCE, TWICE, FOUR = (Lesson(factor, 1.0, 2, 0.4, 0.4) for factor in (1, 2, 4))
CONFIG = TrainConfig(cells=4, lessons=(ONCE, TWICE, FOUR), between=0.0, noise=0.0)


def batches(views: Sequence[View] | None = None, **changes: Any) -> Batches:
    config = dataclasses.replace(CONFIG, **changes)
    return Batches(some_views() if views is None else views, config, TINY.enlargements)


def draw(count: int, views: Sequence[View] | None = None, **changes: Any) -> list[Batch]:
    drawing = batches(views, **changes)
    return [drawing.draw(step) for step in range(count)]


def colours(batch: Batch, latents: Sequence[Tensor] | None = None) -> Tensor:
    """[B, 3, cells, cells] of the squares that are decoded, as the latents tell them."""
    parts = []
    for latent, (row, column) in zip(latents or batch.latents, batch.corners, strict=True):
        parts.append(latent[:3, row : row + batch.cells, column : column + batch.cells])
    return torch.stack(parts)


def test_a_step_always_has_the_same_batch() -> None:
    changes: dict[str, Any] = {"between": 0.5, "noise": 0.03}
    first, again, other = (draw(6, **changes, seed=seed) for seed in (0, 0, 1))
    late = batches(**changes).draw(5)
    for a, b in (*zip(first, again, strict=True), (first[5], late)):
        assert (a.lesson, a.scale, a.corners) == (b.lesson, b.scale, b.corners)
        assert all(x.equal(y) for x, y in zip(a.latents, b.latents, strict=True))
        assert a.target(CPU).equal(b.target(CPU)) and a.real(CPU).equal(b.real(CPU))
    assert [each.corners for each in first] != [each.corners for each in other]
    assert len({each.corners for each in first}) > 1


@pytest.mark.parametrize("between", [0.0, 1.0])
@pytest.mark.parametrize("sharp", [0.0, 1.0])
def test_targets_show_what_the_latents_do(sharp: float, between: float) -> None:
    for batch in draw(24, sharp=sharp, between=between):
        small, target, real = (picture(CPU) for picture in (batch.encoded, batch.target, batch.real))
        side = round(8 * 4 * batch.scale)
        assert batch.side == side and target.shape == real.shape == (2, 3, side, side)
        assert small.shape == (2, 3, 32, 32) and target.dtype == torch.float32
        told = colours(batch)
        assert F.avg_pool2d(small, 8).sub(told).abs().max() < 0.003
        negative = batch.sharp is not None
        assert negative == (sharp == 1 and batch.lesson.factor > 1)
        shown = F.interpolate(target, size=(4, 4), mode="area")
        assert shown.sub(1 - told if negative else told).abs().mean() < 0.02
        true = F.interpolate(real, size=(4, 4), mode="area")
        # What is real is the photograph, where every view has one.
        assert true.sub(1 - told if negative and batch.photo is None else told).abs().mean() < 0.02
        assert target.min() >= 0 and target.max() <= 1


def test_targets_at_an_enlargement_of_four_are_the_pictures_own_pixels() -> None:
    only = [view(0, cells=4)]
    for batch in draw(3, only, lessons=(FOUR,)):
        assert batch.corners == ((0, 0), (0, 0))
        assert only[0].photo is not None
        expected = torch.from_numpy(only[0].photo).permute(2, 0, 1)
        assert batch.target(CPU).equal(expected.float().div(255).expand(2, -1, -1, -1))


def test_at_scale_1_the_target_is_what_was_encoded() -> None:
    for batch in draw(6, lessons=(ONCE,), between=1.0):
        assert batch.scale == 1 and batch.is_native and batch.sharp is None and batch.photo is None
        assert batch.target(CPU).equal(batch.encoded(CPU)) and batch.real(CPU).equal(batch.encoded(CPU))
    assert not any(batch.is_native for batch in draw(6, lessons=(TWICE, FOUR)))


def test_lessons_have_their_shares_of_the_steps() -> None:
    shares = {1: 0.2, 2: 0.5, 4: 1.3}
    lessons = tuple(Lesson(factor, share, 1, 0.4, 0.4) for factor, share in shares.items())
    found = [batch.lesson.factor for batch in draw(600, [view(0, cells=4)], lessons=lessons)]
    for factor, share in shares.items():
        assert found.count(factor) / 600 == pytest.approx(share / 2, abs=0.06)
    assert not any(
        batch.lesson is lessons[1]
        for batch in draw(60, lessons=(lessons[0], dataclasses.replace(lessons[1], share=0.0)))
    )


def test_scales_in_between_lie_between_two_enlargements() -> None:
    found = draw(300, [view(0, cells=4)], between=0.4)
    for factor, below in ((2, 1), (4, 2)):
        scales = [batch.scale for batch in found if batch.lesson.factor == factor]
        assert all(below < scale <= factor for scale in scales)
        other = [scale for scale in scales if scale != factor]
        assert len(other) / len(scales) == pytest.approx(0.4, abs=0.15)
        assert max(other) - min(other) > 0.7 * (factor - below)


def test_noise_is_on_latents_alone_and_bounded() -> None:
    quiet, loud = (draw(20, between=0.5, noise=noise) for noise in (0.0, 0.1))
    spreads = []
    for a, b in zip(quiet, loud, strict=True):
        assert b.target(CPU).shape[0] == 2
        for latent, (row, column), small in zip(b.latents, b.corners, b.small, strict=True):
            true = F.avg_pool2d(small[None].float() / 255, 8)[0]
            noise = latent[:3, row : row + 4, column : column + 4] - true
            spreads.append(float(noise.std()))
            assert float(latent[3:].std()) < 0.12
        assert all(float(latent[3:].abs().max()) == 0 for latent in a.latents)
    assert max(spreads) < 0.15 and max(spreads) > 0.05 > min(spreads)


def test_an_encoder_learns_latents_without_noise() -> None:
    for batch in draw(6, part="encoder", noise=0.1):
        assert all(float(latent[3:].abs().max()) == 0 for latent in batch.latents)


@pytest.mark.parametrize("share", [0.3, 0.7])
def test_sharp_views_are_used_in_their_share(share: float) -> None:
    found = draw(400, lessons=(TWICE,), sharp=share)
    assert np.mean([batch.sharp is not None for batch in found]) == pytest.approx(share, abs=0.08)
    # A batch of sharp views in which one has no photograph has none.
    sharp = [batch for batch in found if batch.sharp is not None]
    assert 0 < sum(batch.photo is None for batch in sharp) < len(sharp)
    assert all(batch.photo is not None for batch in found if batch.sharp is None)


@pytest.mark.parametrize("clean", [0.0, 0.4, 1.0])
def test_clean_steps_of_a_lesson_compare_with_sharp_pictures(clean: float) -> None:
    lessons = (dataclasses.replace(FOUR, clean=clean), TWICE)
    found = draw(300, [view(0, cells=4, sharp=True)], sharp=1.0, lessons=lessons)
    four = [batch for batch in found if batch.lesson.factor == 4]
    share = sum(batch.real(CPU).equal(batch.target(CPU)) for batch in four) / len(four)
    assert share == pytest.approx(clean, abs=0.1)
    assert not any(batch.real(CPU).equal(batch.target(CPU)) for batch in found if batch.lesson.factor == 2)


def test_without_sharp_views_all_is_learnt_from_photographs() -> None:
    found = draw(10, [view(seed) for seed in range(3)], lessons=(FOUR,), sharp=1.0)
    assert all(batch.sharp is None and batch.photo is not None for batch in found)


def test_a_batch_has_every_view_once_if_there_are_enough() -> None:
    large = dataclasses.replace(ONCE, batch=4)
    views = [view(seed) for seed in range(4)]
    for batch in draw(5, views, lessons=(large,)):
        assert len({tuple(latent[:3].flatten().tolist()) for latent in batch.latents}) == 4
    (batch,) = draw(1, views[:1], lessons=(large,))
    assert len(batch.latents) == 4


def test_views_that_are_too_small_are_left_out() -> None:
    for batch in draw(10, [view(0, cells=3), view(1, cells=6)]):
        assert all(latent.shape[-1] == 6 for latent in batch.latents)


def test_views_that_teach_nothing_are_refused() -> None:
    sharp = [view(0, sharp=True, photo=False)]
    refused: list[tuple[list[View], dict[str, Any], str]] = [
        ([view(0, cells=3), view(1, cells=2)], {}, r"none of 2 views has 4 cells .*--set cells=3"),
        (sharp, {}, "own size, .* without an enlarger, or learn from sharp pictures alone with --set sharp=1"),
        ([view(0, photo=False)], {"sharp": 1.0}, "own size, .* without an enlarger$"),
    ]
    for views, changes, text in refused:
        with pytest.raises(InputError, match=text):
            batches(views, **changes)
    for views, changes in (
        (sharp, {"sharp": 1.0}),
        (sharp, {"lessons": (ONCE,)}),
        (sharp, {"lessons": (ONCE, dataclasses.replace(TWICE, share=0.0))}),
    ):
        assert len(batches(views, **changes).draw(0).latents) == 2
