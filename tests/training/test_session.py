"""A whole session in miniature, on the CPU."""

import dataclasses
import json
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import infgen_training
from infgen_model import PRESETS
from infgen_model.checkpoint import save_checkpoint
from infgen_training import session, views
from infgen_training.teacher import Teacher
from infgen_training.trunk import in_space

from .conftest import TINY, some_views, tiny_model
from .test_trunk import AUTOENCODER, CPU, new_trunk


def test_a_session_makes_shards_trains_and_evaluates_and_goes_on(
    photos: Path, teacher: Path, enlarger: Path, fonts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PRESETS, "edge", lambda space, channels: dataclasses.replace(TINY, latent_channels=channels))
    save_checkpoint(tmp_path / "start", tiny_model())
    other, autoencoder = tmp_path / "sdxl", tmp_path / "autoencoder.py"
    autoencoder.write_text(AUTOENCODER)
    views = in_space(some_views(), Teacher.load(autoencoder), Path("none"), CPU)
    save_checkpoint(other, new_trunk(tiny_model(), autoencoder, views))
    folder = tmp_path / "session"
    given = ["--photos", photos, "--val", photos, "--teacher", teacher, "--enlarger", enlarger, "--count", 3]
    given += ["--set", "cells=2", "--set", "margin=0", "--device", "cpu", "--no-eye", "-o", folder]
    given += ["--start", tmp_path / "start", "--set", "minutes=5", "--minutes", 0.1]
    given += ["--other", other, autoencoder, "--fonts", fonts]
    steps = []
    for _ in range(2):
        result = CliRunner().invoke(session.main, [*map(str, given)])
        assert result.exit_code == 0, result.output
        steps.append(json.loads((folder / "run" / "progress.json").read_text())["step"])
    assert 0 < steps[0] < steps[1], "the second goes on where the first stopped"
    assert (folder / "run" / "checkpoint-sdxl").is_dir()
    assert sorted(file.name.partition("-")[0] for file in (folder / "shards").iterdir()) == ["drawn", "photo", "sharp"]
    report = json.loads((folder / "report" / "report.json").read_text())
    assert set(report["scales"]["4"]) >= {"infgen", "teacher + Real-ESRGAN"}


def test_a_session_needs_nothing_of_an_evaluation_that_it_does_not_make(
    photos: Path, teacher: Path, enlarger: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PRESETS, "edge", lambda space, channels: dataclasses.replace(TINY, latent_channels=channels))
    save_checkpoint(tmp_path / "start", tiny_model())
    for name in ("evaluate", "metrics"):
        monkeypatch.delitem(sys.modules, f"infgen_training.{name}", raising=False)
    monkeypatch.delattr(infgen_training, "evaluate", raising=False)
    monkeypatch.setitem(sys.modules, "ssimulacra2", None)
    given = ["--photos", photos, "--val", photos, "--teacher", teacher, "--enlarger", enlarger, "--count", 1]
    given += ["--start", tmp_path / "start", "--set", "cells=2", "--set", "margin=0", "--device", "cpu", "--no-eye"]
    given += ["--minutes", 0.05, "-o", tmp_path / "session"]
    result = CliRunner().invoke(session.main, [*map(str, given)])
    assert result.exit_code == 1 and "the evaluation cannot run" in result.output
    assert not (tmp_path / "session").exists()
    result = CliRunner().invoke(session.main, [*map(str, given), "--no-evaluate"])
    assert result.exit_code == 0, result.output
    assert sorted(each.name for each in (tmp_path / "session").iterdir()) == ["run", "shards"]


def test_time_that_is_over_before_training_is_said(photos: Path, teacher: Path, enlarger: Path, tmp_path: Path) -> None:
    given = ["--photos", photos, "--val", photos, "--teacher", teacher, "--enlarger", enlarger, "--count", 1]
    given += ["--no-eye", "--device", "cpu", "-o", tmp_path / "session", "--minutes", "0.0001"]
    result = CliRunner().invoke(session.main, [*map(str, given)])
    assert result.exit_code == 1 and "minutes are over before training starts" in result.output


def test_a_session_that_was_stopped_before_it_had_both_kinds_of_views_makes_both(
    photos: Path, teacher: Path, enlarger: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, call, made = tmp_path / "session", session._call, list[tuple[str, ...]]()
    given = ["--photos", photos, "--val", photos, "--teacher", teacher, "--enlarger", enlarger, "--count", 1]
    given += ["--no-eye", "--device", "cpu", "-o", folder]

    def stopped(command: click.Command, *arguments: object) -> None:
        made.append(tuple(str(each) for each in arguments))
        if "--enlarger" in made[-1] or command is not views.main:
            raise KeyboardInterrupt
        call(command, *arguments)

    monkeypatch.setattr(session, "_call", stopped)
    assert CliRunner().invoke(session.main, [*map(str, given)]).exit_code != 0 and not (folder / "shards").exists()
    monkeypatch.setattr(session, "_call", lambda *each: call(*each) if each[0] is views.main else stopped(*each))
    CliRunner().invoke(session.main, [*map(str, given)])
    assert sorted(file.name.partition("-")[0] for file in (folder / "shards").iterdir()) == ["photo", "sharp"]
