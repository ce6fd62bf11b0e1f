"""One small model, exported for every backend, and every way of running it here."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

import infgen_rt
from infgen_export.mil.program import Program
from infgen_export.pipeline import export
from infgen_model.checkpoint import save_checkpoint
from infgen_rt.backend.protocol import Options
from infgen_runtimes import coreml

from ..export import tiny
from ..export.shortcuts import folder_of_traces, known_memory, traced_once

CONFIG = tiny.EDGE
PORTABLE = ("onnx-fp32", "openvino-fp32", "torch-fp32")
WITH_COREML = ("onnx-fp32", "coreml-fp32", "coreml-fp16", "coreml-ane")
NEEDS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
WAYS = (
    *(("onnxruntime", "cpu", "exact"), ("openvino", "cpu", "exact"), ("openvino", "cpu", "fast")),
    *(("torch", "cpu", "exact"), ("torch", "cpu", "fast")),
    *(("coreml", "cpu", "exact"), ("coreml", "gpu", "fast"), ("coreml", "ane", "fast")),
    *(("torch", "cuda", "exact"), ("torch", "cuda", "fast"), ("onnxruntime", "cuda", "exact")),
)
"""Backend, device and precision. Core ML's packages take minutes to export and to interpret: these tests are slow."""

Open = Callable[..., infgen_rt.Decoder]


class Interpreted:
    """Core ML's stand-in where there is no macOS: the saved program, operation by operation."""

    read: ClassVar[dict[str, Program]] = {}
    """Programs by digest: reading one takes long, and running it does not change it."""

    def __init__(self, package: Path, digest: str, options: Options) -> None:
        if digest not in self.read:
            self.read[digest] = Program(package)
        self._program = self.read[digest]

    def predict(self, data: dict[str, Any]) -> dict[str, Any]:
        results = self._program.run({name: torch.from_numpy(value) for name, value in data.items()})
        return {name: value.numpy() for name, value in results.items()}


def exported(recipes: Sequence[str], config: pytest.Config, temporary: pytest.TempPathFactory) -> Path:
    folder = temporary.mktemp("exported")
    save_checkpoint(folder / "checkpoint", tiny.model(CONFIG))
    with traced_once(folder_of_traces(config)), known_memory():
        export(folder / "checkpoint", folder / "bundle", recipes=recipes, validate=False)
    return folder / "bundle"


@pytest.fixture(scope="session")
def portable(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with graphs for the backends that run everywhere; not to be changed."""
    return exported(PORTABLE, pytestconfig, tmp_path_factory)


@pytest.fixture(scope="session")
def with_coreml(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with graphs for Core ML and for the reference; not to be changed."""
    return exported(WITH_COREML, pytestconfig, tmp_path_factory)


@pytest.fixture
def mac(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which Core ML seems to exist."""
    monkeypatch.setattr("sys.platform", "darwin")
    monkeypatch.setattr(coreml, "open_package", Interpreted)


def marks_of(way: tuple[str, str, str]) -> Sequence[pytest.MarkDecorator]:
    return [pytest.mark.slow] if way[0] == "coreml" else [NEEDS_CUDA] if way[1] == "cuda" else []


@pytest.fixture(params=[pytest.param(way, marks=marks_of(way)) for way in WAYS], ids="-".join)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str, str]:
    if request.param[0] == "coreml":
        request.getfixturevalue("with_coreml_exact")  # is made before this machine seems to be a Mac
        request.getfixturevalue("mac")
    found: tuple[str, str, str] = request.param
    return found


@pytest.fixture
def target(way: tuple[str, str, str], request: pytest.FixtureRequest) -> Path:
    """A bundle with graphs for the way that is being tested; not to be changed."""
    found: Path = request.getfixturevalue("with_coreml" if way[0] == "coreml" else "portable")
    return found


@pytest.fixture
def open_way(way: tuple[str, str, str]) -> Open:
    """Opens a bundle in the way that is being tested."""
    backend, device, precision = way

    def opened(bundle: Path, **options: Any) -> infgen_rt.Decoder:
        return infgen_rt.open(bundle, backend, device=device, precision=precision, **options)  # type: ignore[arg-type]

    return opened


@pytest.fixture(scope="session")
def opened() -> Iterator[dict[tuple[str, str, str], infgen_rt.Decoder]]:
    """The bundle in each way that was opened so far."""
    decoders: dict[tuple[str, str, str], infgen_rt.Decoder] = {}
    yield decoders
    for decoder in decoders.values():
        decoder.close()


@pytest.fixture
def decoder(
    target: Path,
    open_way: Open,
    way: tuple[str, str, str],
    opened: dict[tuple[str, str, str], infgen_rt.Decoder],
) -> infgen_rt.Decoder:
    """The bundle, opened in the way that is being tested, for all tests that do not close or change it."""
    if way not in opened:
        opened[way] = open_way(target)
    return opened[way]


@pytest.fixture(scope="session")
def portable_exact(portable: Path) -> Iterator[infgen_rt.Decoder]:
    with infgen_rt.open(portable, "onnxruntime", precision="exact") as decoder:
        yield decoder


@pytest.fixture(scope="session")
def with_coreml_exact(with_coreml: Path) -> Iterator[infgen_rt.Decoder]:
    with infgen_rt.open(with_coreml, "onnxruntime", precision="exact") as decoder:
        yield decoder


@pytest.fixture
def exact(way: tuple[str, str, str], request: pytest.FixtureRequest) -> infgen_rt.Decoder:
    """The reference: the same bundle in ONNX Runtime, in float32."""
    found: infgen_rt.Decoder = request.getfixturevalue("with_coreml_exact" if way[0] == "coreml" else "portable_exact")
    return found
