"""Views show what they should, whatever the photograph, and survive being packed."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file

from infgen_rt.errors import InputError
from infgen_training import sharp, views
from infgen_training.config import FACTOR, HELD_OUT, PATCH
from infgen_training.drawn import font_files
from infgen_training.photos import photo_files
from infgen_training.teacher import Teacher, load_function
from infgen_training.views import CELLS, Square, View, corrected, load_shards, make_views, save_shards, to_tensor

from .conftest import gradient, some_views, texture, view

CPU = torch.device("cpu")


def psnr(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> float:
    return float(10 * np.log10(255**2 / np.square(a.astype(float) - b).mean()))


@given(
    st.tuples(*[st.integers(FACTOR * PATCH, 4000)] * 2),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
def test_a_square_stays_inside_its_photograph(size: tuple[int, int], deep: bool, seed: int) -> None:
    square = Square.draw(size, deep, np.random.default_rng(seed))
    assert 1 <= square.cells <= CELLS
    length = PATCH * square.cells * square.reduction
    for place, side in zip((square.x, square.y), size, strict=True):
        assert place >= 0 and place + length <= side + 1e-6
    assert square.reduction >= (FACTOR if deep else 1.2)
    # As many cells as there are pixels for.
    assert square.cells == CELLS or square.cells + 1 > min(size) / (PATCH * (FACTOR if deep else 1.2))


@pytest.mark.parametrize("flip", [False, True])
def test_a_square_shows_the_same_at_every_size(flip: bool) -> None:
    photo = Image.fromarray(texture(300, 0)).resize((300, 280), Image.Resampling.BICUBIC)
    square = Square(cells=5, reduction=4.5, x=21.5, y=63.25, flip=flip)
    small, large = square.of(photo), square.of(photo, FACTOR)
    assert small.shape == (40, 40, 3) and large.shape == (160, 160, 3)
    reduced = large.reshape(40, 4, 40, 4, 3).mean((1, 3))
    assert psnr(reduced, small) > 30 > psnr(reduced[:, ::-1], small) + 10
    plain = dataclasses.replace(square, flip=False).of(photo, FACTOR)
    assert (large == (plain[:, ::-1] if flip else plain)).all()
    # Where it is: a crop and a resampling of the photograph.
    box = (21.5, 63.25, 21.5 + 180, 63.25 + 180)
    assert (plain == np.asarray(photo.resize((160, 160), Image.Resampling.LANCZOS, box))).all()


def test_a_corrected_picture_has_the_colours_of_the_small_one() -> None:
    generator = torch.Generator().manual_seed(0)
    small = 0.3 + 0.4 * torch.rand(2, 3, 64, 48, generator=generator)
    large = F.interpolate(small, scale_factor=4, mode="bicubic")
    large = (large + 0.05 * torch.randn(large.shape, generator=generator) + 0.1).clamp(0, 1)
    found = corrected(large, small)
    before, after = ((F.avg_pool2d(each, 64) - F.avg_pool2d(small, 16)).abs().mean() for each in (large, found))
    assert before > 0.09 and after < 0.002
    # Its detail is what it was: what is added changes slowly, whatever detail the small picture has.
    other = F.avg_pool2d(small, 16).repeat_interleave(16, 2).repeat_interleave(16, 3)
    assert (corrected(large, other) - found).abs().max() < 1e-5
    assert (found - large).diff(dim=-1).abs().max() < 0.005
    # Nothing changes where the colours are right.
    assert (corrected(large, F.avg_pool2d(large, 4)) - large).abs().max() < 1e-5


def test_a_corrected_picture_stays_a_picture() -> None:
    generator = torch.Generator().manual_seed(0)
    small, large = (torch.rand(1, 3, side, side, generator=generator).round() for side in (8, 32))
    found = corrected(large, small)
    assert found.min() >= 0 and found.max() <= 1
    assert (found.mean((2, 3)) - small.mean((2, 3))).abs().max() < 0.02


def test_a_drawn_view_is_sharp_and_its_own_photograph(teacher: Path, photos: Path, fonts: Path) -> None:
    files, found = photo_files(photos), font_files(fonts)
    plain, drawn = (list(make_views(files, 2, Teacher.load(teacher), None, CPU, 3, given)) for given in ((), found))
    for before, after in zip(plain, drawn, strict=True):
        assert after.photo is not None and after.sharp is not None and (after.photo == after.sharp).all()
        assert before.sharp is None and before.photo is not None
        assert after.photo.shape == before.photo.shape
        assert psnr(after.photo, before.photo) < 30
        # The encoded picture shows what was drawn.
        side = after.small.shape[0]
        assert psnr(after.photo.reshape(side, 4, side, 4, 3).mean((1, 3)), after.small) > 25
        assert after.latent.shape == before.latent.shape and not after.latent.equal(before.latent)


@pytest.mark.parametrize(("name", "expected"), [("readme.txt", "no fonts"), ("broken.ttf", "cannot be used as a font")])
def test_a_folder_without_usable_fonts_is_refused(tmp_path: Path, name: str, expected: str) -> None:
    (tmp_path / name).write_bytes(b"nothing")
    with pytest.raises(InputError, match=expected):
        font_files(tmp_path)


def test_shards_hold_what_was_packed(tmp_path: Path) -> None:
    given = [view(0), view(1, cells=3, sharp=True), view(2, cells=5, sharp=True, photo=False)]
    assert save_shards(tmp_path / "shards", given, "some") == 3
    found = load_shards(tmp_path / "shards")
    assert len(found) == 3
    for mine, theirs in zip(given, found, strict=True):
        assert theirs.latent.dtype == torch.float16 and theirs.latent.equal(mine.latent)
        assert theirs.cells == mine.cells and (theirs.small == mine.small).all()
        for name in ("photo", "sharp"):
            before, after = getattr(mine, name), getattr(theirs, name)
            assert (before is None) == (after is None)
            # The colours of such noise are half as sharp in any WebP.
            assert before is None or psnr(before, after) > 26


def test_shards_get_sharp_pictures_without_photographs(photos: Path, teacher: Path, enlarger: Path) -> None:
    """They are those that a view of a photograph would have got at once."""
    assert run(photos, teacher, "--count", 2, "--seed", 5).exit_code == 0
    shards, output = photos.parent / "shards", photos.parent / "sharp"
    given = [shards, "--teacher", teacher, "--enlarger", enlarger, "--no-photographs", "--device", "cpu", "-o", output]
    result = CliRunner().invoke(sharp.main, [*map(str, given)])
    assert result.exit_code == 0 and "2 views in " in result.output, result.output
    before, after = load_shards(shards), load_shards(output)
    for plain, made in zip(before, after, strict=True):
        assert made.photo is None and made.sharp is not None and (made.small == plain.small).all()
        assert made.sharp.shape == (4 * plain.small.shape[0], 4 * plain.small.shape[1], 3)
        assert np.abs(made.sharp.mean((0, 1)) - plain.small.mean((0, 1))).max() < 3
    for again, text in ((given, "has shards named sharp-*"), ([output, *given[1:-1], "none"], "have sharp pictures")):
        result = CliRunner().invoke(sharp.main, [*map(str, again)])
        assert result.exit_code == 1 and text in result.output


def test_shards_are_cut_at_their_size(tmp_path: Path) -> None:
    given = [view(seed, cells=3) for seed in range(7)]
    save_shards(tmp_path / "one", given, "x")
    assert [file.name for file in (tmp_path / "one").iterdir()] == ["x-000.safetensors"]
    size = (tmp_path / "one" / "x-000.safetensors").stat().st_size
    save_shards(tmp_path / "more", given, "x", megabytes=size / 2e6)
    files = sorted((tmp_path / "more").iterdir())
    assert [file.name for file in files] == [f"x-{index:03d}.safetensors" for index in range(len(files))]
    assert len(files) in (3, 4) and all(file.stat().st_size <= size / 2 for file in files)
    assert [each.latent.tolist() for each in load_shards(tmp_path / "more")] == [each.latent.tolist() for each in given]


def test_a_folder_without_shards_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no shards .*infgen_training.views makes them"):
        load_shards(tmp_path)


def test_photographs_are_read_in_order_and_some_left_out(tmp_path: Path) -> None:
    for name in ("c.webp", "007.png", "a.JPG", "b.jpeg", "notes.txt"):
        (tmp_path / name).touch()
    assert [file.name for file in photo_files(tmp_path, HELD_OUT)] == ["a.JPG", "b.jpeg", "c.webp"]
    assert [file.name for file in photo_files(tmp_path)] == ["007.png", "a.JPG", "b.jpeg", "c.webp"]
    with pytest.raises(FileNotFoundError, match=r"no photographs \(.jpeg, .jpg, .png, .webp\) in "):
        photo_files(tmp_path, ("007", "a", "b", "c"))


def make(photos: Path, teacher: Path, enlarger: Path | None = None, count: int = 12, seed: int = 0) -> list[View]:
    enlarge = load_function(enlarger, "load_x4plus")() if enlarger else None
    return list(make_views(photo_files(photos), count, Teacher.load(teacher), enlarge, CPU, seed))


def test_views_are_of_every_photograph_in_turn(photos: Path, teacher: Path) -> None:
    found = make(photos, teacher)
    blue = [round(float(each.latent[2].mean()), 2) for each in found]
    assert {*blue} == {0.25, 0.75}
    assert all(a != b for a, b in zip(blue[::2], blue[1::2], strict=True))
    assert all(each.photo is not None and each.sharp is None for each in found)
    for each in found:
        colours = each.small.reshape(each.cells, 8, each.cells, 8, 3).mean((1, 3)) / 255
        assert np.abs(each.latent[:3].permute(1, 2, 0).numpy() - colours).max() < 1e-3
    again, other = make(photos, teacher), make(photos, teacher, seed=1)
    assert all((a.small == b.small).all() for a, b in zip(found, again, strict=True))
    assert not all(
        a.small.shape == b.small.shape and (a.small == b.small).all() for a, b in zip(found, other, strict=True)
    )


def test_an_enlarger_makes_sharp_pictures_with_the_colours_of_the_truth(
    photos: Path, teacher: Path, enlarger: Path
) -> None:
    found = make(photos, teacher, enlarger)
    assert all(each.sharp is not None for each in found)
    # Some show more of a photograph than it has pixels for.
    assert 0 < sum(each.photo is None for each in found) < len(found)
    for each in found:
        assert each.sharp is not None and each.sharp.shape[0] == FACTOR * each.small.shape[0]
        blocks = (max(1, each.cells // 2),) * 2
        made, true = (F.adaptive_avg_pool2d(to_tensor(pixels), blocks) for pixels in (each.sharp, each.small))
        assert (made - true).abs().mean() < 0.01
        if each.photo is not None:
            assert psnr(each.photo.reshape(*each.small.shape[:1], 4, -1, 4, 3).mean((1, 3)), each.small) > 45


def test_too_small_a_photograph_is_refused_before_any_work(photos: Path, teacher: Path) -> None:
    gradient(31, 400, 0.5).save(photos / "c.png")
    with pytest.raises(InputError, match=r"c\.png is too small at 31x400 pixels: 32 a side are needed"):
        make(photos, teacher, count=1)


def run(photos: Path, teacher: Path, *options: object) -> Result:
    given = ["--photos", photos, "--teacher", teacher, "-o", photos.parent / "shards", "--device", "cpu", *options]
    return CliRunner().invoke(views.main, [*map(str, given)])


def test_the_command_makes_shards_of_both_kinds(photos: Path, teacher: Path, enlarger: Path) -> None:
    result = run(photos, teacher, "--count", 3, "--seed", 5)
    assert result.exit_code == 0 and "3 views in " in result.output, result.output
    result = run(photos, teacher, "--count", 2, "--enlarger", enlarger, "--exclude", "a")
    assert result.exit_code == 0, result.output
    shards = photos.parent / "shards"
    assert sorted(file.name for file in shards.iterdir()) == ["photo-5-000.safetensors", "sharp-0-000.safetensors"]
    assert "000001/sharp" in load_file(shards / "sharp-0-000.safetensors")
    found = load_shards(shards)
    assert [each.sharp is not None for each in found] == [False] * 3 + [True] * 2
    assert all(float(each.latent[2].mean()) == pytest.approx(0.75, abs=0.01) for each in found[3:])


def test_shards_are_never_overwritten_or_mixed(photos: Path, teacher: Path) -> None:
    assert run(photos, teacher, "--count", 2).exit_code == 0
    (shard,) = (photos.parent / "shards").iterdir()
    before = shard.read_bytes()
    result = run(photos, teacher, "--count", 1)
    assert result.exit_code == 1 and "has shards named photo-0-*: choose another --seed" in result.output
    assert shard.read_bytes() == before


def test_a_damaged_photograph_is_named(photos: Path, teacher: Path) -> None:
    (photos / "c.png").write_bytes(b"no picture")
    result = run(photos, teacher, "--count", 1)
    assert result.exit_code == 1 and "c.png cannot be used as a photograph" in result.output


def test_the_command_stops_in_time_with_what_there_is(photos: Path, teacher: Path) -> None:
    result = run(photos, teacher, "--count", 400, "--minutes", 0)
    assert result.exit_code == 0 and "1 views in " in result.output
    assert len(load_shards(photos.parent / "shards")) == 1


def test_what_is_missing_is_named(photos: Path, teacher: Path, enlarger: Path) -> None:
    for options, text in (
        (["--exclude", "a", "--exclude", "b"], "no photographs (.jpeg, .jpg, .png, .webp) in "),
        (["--enlarger", enlarger, "--function", "load_x8"], "enlarger.py defines no function load_x8()"),
        (["--teacher", enlarger], "enlarger.py defines no function load_encoder()"),
    ):
        result = run(photos, teacher, *options)
        assert result.exit_code == 1 and text in result.output, result.output
        assert not (photos.parent / "shards").exists()
    with pytest.raises(FileNotFoundError, match="no Python file at .*; pass one that defines load_encoder"):
        Teacher.load(photos / "none.py")


@pytest.mark.parametrize("damage", [lambda content: content[:-7], lambda content: b"", lambda content: content[:8]])
def test_a_damaged_shard_is_named(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    save_shards(tmp_path, some_views(), "photo")
    shard = tmp_path / "photo-000.safetensors"
    shard.write_bytes(damage(shard.read_bytes()))
    with pytest.raises(InputError, match="photo-000.safetensors is damaged or no shard of views"):
        load_shards(tmp_path)


def test_a_file_of_other_tensors_is_no_shard(tmp_path: Path) -> None:
    save_file({"000000/latent": torch.zeros(4, 8, 8)}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="model.safetensors is damaged or no shard of views"):
        load_shards(tmp_path)
