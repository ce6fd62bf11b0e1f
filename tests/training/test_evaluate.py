import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from infgen_export.checkpoint import save_checkpoint
from infgen_export.model import InfGen
from infgen_training import evaluate, metrics

from ..export import tiny

# The "latent" of this teacher is the picture reduced eight times, so its decoder can only give that back.
TEACHER = """
import torch.nn.functional as F
from torch import nn

class Encoder(nn.Module):
    def forward(self, image):
        return F.pad(F.avg_pool2d(image, 8), (0, 0, 0, 0, 0, 29))

class Decoder(nn.Module):
    def forward(self, latent):
        return F.interpolate(latent[:, :3], scale_factor=8)

load_encoder, load_decoder = Encoder, Decoder
"""


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    file = tmp_path / "teacher.py"
    file.write_text(TEACHER)
    return file


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        noise = Image.fromarray(rng.integers(0, 256, (25, 30, 3), np.uint8))
        noise.resize((250, 203), Image.Resampling.BICUBIC).save(folder / f"{name}.png")
    return folder


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save_checkpoint(tmp_path / "checkpoint", InfGen(dataclasses.replace(tiny.EDGE, latent_channels=32)))
    return tmp_path / "checkpoint"


def test_metrics_know_equal_from_better_from_worse() -> None:
    rng = np.random.default_rng(0)
    truth = np.asarray(Image.fromarray(rng.integers(0, 256, (20, 20, 3), np.uint8)).resize((200, 200)))
    slight, strong = (np.clip(truth + rng.normal(0, sigma, truth.shape), 0, 255).astype(np.uint8) for sigma in (2, 20))
    assert metrics.psnr(truth, truth) == np.inf
    assert metrics.psnr(truth // 2 * 2, truth // 2 * 2 + 1) == pytest.approx(10 * np.log10(255**2))
    near, far = metrics.compare(slight, truth), metrics.compare(strong, truth)
    assert all(near[name] > far[name] for name in ("psnr", "ssim", "ms_ssim", "ssimulacra2"))
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


@pytest.mark.parametrize(
    ("scale", "size"), [(1.0, (200, 248)), (2.0, (192, 240)), (1.5, (192, 240)), (0.5, (100, 124))]
)
def test_a_task_is_cut_to_whole_cells(photos: Path, teacher: Path, scale: float, size: tuple[int, int]) -> None:
    task = evaluate.Task.of(Image.open(photos / "a.png"), scale, evaluate.Teacher.load(teacher))
    assert task.size == size
    assert task.latent.shape[2:] == (task.small.shape[0] // 8, task.small.shape[1] // 8)
    assert task.size[1] == round(8 * task.latent.shape[3] * scale)
    # The same picture at both sizes: reduced to cells, they have the same colours.
    cells = (task.latent.shape[2], task.latent.shape[3])
    box = Image.Resampling.BOX
    error = np.abs(evaluate.resize(task.truth, cells, box).astype(int) - evaluate.resize(task.small, cells, box))
    assert error.mean() < 4


@pytest.mark.parametrize(("scale", "nearest"), [(2.0, 2.0), (5.0, 4.0), (0.25, 0.5)])
def test_ours_is_what_the_runtime_makes(
    photos: Path, teacher: Path, checkpoint: Path, scale: float, nearest: float
) -> None:
    model = evaluate.load_checkpoint(checkpoint)
    assert model.config.scale_range == (0.5, 4)
    task = evaluate.Task.of(Image.open(photos / "a.png"), scale, evaluate.Teacher.load(teacher))
    ours = evaluate.methods(task, model, evaluate.Teacher.load(teacher))["infgen"]
    assert ours.shape == task.truth.shape
    rows, columns = (round(8 * side * nearest) for side in task.latent.shape[2:])
    with torch.inference_mode():
        pixels = evaluate.to_pixels(model(task.latent, (rows, columns)))
    expected = Image.fromarray(pixels).resize(task.size[::-1], Image.Resampling.LANCZOS)
    assert (ours == np.asarray(expected)).all()


def test_the_command_reports_every_method(photos: Path, teacher: Path, checkpoint: Path, tmp_path: Path) -> None:
    output = tmp_path / "report"
    arguments = [str(checkpoint), "--photos", str(photos), "--teacher", str(teacher), "-o", str(output)]
    result = CliRunner().invoke(evaluate.main, [*arguments, "--scales", "1,1.2"])
    assert result.exit_code == 0, result.output
    report = json.loads((output / "report.json").read_text())
    assert report["pictures"] == 2
    assert set(report["scales"]["1"]) == {"infgen", "teacher"}
    assert len(report["scales"]["1.2"]) == 6
    # What bounds a better enlargement is no worse than the one that there is.
    found = {name: means["psnr"] for name, means in report["scales"]["1.2"].items()}
    assert found["infgen at 1x + perfect enlargement"] > found["infgen at 1x + bicubic"]
    for scale, by_method in report["scales"].items():
        for name, means in by_method.items():
            assert set(means) == set(metrics.METRICS)
            assert f"| {scale} | {name} | {means['psnr']:.2f} |" in result.output
    assert set(report["extras"]) == {"consistency", "round_trip", "round_trip_teacher"}
    assert Image.open(output / "sheet.png").width == 7 * evaluate.CROP


def test_an_earlier_report_has_all_that_does_not_depend_on_the_model(
    photos: Path, teacher: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [str(checkpoint), "--photos", str(photos), "--teacher", str(teacher), "--scales", "1,1.2"]
    first, second = tmp_path / "first", tmp_path / "second"
    assert CliRunner().invoke(evaluate.main, [*arguments, "-o", str(first)]).exit_code == 0
    compared = []

    def compare(*given: object, **named: object) -> dict[str, float]:
        compared.append(given)
        return metrics.compare(*given, **named)

    monkeypatch.setattr(evaluate, "compare", compare)
    options = ["--baseline", str(first / "report.json"), "-o", str(second)]
    assert CliRunner().invoke(evaluate.main, [*arguments, *options]).exit_code == 0
    assert len(compared) == 2 * (1 + 3)
    assert (second / "report.md").read_text() == (first / "report.md").read_text()
    for wrong in (["--limit", "1"], ["--scales", "1,1.3"]):
        result = CliRunner().invoke(evaluate.main, [*arguments, *options, *wrong])
        assert result.exit_code == 2 and "is of 2 photographs" in result.output
