"""What errors about backends, bundles and files tell the user to do works where they are shown."""

import json
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest

import infgen_rt
from infgen_rt.backend import candidates, others, protocol
from infgen_rt.backend.protocol import Device, Options, Session, require_version
from infgen_rt.bundle import folder as bundles
from infgen_rt.bundle.manifest import MANIFEST, Recipe
from infgen_rt.cli.main import main
from infgen_rt.common import remedies
from infgen_rt.errors import (
    BackendError,
    BundleError,
    DecodeError,
    InfGenWarning,
    InputError,
    LatentError,
    OutputError,
    reason,
)
from infgen_rt.geometry.shapes import Size
from infgen_rt.writers import check_output

from . import tiny


class Failing:
    """A backend for ONNX graphs. Its import fails with `error`, or if that is None, its runs fail."""

    name, target, version = "failing", "onnx", "1"
    error: Exception | None = None
    found: Sequence[Device] = (Device("cpu", "CPU"),)

    def __init__(self) -> None:
        if self.error is not None:
            raise self.error

    def devices(self) -> Sequence[Device]:
        return self.found

    def arithmetics(self, device: str, recipe: Recipe) -> Sequence[str]:
        return ["fp32"]

    def load(self, graph: str, files: Mapping[str, bytes], options: Options) -> Session:
        return Fails()


class Second(Failing):
    name = "second"


class Fails:
    def run(self, inputs: object) -> dict:
        raise DecodeError("failing could not run the graph: no memory")

    def close(self) -> None:
        pass


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, EntryPoint]:
    """The backends that are found: this test's own, and ONNX Runtime's."""
    found = {
        "failing": EntryPoint("failing", f"{__name__}:Failing", protocol.GROUP),
        "onnxruntime": EntryPoint("onnxruntime", "infgen_runtimes.onnxruntime:Backend", protocol.GROUP),
    }
    for module in (protocol, candidates, others):
        monkeypatch.setattr(module, "installed_backends", lambda: found)
    monkeypatch.setenv("INFGEN_RT_CACHE", str(tmp_path / "cache"))
    return found


def refusal(bundle: Path, backend: str) -> str:
    with pytest.raises(BackendError) as caught:
        infgen_rt.open(bundle, backend)
    return str(caught.value)


# Libraries.


@pytest.mark.parametrize(
    ("error", "step"),
    [
        (
            ImportError("libGL.so.1: cannot open shared object file: No such file or directory"),
            "install the system's package that has libGL.so.1",
        ),
        (
            ImportError("DLL load failed while importing onnxruntime_pybind11_state: not found"),
            "install Microsoft's current Visual C++ Redistributable",
        ),
        (ImportError("cannot import name 'x' from 'y'"), "reinstall it; if that does not help"),
        (RuntimeError("driver"), "install the driver or the library that the brackets name"),
        (ModuleNotFoundError("No module named 'a.b'", name="a.b"), "reinstall it"),
    ],
    ids=["system library", "Windows", "versions", "driver", "damaged package"],
)
def test_a_library_that_is_there_and_does_not_load_is_not_called_missing(
    bundle: Path, table: dict, monkeypatch: pytest.MonkeyPatch, error: Exception, step: str
) -> None:
    monkeypatch.setattr(Failing, "error", error)
    text = refusal(bundle, "failing")
    assert "is broken" in text and step in text and "is not installed" not in text


def test_reinstalling_replaces_files_of_the_right_version(monkeypatch: pytest.MonkeyPatch) -> None:
    assert remedies.reinstalling(("numpy",)) == "reinstall it: pip install --force-reinstall --no-deps numpy"
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    assert remedies.reinstalling(("numpy",)) == "build this app again with all of numpy"
    assert "pip" not in remedies.upgrading(("numpy",)) + remedies.installing("cpu")


@pytest.mark.parametrize("here", ["onnxruntime-gpu", "onnxruntime-directml"])
def test_an_old_library_is_upgraded_under_the_name_that_is_installed(
    monkeypatch: pytest.MonkeyPatch, here: str
) -> None:
    def version(name: str) -> str:
        if name != here:
            raise metadata.PackageNotFoundError(name)
        return "0.1"

    monkeypatch.setattr(metadata, "version", version)
    with pytest.raises(BackendError, match=f"too old: .*; pip install --upgrade {here}$"):
        require_version("onnxruntime", "0.1")


@pytest.mark.parametrize("here", [(), ("onnxruntime",), ("onnxruntime-directml",), ("onnxruntime", "onnxruntime-gpu")])
def test_cuda_is_installed_after_all_other_builds_are_gone(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, here: tuple[str, ...]
) -> None:
    from infgen_runtimes import onnxruntime

    monkeypatch.setattr(onnxruntime, "installed", lambda names: [name for name in names if name in here])
    monkeypatch.setattr(onnxruntime.ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    text = refusal(bundle, "cuda")
    assert text.endswith('pip install "infgen-rt[cuda]"')
    assert not here or f"pip uninstall -y {' '.join(here)}, then" in text


# What else there is.


def test_a_graph_that_fails_names_what_else_can_run_it(bundle: Path, table: dict) -> None:
    with infgen_rt.open(bundle, "failing") as decoder, pytest.raises(DecodeError) as caught:
        decoder.picture(tiny.random_latent(4, 4), normalisation="model").read()
    text = str(caught.value)
    assert "no memory; pass less memory (--memory) or a smaller tile (--tile), or pass another backend" in text
    assert text.endswith("(--backend): onnxruntime")


def test_other_devices_of_the_backend_are_named(bundle: Path, table: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    devices = (Device("gpu", "GPU"), Device("npu", "NPU", "no driver"), Device("cpu", "CPU"))
    monkeypatch.setattr(Failing, "found", devices)
    with infgen_rt.open(bundle, "failing", device="gpu") as decoder, pytest.raises(DecodeError) as caught:
        decoder.picture(tiny.random_latent(4, 4), normalisation="model").read()
    assert "another device (--device): cpu; or another backend (--backend): onnxruntime" in str(caught.value)


def test_a_backend_without_devices_is_not_asked_for_none(
    bundle: Path, table: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Failing, "found", ())
    text = refusal(bundle, "failing")
    assert "finds no device on this machine: pass another (--backend)" in text and "None" not in text


def test_if_all_ways_fail_another_is_named_or_how_to_get_one(bundle: Path, table: dict) -> None:
    table["second"] = EntryPoint("second", f"{__name__}:Second", protocol.GROUP)
    del table["onnxruntime"]
    with pytest.warns(InfGenWarning):
        text = refusal(bundle, "auto")
    assert 'nothing that was tried runs the bundle, and another backend can be tried: pip install "infgen-rt[' in text


def test_an_exact_picture_that_is_not_possible_names_fast(
    bundle: Path, table: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Failing, "arithmetics", lambda *_: ["bf16"])
    with pytest.raises(BackendError, match=r"pass precision='fast' \(--precision fast\)"):
        infgen_rt.open(bundle, "failing", precision="exact")


def test_measurements_that_cannot_be_kept_name_the_variable(
    bundle: Path, table: dict, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "cache").write_text("a file in the place of the folder")
    monkeypatch.setattr(Failing, "load", lambda self, *_: table["onnxruntime"].load()().load(*_))
    with pytest.warns(InfGenWarning, match="cannot be kept .*; set INFGEN_RT_CACHE to a folder that is writable"):
        infgen_rt.open(bundle).close()


# Bundles.


def test_errors_of_a_manifest_name_the_bundle_and_a_step(bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    for content, text in (
        ("{", "manifest.json is not valid JSON.*; copy, download or export it again"),
        (json.dumps({"format": 1}), "manifest lacks .*; copy, download or export it again"),
        (json.dumps({"name": "a web page"}), "is not that of a bundle, which has a 'format': pass another folder"),
        (json.dumps({"format": 99}), "has format 99, .*: upgrade infgen-rt$"),
    ):
        (copy / MANIFEST).write_text(content)
        with pytest.raises(BundleError, match=text) as caught:
            infgen_rt.open(copy)
        assert str(caught.value).startswith(f"{copy}: ")


def test_the_model_that_ships_is_reinstalled(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    next(file for file in copy.rglob("*") if file.is_file() and file.name != MANIFEST).unlink()
    with pytest.raises(BundleError, match="; copy, download or export it again$"):
        infgen_rt.open(copy)
    monkeypatch.setattr(bundles, "DEFAULT_BUNDLE", copy)
    with pytest.raises(BundleError, match="; reinstall it: pip install --force-reinstall --no-deps infgen-rt$"):
        infgen_rt.open()


# Files.


def test_too_little_memory_is_not_called_damage(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez(tmp_path / "latent.npz", tiny.random_latent(4, 4))

    def no_memory(*_: object) -> bytes:
        raise MemoryError

    monkeypatch.setattr("infgen_rt.latent.files._read_npy", no_memory)
    with pytest.raises(LatentError, match="too little memory to read .*latent.npz: close other programs, or split"):
        infgen_rt.load_latent(tmp_path / "latent.npz")
    monkeypatch.setattr(Path, "read_bytes", no_memory)
    with pytest.raises(LatentError, match="too little memory"):
        infgen_rt.load_latent(tmp_path / "latent.npz")
    with pytest.raises(BundleError, match="too little memory to read manifest.json"):
        infgen_rt.open(bundle)


@pytest.mark.parametrize("name", ["a\0b.npy", "a\ud800.npy"], ids=["NUL", "surrogate"])
def test_a_path_that_no_file_can_have_is_refused_as_one(tmp_path: Path, name: str) -> None:
    for act, kind in ((infgen_rt.load_latent, LatentError), (infgen_rt.open, BundleError)):
        with pytest.raises(kind, match="cannot be a file's name: remove the character that no name may have"):
            act(tmp_path / name)
    assert main(["info", str(tmp_path / name)]) == 2


def test_a_tilde_is_not_the_home_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    acts: list[tuple[Callable[[Path], object], type[InputError]]] = [
        (infgen_rt.load_latent, LatentError),
        (infgen_rt.open, BundleError),
        (lambda path: check_output(path, Size(8, 8), False), OutputError),
    ]
    path = Path("~", "a.png")
    for act, kind in acts:
        with pytest.raises(kind, match=r"begins with ~, which is not expanded here: pass os\.path\.expanduser\('~"):
            act(path)
    Path("~").mkdir()
    assert check_output(path, Size(8, 8), False)  # a folder of this name is nobody's home


def test_every_message_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(LatentError) as caught:
        infgen_rt.load_latent(tmp_path / "two\nlines  apart.npy")
    assert "two lines  apart.npy does not exist" in str(caught.value)
    assert str(InfGenWarning("one\r\n two\x0bthree")) == "one two three"


def test_an_error_of_the_system_without_a_text_has_a_reason() -> None:
    assert reason(OSError(5, "Input/output error", "path")) == "Input/output error"
    assert reason(OSError("broken\npipe")) == "broken pipe"
    assert reason(TimeoutError()) == "TimeoutError"
