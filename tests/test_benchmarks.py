import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from benchmarks import attention, backends, cost, speed, training
from infgen_export.checkpoint import save_checkpoint
from infgen_export.model import PRESETS, InfGen, edge

from .export import tiny


def test_cost_of_the_edge_preset_is_within_the_project_s_budget(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, InfGen(edge()))
    result = CliRunner().invoke(cost.main, [str(tmp_path)])
    assert result.exit_code == 0, result.output
    figures = {line.split(":")[0]: float(line.split(": ")[1].split()[0]) for line in result.output.splitlines()[3:]}
    assert figures["prefill"] <= 8
    assert max(value for name, value in figures.items() if name.startswith("decode")) <= 50
    assert figures["encode"] <= 235 / 2  # half of what the teacher's encoder costs


def test_multiply_adds_of_a_known_layer() -> None:
    layer = torch.nn.Conv2d(3, 5, 3, padding=1)
    assert cost.multiply_adds(lambda: layer(torch.zeros(1, 3, 10, 20))) == 3 * 5 * 9 * 200


def test_speed_runs_every_contender(tmp_path: Path) -> None:
    file = tmp_path / "speed.json"
    result = CliRunner().invoke(speed.main, ["--size", "320x180", "--repeat", "1", "--json", str(file)])
    assert result.exit_code == 0, result.output
    samples = json.loads(file.read_text())["samples"]
    assert set(samples) == {"infgen-rt, array", "infgen-rt, PNG file"}
    assert all(entry["seconds"] > 0 and entry["peak"] > 2**20 for runs in samples.values() for entry in runs)


def test_backends_are_compared(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in {
        "SCALES": (1,),
        "CELLS": 12,
        "ways": lambda _: [backends.REFERENCE, ("openvino", "cpu", "exact")],
    }.items():
        monkeypatch.setattr(backends, name, value)
    file = tmp_path / "backends.json"
    result = CliRunner().invoke(backends.main, ["--repeat", "1", "--json", str(file)])
    assert result.exit_code == 0, result.output
    samples = json.loads(file.read_text())["samples"]
    assert set(samples) == {"onnxruntime cpu exact 1", "openvino cpu exact 1"}
    rows = [line.split(" | ") for line in result.output.splitlines() if line.startswith("| o")]
    assert float(rows[1][-1].rstrip("| ")) > 48 and rows[1][3] == "fp32"


@pytest.mark.parametrize("part", ["all", "decoder", "encoder"])
def test_training_is_timed_and_counted(monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    monkeypatch.setitem(PRESETS, "edge", lambda *_: tiny.EDGE)
    for name, value in {"PHOTO_SIZE": (300, 200), "VIEWS": 8, "PRODUCT": {"cpu": 32}}.items():
        monkeypatch.setattr(training, name, value)
    options = ["--device", "cpu", "--part", part, "--cells", "64", "--largest", "8", "--steps", "2", "--warmup", "1"]
    result = CliRunner().invoke(training.main, [*options, "--loaders", "2"])
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    table = {line.split("|")[1].strip(): line.split("|")[2:-1] for line in lines if line.startswith("| ")}
    assert set(table) >= {"loader, no threads", "loader, 2 threads", "step alone", "step and loader together"}
    assert all(float(row[-1]) > 0 for name, row in table.items() if name)
    assert "pictures a second" in result.output and "multiply-adds a second; training: " in result.output


@pytest.mark.parametrize("form", attention.FORMS["within a radius"])
def test_forms_of_attention_are_the_same_attention(form: str) -> None:
    torch.manual_seed(0)
    layer = attention.Layer(1.5).eval()
    values = attention.example(layer, 4)
    with torch.inference_mode():
        expected = layer(*values)
        with attention.form_of(form):
            actual = layer(*values)
    # The window fades towards its edge; the mask does not.
    assert (actual - expected).abs().mean() < 0.5 * expected.abs().mean()


def test_a_form_of_attention_is_measured() -> None:
    cells = attention.row("openvino", "within a radius", "shifted gathers", 4).split(" | ")
    assert cells[:4] == ["| openvino", "within a radius", "4", "shifted gathers"] and float(cells[4]) > 0
