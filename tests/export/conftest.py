"""Exports of the tiny models, made once."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from infgen_export.pipeline import Card, export
from infgen_export.report import Report
from infgen_model import InfGen
from infgen_model.checkpoint import save_checkpoint

from . import tiny
from .shortcuts import folder_of_traces, traced_once

CARD = Card(version="1.2", licence="CC0-1.0", training="none: random weights")


@dataclass(frozen=True)
class Exported:
    """A model and what came of it; not to be changed."""

    model: InfGen
    checkpoint: Path
    bundle: Path
    report: Report
    progress: list[str]


@pytest.fixture(scope="session", autouse=True)
def shared_traces(pytestconfig: pytest.Config) -> Iterator[None]:
    """Each graph is traced for ONNX once, by whichever test needs it first."""
    with traced_once(folder_of_traces(pytestconfig)):
        yield


@pytest.fixture(scope="session", params=["edge", pytest.param("paper", marks=pytest.mark.slow)])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exported]:
    """Each of the tiny models in turn."""
    folder, model, said = tmp_path_factory.mktemp(request.param), tiny.model(tiny.CONFIGS[request.param]), []
    save_checkpoint(folder / "checkpoint", model)
    report = export(folder / "checkpoint", folder / "bundle", recipes=["onnx-fp32"], card=CARD, progress=said.append)
    yield Exported(model, folder / "checkpoint", folder / "bundle", report, said)
