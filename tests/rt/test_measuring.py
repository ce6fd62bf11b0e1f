"""The first measurement tells its progress, and a caller or Ctrl-C ends it."""

import io
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import EntryPoint
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from filelock import FileLock

import infgen_rt
from infgen_rt.backend import candidates, measuring, protocol
from infgen_rt.backend.protocol import Device, Options, Session, Values
from infgen_rt.backend.report import describe_devices
from infgen_rt.bundle.folder import Bundle
from infgen_rt.bundle.manifest import Recipe
from infgen_rt.cli.main import main
from infgen_rt.common.cancellation import current
from infgen_rt.errors import Cancelled, DecodeError


class Double:
    """A backend with two ways of running a bundle, the real one under another name."""

    name, target, version = "double", "onnx", "1"
    parallel_on: tuple[str, ...] = ()

    def devices(self) -> Sequence[Device]:
        return [Device("cpu", "CPU")]

    def arithmetics(self, device: str, recipe: Recipe) -> Sequence[str]:
        return ["fp32", "bf16"]

    def load(self, graph: str, files: Mapping[str, bytes], options: Options) -> Session:
        from infgen_runtimes.onnxruntime import Backend

        return Backend().load(graph, files, Options())


class Endless:
    """A session whose runs end only when they are interrupted."""

    begun: Any = staticmethod(lambda: None)
    interrupted = threading.Event()

    def run(self, inputs: Mapping[str, Values]) -> Mapping[str, Values]:
        with current().interrupting(self.interrupted.set):
            self.begun()
            assert self.interrupted.wait(60)
        raise DecodeError("terminated")

    def close(self) -> None:
        pass


class Hanging(Double):
    """The same, with a decode graph that does not end."""

    name = "hanging"

    def load(self, graph: str, files: Mapping[str, bytes], options: Options) -> Session:
        return Endless() if graph.startswith("decode") else super().load(graph, files, options)


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Only these backends, and an empty cache folder."""
    table = {kind.name: EntryPoint(kind.name, f"{__name__}:{kind.__name__}", protocol.GROUP) for kind in KINDS}
    for module in (protocol, candidates, sys.modules["infgen_rt.backend.report"]):
        monkeypatch.setattr(module, "installed_backends", lambda: table)
    monkeypatch.setenv("INFGEN_RT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(Endless, "interrupted", threading.Event())
    yield


KINDS = (Double, Hanging)


def measured(bundle: Path) -> bool:
    """Whether measurements were kept."""
    return bool(measuring.recall(measuring.key(Bundle.open(bundle), None)).results)


def test_measuring_tells_its_progress_the_first_time_only(bundle: Path) -> None:
    for expected in (["measure 0/2 (0%)", "measure 1/2 (50%)", "measure 2/2 (100%)"], []):
        told: list[infgen_rt.Progress] = []
        infgen_rt.open(bundle, "double", progress=told.append).close()
        assert [str(each) for each in told] == expected
    told = []
    describe_devices(Bundle.open(bundle), progress=told.append)
    assert not told


def test_measurements_belong_to_the_processors_in_use(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A container may have fewer, and a home may be shared by machines."""
    opened = Bundle.open(bundle)
    before = measuring.key(opened, None)
    for name, value in (("cores", lambda: 999), ("processor_name", lambda: "another")):
        with monkeypatch.context() as patch:
            patch.setattr(measuring, name, value)
            assert measuring.key(opened, None) != before
    assert measuring.key(opened, None) == before


def test_what_is_cancelled_before_it_begins_loads_nothing(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Double, "load", lambda *_: pytest.fail("loaded"))
    cancel = threading.Event()
    cancel.set()
    with pytest.raises(Cancelled):
        infgen_rt.open(bundle, "double", cancel=cancel)


@pytest.mark.parametrize("parallel", [(), ("cpu",)], ids=["one tile", "two tiles"])
def test_a_run_is_interrupted_and_nothing_is_kept(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, parallel: tuple[str, ...]
) -> None:
    cancel = threading.Event()
    monkeypatch.setattr(Endless, "begun", staticmethod(cancel.set))
    monkeypatch.setattr(Hanging, "parallel_on", parallel)
    with pytest.raises(Cancelled):
        infgen_rt.open(bundle, "hanging", threads=2, cancel=cancel)
    assert Endless.interrupted.is_set() and not measured(bundle)


def test_cancelling_between_two_ways_keeps_nothing_and_the_next_open_measures(bundle: Path) -> None:
    told: list[infgen_rt.Progress] = []
    with pytest.raises(Cancelled):
        infgen_rt.open(bundle, "double", progress=told.append, cancel=lambda: bool(told and told[-1].done))
    assert len(told) == 2 and not measured(bundle)
    infgen_rt.open(bundle, "double").close()
    assert measured(bundle)


def test_waiting_for_another_process_can_be_cancelled(bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cache" / "infgen-rt"
    folder.mkdir(parents=True)
    cancel = threading.Event()
    timer = threading.Timer(0.5, cancel.set)
    with FileLock(folder / "measuring.lock", thread_local=False):
        timer.start()
        with pytest.raises(Cancelled):
            infgen_rt.open(bundle, "double", cancel=cancel)
    assert not measured(bundle)


@pytest.mark.parametrize("argument", ["progress", "cancel"])
@pytest.mark.parametrize("kind", [OSError, StopIteration])
def test_an_error_of_the_callers_own_comes_out_as_it_is(bundle: Path, argument: str, kind: type[Exception]) -> None:
    def fail(*_: object) -> bool:
        raise kind("the caller's")

    with pytest.raises(kind, match="the caller's"):
        infgen_rt.open(bundle, "double", **{argument: fail})  # type: ignore[arg-type]
    assert not measured(bundle)


class Terminal(io.StringIO):
    """A terminal that keeps what is shown."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("command", ["plan", "devices"])
def test_the_command_line_shows_it_on_a_terminal(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    arguments = {
        "plan": ["plan", "--sample", "harbour", "-o", "out.png", "--backend", "double", "--model", str(bundle)],
        "devices": ["devices", "--measure", "--model", str(bundle)],
    }[command]
    monkeypatch.setattr(Hanging, "devices", lambda self: [Device("cpu", "CPU", "hangs")])
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    main(arguments)
    shown = terminal.getvalue()
    assert "measure" in shown and "0%" in shown and "100%" in shown
    assert "100%" not in capsys.readouterr().out


def interrupted_while_measuring(bundle: Path) -> int:
    """Measure in this process, whose only backends are those here, and press Ctrl-C while a graph runs."""

    def handler(number: int, frame: FrameType | None) -> None:
        # Python calls it only when native code has ended, which it does when it is interrupted.
        assert Endless.interrupted.wait(60)
        signal.default_int_handler(number, frame)

    table = {kind.name: EntryPoint(kind.name, f"{__name__}:{kind.__name__}", protocol.GROUP) for kind in KINDS}
    for module in (protocol, candidates, sys.modules["infgen_rt.backend.report"]):
        module.installed_backends = lambda: table  # type: ignore[attr-defined]
    Endless.begun = staticmethod(lambda: signal.raise_signal(signal.SIGINT))
    # A process that a shell has started in the background ignores the signal.
    signal.signal(signal.SIGINT, handler)
    code = main(["devices", "--measure", "--model", str(bundle)])
    assert Endless.interrupted.is_set() and not measured(bundle)
    return code


@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX")
def test_ctrl_c_ends_the_run_in_progress(bundle: Path) -> None:
    """In a process of its own, because the interrupt may come out of any call there, also of the tests' own tools."""
    code = "import sys; from tests.rt.test_measuring import *; sys.exit(interrupted_while_measuring(Path(sys.argv[1])))"
    done = subprocess.run(
        [sys.executable, "-c", code, bundle], capture_output=True, text=True, cwd=Path(__file__).parents[2]
    )
    assert done.returncode == 130, done.stderr
    assert done.stderr.splitlines()[-1] == "Error: interrupted"
