"""One small model, exported for every backend, and every way of running it here."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import infgen_rt
from infgen_export.mil.program import Program
from infgen_export.pipeline import export
from infgen_model.checkpoint import save_checkpoint
from infgen_rt.backend.protocol import Options
from infgen_runtimes import coreml

from ..export import tiny

RECIPES = ("onnx-fp32", "openvino-fp32", "torch-fp32", "coreml-fp32", "coreml-fp16", "coreml-ane")
NEEDS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
WAYS = (
    *(("onnxruntime", "cpu", "exact"), ("openvino", "cpu", "exact"), ("openvino", "cpu", "fast")),
    *(("torch", "cpu", "exact"), ("torch", "cpu", "fast")),
    *(("coreml", "cpu", "exact"), ("coreml", "gpu", "fast"), ("coreml", "ane", "fast")),
    *(("torch", "cuda", "exact"), ("torch", "cuda", "fast"), ("onnxruntime", "cuda", "exact")),
)
"""Backend, device and precision."""

Open = Callable[..., infgen_rt.Decoder]


class Interpreted:
    """Core ML's stand-in where there is no macOS: the saved program, operation by operation."""

    def __init__(self, package: Path, digest: str, options: Options) -> None:
        self._program = Program(package)

    def predict(self, data: dict[str, Any]) -> dict[str, Any]:
        results = self._program.run({name: torch.from_numpy(value) for name, value in data.items()})
        return {name: value.numpy() for name, value in results.items()}


@pytest.fixture(scope="session")
def every_target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with graphs for every backend; not to be changed."""
    folder = tmp_path_factory.mktemp("every")
    save_checkpoint(folder / "checkpoint", tiny.model(tiny.CONFIGS["edge"]))
    export(folder / "checkpoint", folder / "bundle", recipes=RECIPES, validate=False)
    return folder / "bundle"


@pytest.fixture
def mac(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which Core ML seems to exist."""
    monkeypatch.setattr("sys.platform", "darwin")
    monkeypatch.setattr(coreml, "open_package", Interpreted)


@pytest.fixture(params=[pytest.param(way, marks=NEEDS_CUDA if way[1] == "cuda" else ()) for way in WAYS], ids="-".join)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str, str]:
    if request.param[0] == "coreml":
        request.getfixturevalue("mac")
    found: tuple[str, str, str] = request.param
    return found


@pytest.fixture
def open_way(way: tuple[str, str, str]) -> Open:
    """Opens a bundle in the way that is being tested."""
    backend, device, precision = way

    def opened(bundle: Path, **options: Any) -> infgen_rt.Decoder:
        return infgen_rt.open(bundle, backend, device=device, precision=precision, **options)  # type: ignore[arg-type]

    return opened
