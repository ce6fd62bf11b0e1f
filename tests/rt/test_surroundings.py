"""What a decode does without: a home, a terminal, a main thread, package metadata, short names."""

import errno
import io
import os
import shutil
import signal
import subprocess
import sys
import threading
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import infgen_rt
from infgen_rt.backend import protocol
from infgen_rt.bundle import folder as bundles
from infgen_rt.cli.main import main

from . import tiny

NOBODY = "54321"
LONGEST = 255
ENDINGS = (".png", ".jpg", ".webp", ".avif", ".tif", ".dzi")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a latent."""
    np.save(tmp_path / "latent.npy", tiny.random_latent(4, 4))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def decode(bundle: Path) -> list[str]:
    return ["decode", "latent.npy", "--model", str(bundle), "--normalisation", "model"]


def run(arguments: list[str], **options: Any) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "infgen_rt", *arguments]
    return subprocess.run(command, text=True, timeout=120, **options)


# No home.


def can_be_nobody() -> bool:
    unshare = shutil.which("unshare")
    return unshare is not None and subprocess.run([*as_nobody(), "true"], capture_output=True).returncode == 0


def as_nobody() -> list[str]:
    return ["unshare", "--user", f"--map-user={NOBODY}", f"--map-group={NOBODY}"]


@pytest.mark.skipif(not can_be_nobody(), reason="needs unshare and user namespaces")
@pytest.mark.parametrize("backend", ["onnxruntime", pytest.param("auto", marks=pytest.mark.slow)])
def test_a_user_whom_the_system_does_not_know_gets_the_picture(folder: Path, backend: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in ("HOME", "INFGEN_RT_CACHE")}
    environment = {name: value for name, value in environment.items() if not name.startswith("XDG_")}
    command = [*as_nobody(), sys.executable, "-m", "infgen_rt", "decode", "--sample", "osprey"]
    command += ["--region", "0,0,64,64", "--backend", backend, "-o", "out.png"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in folder.iterdir()) == ["latent.npy", "out.png"]
    told = subprocess.run([*command[:7], "cache"], env=environment, capture_output=True, text=True)
    assert told.returncode == 2 and "INFGEN_RT_CACHE" in told.stderr


# No terminal, no streams.


@pytest.mark.parametrize("stream", ["0", "1", "2"])
@pytest.mark.parametrize("python", [False, True])
def test_a_closed_stream_costs_no_picture(folder: Path, decode: list[str], stream: str, python: bool) -> None:
    """Closed before Python starts, where the stream is None, and by an app in Python."""
    arguments = [*decode, "--backend", "onnxruntime", "-o", "out.png"]
    if python:
        name = ("stdin", "stdout", "stderr")[int(stream)]
        script = f"import sys; sys.{name}.close(); from infgen_rt.cli import main; sys.exit(main(sys.argv[1:]))"
        done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True)
    else:
        shell = ["sh", "-c", f'"$@" {stream}>&-', "sh", sys.executable, "-m", "infgen_rt", *arguments]
        done = subprocess.run(shell, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert (folder / "out.png").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_under_the_output_costs_no_picture_and_is_told_where_text_is_all(
    folder: Path, decode: list[str], bundle: Path
) -> None:
    with open("/dev/full", "w") as full:
        run([*decode, "-o", "out.png"], stdout=full, stderr=full)
        assert (folder / "out.png").exists()
        told = run(["info", str(bundle)], stdout=full, stderr=subprocess.PIPE)
    assert told.returncode != 0 and "cannot print" in told.stderr and "Traceback" not in told.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("output", ["full", "pipe that nobody reads"])
def test_a_batch_is_decoded_if_its_lines_for_programs_cannot_be_printed(
    folder: Path, bundle: Path, output: str
) -> None:
    for number in range(4):
        np.save(folder / f"{number}.npy", tiny.random_latent(4, 4, number))
    if output == "full":
        stream = os.open("/dev/full", os.O_WRONLY)
    else:
        reading, stream = os.pipe()
        os.close(reading)
    names = [f"{number}.npy" for number in range(4)]
    done = run(
        ["decode", *names, "-o", "out", "--json", "--model", str(bundle), "--normalisation", "model"],
        stdout=stream,
        stderr=subprocess.PIPE,
    )
    os.close(stream)
    errors = done.stderr.splitlines()
    assert done.returncode == 1 and len(errors) == (output == "full") and all("cannot print" in line for line in errors)
    assert len(list((folder / "out").iterdir())) == 4


class Gone(io.StringIO):
    """A terminal that hung up."""

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_a_terminal_that_hung_up_costs_the_progress_bar(
    folder: Path, decode: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", Gone())
    assert main([*decode, "--backend", "onnxruntime", "-o", "out.png"]) == 0
    assert (folder / "out.png").exists()


@pytest.mark.parametrize("stream", [None, "closed"])
def test_a_windowed_app_that_has_no_streams_gets_errors_as_exit_codes(
    folder: Path, decode: list[str], monkeypatch: pytest.MonkeyPatch, stream: str | None
) -> None:
    nothing = None
    if stream is not None:
        nothing = io.StringIO()
        nothing.close()
    monkeypatch.setattr(sys, "stdout", nothing)
    monkeypatch.setattr(sys, "stderr", nothing)
    assert main([*decode, "--backend", "onnxruntime", "-o", "out.png"]) == 0
    assert main([*decode, "-o", "out.png"]) == 2
    assert main(["info"]) == 0 and main(["devices"]) == 0


@pytest.mark.parametrize("stream", [None, "closed"])
def test_a_warning_that_cannot_be_printed_costs_nothing(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stream: str | None
) -> None:
    """As the library gives it, outside the command."""
    script = """
import sys, infgen_rt, numpy
if sys.argv[2] == "closed":
    sys.stderr.close()
else:
    sys.stderr = None
with infgen_rt.open(sys.argv[1], "onnxruntime") as decoder:
    # Its normalisation cannot be told.
    print(decoder.picture(numpy.load(sys.argv[3])).read().shape)
"""
    np.save(tmp_path / "latent.npy", tiny.random_latent(4, 4))
    arguments = [str(bundle), str(stream), str(tmp_path / "latent.npy")]
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "(32, 32, 3)\n"), done.stderr


# Another thread.


def test_the_command_runs_in_a_thread_and_leaves_signals_alone(folder: Path, decode: list[str]) -> None:
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(main([*decode, "-o", "out.png"])))
    thread.start()
    thread.join()
    assert codes == [0] and (folder / "out.png").exists()


def test_the_command_gives_a_signals_handler_back(folder: Path, decode: list[str]) -> None:
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        mine = signal.getsignal(signal.SIGTERM)
        assert main([*decode, "-o", "out.png"]) == 0
        assert signal.getsignal(signal.SIGTERM) is mine
    finally:
        signal.signal(signal.SIGTERM, before)


# No metadata, as in a frozen app.


@pytest.fixture
def frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(sys, "frozen", True, raising=False)
    monkeypatch.setattr(metadata, "entry_points", lambda **_: ())
    for name in ("version", "requires", "distribution"):
        monkeypatch.setattr(metadata, name, missing)


@pytest.mark.usefixtures("frozen")
def test_an_app_without_metadata_finds_the_backends(bundle: Path, tmp_path: Path) -> None:
    assert list(protocol.installed_backends()) == list(protocol.KNOWN)
    for name in ("auto", "onnxruntime"):
        with infgen_rt.open(bundle, name) as decoder:
            decoder.picture(tiny.random_latent(4, 4), normalisation="model").save(tmp_path / f"{name}.png")


@pytest.mark.usefixtures("frozen")
def test_an_app_is_told_how_to_be_built_and_not_to_run_pip(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.delitem(sys.modules, "infgen_runtimes.openvino", raising=False)
    with pytest.raises(infgen_rt.BackendError, match="built") as caught:
        infgen_rt.open(bundle, "openvino")
    assert "pip" not in str(caught.value)
    monkeypatch.setattr(bundles, "DEFAULT_BUNDLE", tmp_path / "nothing")
    with pytest.raises(infgen_rt.BundleError, match="data files"):
        infgen_rt.open()


# Names.


def named(length: int, ending: str, letter: str) -> str:
    """A name of so many bytes."""
    count, rest = divmod(length - len(ending), len(letter.encode()))
    return letter * count + "x" * rest + ending


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("letter", ["a", "é", "界", "😀"])
def test_every_name_that_the_file_system_takes_can_be_a_pictures(
    decoder: infgen_rt.Decoder, tmp_path: Path, ending: str, letter: str
) -> None:
    picture = decoder.picture(tiny.random_latent(4, 4), normalisation="model")
    # A pyramid's folder has a longer name.
    longest = LONGEST - len("_files") + len(".dzi") if ending == ".dzi" else LONGEST
    for length in (200, 243, 244, 245, longest):
        name = named(length, ending, letter)
        picture.save(tmp_path / name)
        assert (tmp_path / name).exists()
    for length in (longest + 1, 300, 5000):
        with pytest.raises(infgen_rt.OutputError, match="too long"):
            picture.save(tmp_path / named(length, ending, letter))
    assert not list(tmp_path.glob(".*"))


def test_a_batch_goes_on_after_a_name_that_is_too_long(
    folder: Path, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = named(LONGEST, ".npy", "a")
    shutil.copy("latent.npy", long)
    options = ["--model", str(bundle), "--normalisation", "model", "--format", "webp"]
    assert main(["decode", long, "latent.npy", "-o", "pictures", *options]) == 1
    assert [path.name for path in (folder / "pictures").iterdir()] == ["latent.webp"]
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 2 and "too long" in errors[0]
    assert main(["decode", "x" * 5000, "latent.npy", "-o", "others", *options]) == 1
    assert [path.name for path in (folder / "others").iterdir()] == ["latent.webp"]
    assert main(["decode", "latent.npy", "-o", "x" * 5000 + ".png", *options]) == 2
    assert main(["info", "x" * 5000]) == 2


@pytest.mark.skipif(sys.platform == "win32", reason="Windows forbids some of these")
@pytest.mark.parametrize(
    "name",
    [
        'a cat, "sitting": 50% off? [best] {v1}.png',
        "two\nlines\tand a tab.png",
        "-o --force.png",
        "*.png",
        "😀 | <b>é</b> \\ $(touch x) `y`.png",
        " .png",
        "v1.5, 8k, masterpiece.PNG",
        "\udcff no utf-8.png",
        "/".join(["a" * 10] * 3) + ".png",
    ],
)
def test_a_prompt_can_be_a_pictures_name(
    folder: Path, decode: list[str], capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    assert main([*decode, f"--output={name}"]) == 0
    assert os.path.lexists(name)


def test_what_cannot_be_a_name_is_an_error(decoder: infgen_rt.Decoder, tmp_path: Path) -> None:
    picture = decoder.picture(tiny.random_latent(4, 4), normalisation="model")
    (tmp_path / "file").touch()
    for name in ("a\0b.png", ".png", "", "a/" * 3000 + "x.png", "file/x.png"):
        with pytest.raises(infgen_rt.OutputError):
            picture.save(f"{tmp_path}/{name}")
