"""Unusual ways to start Python, and unusual places to start it in: the picture is the same."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

import infgen_rt

from . import tiny

LATENT = tiny.random_latent(9, 11)
NAME = "bild-é-漢"
"""A name that neither ASCII nor Latin-1 has."""
# The command and the library, each once.
_BOTH = """
import sys
latent, bundle, picture, other = sys.argv[1:]
from infgen_rt.cli.main import main
options = ["--model", bundle, "--normalisation", "model", "--backend", "onnxruntime", "-o", picture]
code = main(["decode", latent, *options])
import infgen_rt
with infgen_rt.open(bundle, "onnxruntime") as decoder:
    array = infgen_rt.load_latent(latent, normalisation="model")
    decoder.picture(array, normalisation="model").save(other)
sys.exit(code)
"""


@dataclass(frozen=True)
class Start:
    """A way to start Python.

    Attributes:
        options: Python's options.
        environment: additional variables of the environment. None removes one.
        before: what runs first.
        place: makes the current folder in an empty one, and returns it.
    """

    options: tuple[str, ...] = ()
    environment: dict[str, str | None] = field(default_factory=dict)
    before: str = ""
    place: Callable[[Path], Path] = lambda folder: folder


ASCII: dict[str, str | None] = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LANG": None, "LC_ALL": "C"}
STARTS = {
    "optimised": Start(("-OO",)),
    "warnings are errors": Start(("-bb", "-W", "error")),
    "isolated": Start(("-I",)),
    "without site": Start(("-S",), {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}),
    "little recursion": Start(before="import sys; sys.setrecursionlimit(250)"),
    "ASCII": Start(environment=ASCII),
    "ASCII, strict": Start(environment={**ASCII, "PYTHONIOENCODING": "ascii:strict"}),
    "Latin-1": Start(environment={**ASCII, "LC_ALL": "en_US.ISO-8859-1", "PYTHONIOENCODING": "latin-1"}),
    "no temporary folder": Start(environment=dict.fromkeys(("TMPDIR", "TEMP", "TMP"), "/nowhere")),
    "a folder that is gone": Start(
        before="import os, pathlib; here = pathlib.Path.cwd(); here.rmdir()", place=lambda folder: made(folder / "gone")
    ),
    "a folder that nobody can write in": Start(place=lambda _: Path("/proc")),
}


def made(folder: Path) -> Path:
    folder.mkdir()
    return folder


@pytest.mark.skipif(sys.platform != "linux", reason="uses Linux's locales and folders")
@pytest.mark.parametrize("name", STARTS)
def test_the_command_and_the_library_work(bundle: Path, tmp_path: Path, name: str) -> None:
    start, latent = STARTS[name], tmp_path / f"{NAME}.npy"
    np.save(latent, LATENT)
    outputs = [tmp_path / f"{NAME}.png", tmp_path / f"{NAME}-2.png"]
    given = {"OMP_NUM_THREADS": "1", **start.environment}
    environment = {key: value for key, value in {**os.environ, **given}.items() if value is not None}
    # The names are bytes, as the system passes them on.
    arguments = [os.fsencode(path) for path in (latent, bundle, *outputs)]
    command = [sys.executable, *start.options, "-c", start.before + _BOTH, *arguments]
    place = start.place(tmp_path)
    done = subprocess.run(command, env=environment, cwd=place, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    with infgen_rt.open(bundle, "onnxruntime") as decoder:
        decoder.picture(LATENT, normalisation="model").save(tmp_path / "usual.png")
    assert [path.read_bytes() for path in outputs] == [(tmp_path / "usual.png").read_bytes()] * 2
    assert sorted(each.name for each in tmp_path.iterdir()) == sorted(
        [latent.name, "usual.png", *(path.name for path in outputs)]
    )


@pytest.mark.skipif(sys.platform != "linux", reason="uses Linux's folders")
@pytest.mark.parametrize("name", ["a folder that is gone", "a folder that nobody can write in"])
def test_a_picture_that_cannot_be_written_here_is_refused_in_one_line(bundle: Path, tmp_path: Path, name: str) -> None:
    start = STARTS[name]
    np.save(tmp_path / "a.npy", LATENT)
    code = f"{start.before}\nfrom infgen_rt.cli.main import main\nimport sys\nsys.exit(main(sys.argv[1:]))"
    command = ["decode", str(tmp_path / "a.npy"), "--model", str(bundle), "--normalisation", "model", "-o", "a.png"]
    done = subprocess.run(
        [sys.executable, "-c", code, *command], cwd=start.place(tmp_path), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 2
    assert done.stderr.startswith("Error: cannot write in ") and len(done.stderr.splitlines()) == 1
