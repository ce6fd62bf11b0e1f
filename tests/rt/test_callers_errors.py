"""The caller's own errors stay what they are, wherever the caller's code is called or a signal's handler interrupts.

What every backend does is in `tests/runtimes/test_contract.py`.
"""

import itertools
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType

import filelock
import numpy as np
import onnxruntime
import pytest

import infgen_rt
from infgen_rt.backend.protocol import installed_backends
from infgen_rt.errors import Cancelled
from infgen_rt.latent.files import read_array
from infgen_rt.viewing import Pyramid

from . import tiny
from .signals import KINDS, NUMBER, Own, OwnKnown, OwnStop, arriving_in, handled

ENDINGS = (".png", ".jpg", ".webp", ".avif", ".tif", ".dzi")


@pytest.mark.parametrize("removed", [False, True], ids=["installed", "removed"])
@pytest.mark.parametrize("kind", KINDS)
def test_in_a_run(decoder: infgen_rt.Decoder, monkeypatch: pytest.MonkeyPatch, kind: type[Own], removed: bool) -> None:
    picture = decoder.picture(tiny.random_latent(8, 12), normalisation="model")
    with monkeypatch.context() as patch, handled(kind, removed), pytest.raises(kind):
        arriving_in(patch, onnxruntime.InferenceSession, "run")
        picture.read()
    assert picture.read().shape == (64, 96, 3)


@pytest.mark.parametrize("kind", KINDS)
def test_while_a_graph_is_loaded(bundle: Path, monkeypatch: pytest.MonkeyPatch, kind: type[Own]) -> None:
    """ONNX Runtime itself would answer a RuntimeError by starting again on the CPU."""
    arriving_in(monkeypatch, onnxruntime.InferenceSession, "_create_inference_session")
    with handled(kind), pytest.raises(kind):
        infgen_rt.open(bundle, "onnxruntime")


@pytest.mark.parametrize("kind", KINDS)
def test_while_a_backend_is_imported(bundle: Path, monkeypatch: pytest.MonkeyPatch, kind: type[Own]) -> None:
    arriving_in(monkeypatch, type(installed_backends()["onnxruntime"]), "load")
    with handled(kind), pytest.raises(kind):
        infgen_rt.open(bundle)


def test_while_another_process_is_waited_for(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, cache_folder: Path, tmp_path: Path
) -> None:
    """A lock that cannot be taken is an error of the system, and so is the error of many a handler."""
    from infgen_rt.common.folders import alone, write_cached

    monkeypatch.setenv("INFGEN_RT_CACHE", str(tmp_path / "cache"))
    arriving_in(monkeypatch, filelock.FileLock, "acquire")
    with handled(OwnKnown):
        with pytest.raises(OwnKnown), alone("measuring", 60):
            pytest.fail("it was not waited for")
        with pytest.raises(OwnKnown):
            write_cached(tmp_path / "file", b"content")


@pytest.mark.parametrize("ending", ENDINGS)
def test_while_a_file_is_written(
    decoder: infgen_rt.Decoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    picture = decoder.picture(tiny.random_latent(8, 12), normalisation="model")
    arriving_in(monkeypatch, Path, "replace" if ending != ".dzi" else "rename")
    with handled(OwnKnown), pytest.raises(OwnKnown):
        picture.save(tmp_path / f"out{ending}")
    assert [path for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("argument", ["progress", "cancel"])
def test_in_the_callers_functions(
    decoder: infgen_rt.Decoder, tmp_path: Path, argument: str, ending: str, kind: type[Own]
) -> None:
    """At whichever call in the caller's thread."""
    picture = decoder.picture(tiny.random_latent(8, 12), tile=32, normalisation="model")
    calls: list[None] = []

    def counting(*_: object) -> None:
        if threading.current_thread() is threading.main_thread():
            calls.append(None)

    picture.save(tmp_path / f"whole{ending}", **{argument: counting})  # type: ignore[arg-type]
    before, count = set(tmp_path.iterdir()), len(calls)
    for number in {1, count // 2, count - 1} if argument == "progress" else {1, 2}:
        with pytest.raises(kind):
            picture.save(tmp_path / f"out{ending}", **{argument: failing_at(number, kind)})  # type: ignore[arg-type]
        assert set(tmp_path.iterdir()) == before


def failing_at(number: int, kind: type[Own]) -> Callable[..., None]:
    """A function of the caller's that fails at one of its calls in the caller's thread."""
    calls = itertools.count(1)

    def function(*_: object) -> None:
        if threading.current_thread() is threading.main_thread() and next(calls) == number:
            raise kind("the caller's")

    return function


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("argument", ["progress", "cancel"])
def test_while_a_picture_is_read(decoder: infgen_rt.Decoder, argument: str, kind: type[Own]) -> None:
    """Also in the stages before the last one, and in a level of a pyramid that is reduced from a larger one."""
    latent = tiny.random_latent(8, 12)
    staged = decoder.picture(latent, "2x", stages=(1, 2), tile=32, normalisation="model")
    pyramid = Pyramid(decoder.picture(latent, normalisation="model"), tile=16)
    reads: list[Callable[..., object]] = [
        staged.read,
        lambda **options: pyramid.region(0, pyramid.levels[0].size.box, **options),
    ]
    for read in reads:
        for number in (1, 2):
            with pytest.raises(kind):
                read(**{argument: failing_at(number, kind)})


@pytest.mark.parametrize("kind", KINDS)
def test_while_tiles_are_read(decoder: infgen_rt.Decoder, kind: type[Own]) -> None:
    """An iterator that raised StopIteration would have ended, as if all tiles were there. Python forbids it."""
    expected = RuntimeError if kind is OwnStop else kind
    tiles = decoder.picture(tiny.random_latent(8, 12), tile=32, normalisation="model").tiles(cancel=failing_at(3, kind))
    with pytest.raises(expected) as raised:
        list(tiles)
    assert isinstance(raised.value if expected is kind else raised.value.__cause__, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_in_the_callers_function_in_another_thread(decoder: infgen_rt.Decoder, kind: type[Own]) -> None:
    """Where it is called again and again, to interrupt a run."""
    watchers: list[threading.Thread] = []
    begun = threading.Event()

    def cancel() -> bool:
        if threading.current_thread() is not threading.main_thread():
            watchers.append(threading.current_thread())
            begun.set()
            raise kind("the caller's")
        assert begun.wait(60)
        watchers[0].join(60)
        return False

    with pytest.raises(kind):
        decoder.picture(tiny.random_latent(8, 12), normalisation="model").read(cancel=cancel)
    assert len(watchers) == 1


def test_a_function_that_cancels_once_has_cancelled(decoder: infgen_rt.Decoder) -> None:
    answers = iter([True])
    with pytest.raises(Cancelled):
        decoder.picture(tiny.random_latent(8, 12), normalisation="model").read(cancel=lambda: next(answers, False))


def test_an_older_error_is_not_taken_for_a_new_one(decoder: infgen_rt.Decoder, tmp_path: Path) -> None:
    """Who answers a handler's error by trying again gets the errors of the second attempt."""
    try:
        with handled(OwnKnown):
            signal.raise_signal(NUMBER)
    except OwnKnown:
        with pytest.raises(infgen_rt.LatentError):
            read_array(tmp_path / "missing.npy")
        (tmp_path / "broken.npy").write_bytes(b"\x93NUMPY broken")
        with pytest.raises(infgen_rt.LatentError):
            read_array(tmp_path / "broken.npy")


Site = tuple[CodeType, int, str]


@pytest.mark.slow
def test_wherever_a_signal_arrives(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After each call of a function in C from this package, once for each place that makes one."""
    latent = tmp_path / "latent.npy"
    np.save(latent, tiny.random_latent(8, 12))
    monkeypatch.setenv("INFGEN_RT_CACHE", str(tmp_path / "cache"))

    def work() -> None:
        with infgen_rt.open(bundle, "onnxruntime") as decoder:
            picture = decoder.picture(read_array(latent).array, "2x", tile=64, normalisation="model")
            picture.save(tmp_path / "out.png", force=True)

    work()
    assert [site for site in _places(work) if not _is_told(work, site)] == []


def _place(frame: FrameType, event: str, called: object) -> Site | None:
    """The place of a call that has returned. Locks are left out: a signal cannot come between them and their block."""
    name = getattr(called, "__qualname__", "")
    module = str(frame.f_globals.get("__name__"))
    if event != "c_return" or "lock" in name or not module.startswith(("infgen_rt", "infgen_runtimes")):
        return None
    return frame.f_code, frame.f_lineno, name


def _places(work: Callable[[], None]) -> list[Site]:
    found: dict[Site, None] = {}

    def note(frame: FrameType, event: str, called: object) -> None:
        if (site := _place(frame, event, called)) is not None:
            found.setdefault(site)

    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(None)
    return list(found)


def _is_told(work: Callable[[], None], site: Site) -> bool:
    """Whether the handler's error comes out when a signal arrives at a place."""

    def interrupt(frame: FrameType, event: str, called: object) -> None:
        if _place(frame, event, called) == site:
            sys.setprofile(None)
            signal.raise_signal(NUMBER)

    with handled(OwnKnown):
        sys.setprofile(interrupt)
        try:
            work()
        except Exception as error:
            return isinstance(error, OwnKnown)
        finally:
            sys.setprofile(None)
    return False
