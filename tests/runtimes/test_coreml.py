"""Where Core ML's backend keeps compiled programs, with stand-ins for the compiler, which is a part of macOS."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from coremltools import models

from infgen_rt.backend.protocol import Options
from infgen_runtimes import coreml

FILES = {"Manifest.json": b"{}", "Data/model.mlmodel": b"a program"}
KILLED = """
import os, signal, sys
from pathlib import Path
from coremltools.models import utils
from infgen_rt.backend.protocol import Options
from infgen_runtimes.coreml import Backend
def compile_model(package, program):
    Path(program).mkdir()
    os.kill(os.getpid(), signal.SIGKILL)
utils.compile_model = compile_model
cache = Path(sys.argv[1]) if len(sys.argv) > 1 else None
Backend().load("decode1", {"Manifest.json": b"{}"}, Options("cpu", cache=cache))
"""


class Program:
    """A loaded program."""

    def __init__(self, path: str, units: object) -> None:
        self.path = Path(path)
        assert (self.path / "Data/model.mlmodel").read_bytes() == b"a program"


@pytest.fixture(autouse=True)
def compiled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """The packages that were compiled. The system's folder for temporary files is the tests' own."""
    found: list[str] = []

    def compile_model(package: str, program: str) -> None:
        shutil.copytree(package, program)
        found.append(package)

    monkeypatch.setattr(models.utils, "compile_model", compile_model)
    monkeypatch.setattr(models, "CompiledMLModel", Program)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    return found


@pytest.fixture(params=["cache", "temporary"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The folder in which programs are compiled."""
    (tmp_path / "cache").mkdir()
    return tmp_path / str(request.param)


def load(folder: Path) -> coreml.Session:
    return coreml.Backend().load("decode1", FILES, Options("cpu", cache=folder if folder.name == "cache" else None))


def test_only_programs_for_later_are_left(folder: Path, compiled: list[str]) -> None:
    for _ in range(2):
        session = load(folder)
        session.close()
    kept = [path.suffix for path in folder.iterdir()]
    assert (kept, len(compiled)) == (([".mlmodelc"], 1) if folder.name == "cache" else ([], 2))


def test_a_damaged_program_is_compiled_again(tmp_path: Path, compiled: list[str]) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    load(cache).close()
    (kept,) = cache.iterdir()
    (kept / "Data/model.mlmodel").write_bytes(b"rubbish")
    load(cache).close()
    assert len(compiled) == 2 and list(cache.iterdir()) == [kept]
    assert (kept / "Data/model.mlmodel").read_bytes() == b"a program"


@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX")
def test_what_a_killed_process_left_is_removed_and_what_is_in_use_stays(folder: Path, tmp_path: Path) -> None:
    session = load(folder)
    before = set(folder.iterdir())
    arguments = [str(folder)] if folder.name == "cache" else []
    command = [sys.executable, "-c", KILLED, *arguments]
    environment = os.environ | {"TMPDIR": str(tmp_path / "temporary")}
    assert subprocess.run(command, env=environment, capture_output=True, check=False).returncode == -9
    (left,) = set(folder.iterdir()) - before
    assert (left / "decode1.mlmodelc").is_dir()
    other = load(folder)
    assert not left.exists() and before <= set(folder.iterdir())
    for each in (session, other):
        model = each._model
        assert isinstance(model, Program) and (model.path / "Data/model.mlmodel").is_file()
        each.close()
    assert [path for path in folder.iterdir() if path.name.startswith(".")] == []
