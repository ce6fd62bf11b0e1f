"""Batches: latents and the very pixels that they stand for."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from infgen_export.model.sampling import bilinear
from infgen_training.data import Batch, LatentCache, Sampler, View, load_photos, random_view, to_tensor
from infgen_training.teacher import Teacher

from .conftest import gradient

# About one pixel of the photographs, whose colours go from 0 to 255 over 200 to 300 pixels.
LEVEL = 1 / 255
SHAPES = ((12, 10), (9, 13))


@pytest.fixture
def cache(photos: Path, teacher: Path) -> LatentCache:
    pictures = load_photos(photos)
    return LatentCache.build(pictures, Teacher.load(teacher), SHAPES, 24, 4.0, 0.0, seed=1, device=torch.device("cpu"))


def sampler(photos: Path, cache: LatentCache, **changes: object) -> Sampler:
    settings = {
        "seed": 3,
        "scale_range": (0.5, 4.0),
        "tile": 6,
        "cells": 500,
        "native_share": 0.2,
        "latent_noise": 0.0,
    }
    return Sampler(load_photos(photos), cache, **(settings | changes))


def error(batch: Batch) -> Tensor:
    """Difference in colour between the pixels of each token and the latent at its place, wherever both are known."""
    grid = batch.grid
    at_tokens = bilinear(batch.latent[:, :3], *grid.places(), grid.ends()).permute(0, 2, 3, 1)
    colours = F.avg_pool2d(batch.target, 8).permute(0, 2, 3, 1)
    known = [
        # Beyond the outermost centres there is nothing to interpolate; beyond the picture there are no pixels.
        (token >= 0.5) & (token <= cells - 0.5) & (token + 0.5 / scale <= cells + 1e-3)
        for token, cells, scale in zip((grid.token_y, grid.token_x), grid.extent, grid.scale, strict=True)
    ]
    return (at_tokens - colours)[:, known[0]][:, :, known[1]]


def test_targets_show_what_the_latents_do(photos: Path, cache: LatentCache) -> None:
    batches = sampler(photos, cache)
    seen = []
    for step in range(80):
        batch = batches.batch(step)
        difference = error(batch)
        if difference.numel():
            assert difference.abs().max() < LEVEL, step
            # A shift is the same everywhere, unlike rounding and the filter at a photograph's edge.
            assert difference.mean((1, 2)).abs().max() < 0.4 * LEVEL, step
            seen.append(batch.grid)
        assert batch.target.min() >= 0 and batch.target.max() <= 1
        assert batch.target.shape == (len(batch.latent), 3, 8 * len(batch.grid.token_y), 8 * len(batch.grid.token_x))
    # The draws had everything that can go wrong.
    assert len(seen) > 60 and {view.flip for view in cache.views} == {True, False}
    assert sum(grid.token_y[0] * grid.scale[0] > 1 for grid in seen) > 10, "tiles away from the top"
    assert sum(grid.token_x[0] * grid.scale[1] > 1 for grid in seen) > 10, "tiles away from the left"
    assert sum(grid.scale.min() < 0.9 for grid in seen) > 5 and sum(grid.scale.max() > 2 for grid in seen) > 10
    assert sum(grid.scale[0] != grid.scale[1] for grid in seen) > 30, "stretched"
    assert sum(torch.equal(grid.scale, torch.ones(2)) for grid in seen) > 5, "native"


def test_native_batches_are_whole_pictures_at_scale_1(photos: Path, cache: LatentCache) -> None:
    batches, shapes = sampler(photos, cache), set()
    for step in range(8):
        batch = batches.native(step)
        height, width = batch.latent.shape[2:]
        shapes.add((height, width))
        assert torch.equal(batch.grid.scale, torch.ones(2))
        assert batch.target.shape == (len(batch.latent), 3, 8 * height, 8 * width)
        assert (F.avg_pool2d(batch.target, 8) - batch.latent[:, :3]).abs().max() < 0.75 * LEVEL
    assert shapes == set(SHAPES)


def test_tokens_beyond_the_picture_repeat_its_edge(photos: Path, cache: LatentCache) -> None:
    batches = sampler(photos, cache, tile=1000)
    for step in range(20):
        batch = batches.batch(step)
        height, width = (round(8 * float(n * s)) for n, s in zip(batch.grid.extent, batch.grid.scale, strict=True))
        below, beside = batch.target[:, :, height:], batch.target[..., width:]
        assert torch.equal(below, batch.target[:, :, height - 1 : height].expand_as(below))
        assert torch.equal(beside, batch.target[..., width - 1 : width].expand_as(beside))


def test_a_step_always_gives_the_same_batch(photos: Path, cache: LatentCache) -> None:
    first, second = (sampler(photos, cache, latent_noise=0.1) for _ in range(2))
    forwards = [(first.batch(step), first.native(step)) for step in range(5)]
    backwards = [(second.batch(step), second.native(step)) for step in reversed(range(5))][::-1]
    for one, other in zip(forwards, backwards, strict=True):
        for a, b in zip(one, other, strict=True):
            assert torch.equal(a.latent, b.latent) and torch.equal(a.target, b.target)
            assert all(np.array_equal(value, vars(b.grid)[name]) for name, value in vars(a.grid).items())
    assert len({batch.target.sum().item() for batch, _ in forwards}) == 5
    other_seed = sampler(photos, cache, latent_noise=0.1, seed=4).batch(0)
    assert other_seed.latent.shape != forwards[0][0].latent.shape or not torch.equal(
        other_seed.latent, forwards[0][0].latent
    )


def test_noise_is_on_latents_only_and_bounded(photos: Path, cache: LatentCache) -> None:
    clean, noisy = sampler(photos, cache), sampler(photos, cache, latent_noise=0.2)
    deviations = []
    for step in range(12):
        a, b = clean.batch(step), noisy.batch(step)
        assert torch.equal(a.target, b.target)
        deviations.append((a.latent - b.latent).std().item())
    assert 0 < min(deviations) < 0.1 < max(deviations) < 0.205


def test_tiles_and_batches_keep_to_their_size(photos: Path, cache: LatentCache) -> None:
    batches = sampler(photos, cache, native_share=1.0, tile=5, cells=360)
    for step in range(10):
        batch = batches.batch(step)
        assert batch.target.shape[2:] == (40, 40)
        assert len(batch.latent) == round(360 / batch.latent[0, 0].numel())


def test_only_views_with_enough_detail_are_enlarged(photos: Path, cache: LatentCache) -> None:
    # Each latent is made to say how far its view was reduced.
    reductions = [view.reduction for view in cache.views]
    cache.latents = [torch.full_like(latent, n) for latent, n in zip(cache.latents, reductions, strict=True)]
    batches = sampler(photos, cache, native_share=0.0, scale_range=(1.0, 1.9))
    for step in range(40):
        batch = batches.batch(step)
        assert batch.latent.min() >= 0.95 * batch.grid.scale.max() - 0.02


@settings(deadline=None)
@given(st.integers(8, 300), st.integers(8, 300), st.tuples(st.integers(1, 40), st.integers(1, 40)), st.integers(0, 999))
def test_a_view_never_leaves_its_photograph(width: int, height: int, cells: tuple[int, int], seed: int) -> None:
    photo = Image.new("RGB", (width, height), "white")
    view = random_view(np.random.default_rng(seed), [photo], cells, 4.0)
    assert 0 < view.reduction <= 4.0 and view.x >= 0 and view.y >= 0
    assert view.x + 8 * cells[1] * view.reduction <= width + 1e-6
    assert view.y + 8 * cells[0] * view.reduction <= height + 1e-6
    assert np.all(view.pixels(photo, (5, 7), (0, 0, 1, 1)) == 255)


def test_views_that_fill_a_photograph_survive_rounding() -> None:
    """81 / (8 * 35) * (8 * 35) is a little more than 81."""
    photo = Image.new("RGB", (400, 81))
    for seed in range(30):
        view = random_view(np.random.default_rng(seed), [photo], (35, 35), 4.0)
        assert view.pixels(photo, (8, 8), (0, 0, 1, 1)).shape == (8, 8, 3)


@pytest.mark.parametrize("flip", [False, True])
def test_a_part_of_a_view_is_a_crop_of_the_whole(flip: bool) -> None:
    photo = gradient(400, 300, 0.5)
    view = View(0, 31.7, 12.3, 1.9, (16, 20), flip)
    whole = to_tensor(view.pixels(photo, (160, 200), (0, 0, 1, 1)))
    part = to_tensor(view.pixels(photo, (40, 50), (0.25, 0.5, 0.5, 0.75)))
    assert (part - whole[:, 40:80, 100:150]).abs().max() <= 1.01 * LEVEL
    assert (whole[0, 0, 0] < whole[0, 0, -1]) != flip and whole[1, 0, 0] < whole[1, -1, 0]


def test_some_views_are_recoloured_and_the_rest_stay_what_they_were() -> None:
    photo = Image.new("RGB", (64, 64), (200, 100, 50))

    def views(share: float) -> list[View]:
        return [random_view(np.random.default_rng(seed), [photo], (4, 4), 4.0, share) for seed in range(60)]

    plain, some, all_of_them = views(0.0), views(0.5), views(1.0)
    assert 15 < sum(view not in plain for view in some) < 45
    assert all(dataclasses.replace(view, saturation=1.0, channels=(0, 1, 2)) in plain for view in all_of_them)
    assert len({view.channels for view in all_of_them}) == 6
    for view in all_of_them:
        colour = view.pixels(photo, (3, 3), (0, 0, 1, 1))[1, 1].astype(int)
        assert list(np.argsort(colour)) == list(np.argsort(np.array([200, 100, 50])[list(view.channels)]))
        assert np.ptp(colour) == pytest.approx(min(150 * view.saturation, 255), abs=4)


def test_latents_are_recoloured_too(photos: Path, teacher: Path) -> None:
    pictures, device = load_photos(photos), torch.device("cpu")
    cache = LatentCache.build(pictures, Teacher.load(teacher), SHAPES, 6, 4.0, 1.0, seed=1, device=device)
    for view, latent in zip(cache.views, cache.latents, strict=True):
        shape = (8 * view.cells[0], 8 * view.cells[1])
        target = to_tensor(view.pixels(pictures[view.photo], shape, (0, 0, 1, 1)))
        assert view.saturation > 1
        assert (F.avg_pool2d(target, 8) - latent[:3]).abs().max() < LEVEL


def test_a_cache_survives_being_saved(cache: LatentCache, tmp_path: Path) -> None:
    cache.save(tmp_path / "a" / "latents.safetensors")
    loaded = LatentCache.load(tmp_path / "a" / "latents.safetensors")
    assert loaded.views == cache.views and loaded.by_cells == cache.by_cells and set(loaded.by_cells) == set(SHAPES)
    assert all(torch.equal(a, b) for a, b in zip(loaded.latents, cache.latents, strict=True))


def test_photographs_are_sorted_and_some_left_out(photos: Path) -> None:
    (photos / "notes.txt").write_text("not a photograph")
    assert [photo.size for photo in load_photos(photos)] == [(300, 200), (210, 260)]
    assert [photo.size for photo in load_photos(photos, exclude=["a"])] == [(210, 260)]
    with pytest.raises(FileNotFoundError, match="no photographs .* in "):
        load_photos(photos, exclude=["a", "b"])


def test_a_teacher_takes_any_size_and_stays_in_range(teacher: Path) -> None:
    loaded = Teacher.load(teacher)
    image = torch.rand(2, 3, 13, 30)
    latent = loaded.encode(image)
    assert latent.shape == (2, 32, 2, 4)
    assert torch.allclose(latent[:, :3, 1, 1], F.pad(image, (0, 0, 0, 3), mode="replicate")[..., 8:, 8:16].mean((2, 3)))
    pixels = loaded.decode(latent)
    assert pixels.shape == (2, 3, 16, 32) and pixels.min() >= 0 and pixels.max() <= 1


def test_a_missing_teacher_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no teacher at .*none.py; pass the Python file"):
        Teacher.load(tmp_path / "none.py")
