"""Many pictures: those that are made at the same time look as if they were made one after another."""

import gc
import json
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import infgen_rt
from infgen_rt.batch import Line
from infgen_rt.bundle.graphs import DECODE
from infgen_rt.cli.main import main

from . import tiny
from .watching import Run, on_runs

pytestmark = pytest.mark.filterwarnings("ignore::infgen_rt.InfGenWarning")
NAMES = ["a.png", "b.png", "c.png", "d.png"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def pictures(decoder: infgen_rt.Decoder, size: str = "4x") -> Iterator[tuple[infgen_rt.Picture, str]]:
    for seed, name in enumerate(NAMES):
        yield decoder.picture(tiny.random_latent(9, 12, seed), size, normalisation="model"), name


@pytest.fixture
def busy(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many pictures were being decoded when each tile began, seen from their threads."""
    seen: list[int] = []
    running: dict[int, int] = {}
    lock = threading.Lock()

    def decode(run: Run, inputs: Any, shared: bool) -> Any:
        me = threading.get_ident()
        with lock:
            running[me] = running.get(me, 0) + 1
            seen.append(len(running))
        time.sleep(0.05)
        try:
            return run()
        finally:
            with lock:
                del running[me]

    on_runs(monkeypatch, DECODE, decode)
    return seen


def test_files_are_those_of_one_picture_after_another(
    decoder: infgen_rt.Decoder, busy: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert infgen_rt.save_pictures(pictures(decoder), at_once=1) == {}
    assert max(busy) == 1
    alone = [Path(name).read_bytes() for name in NAMES]
    met = threading.Barrier(2)
    first = iter(range(2))

    def decode(run: Run, inputs: Any, shared: bool) -> Any:
        # The first tile waits for one of another picture, which is an error if there is none.
        if next(first, None) is not None:
            met.wait(60)
        return run()

    on_runs(monkeypatch, DECODE, decode)
    assert infgen_rt.save_pictures(pictures(decoder), at_once=2, force=True) == {}
    assert [Path(name).read_bytes() for name in NAMES] == alone
    assert sorted(path.name for path in Path().iterdir()) == NAMES


def test_steps_are_reported_in_the_callers_thread_picture_by_picture(decoder: infgen_rt.Decoder) -> None:
    def steps(at_once: int) -> list[tuple[str, infgen_rt.Progress]]:
        found = []

        def on_step(path: Path, step: infgen_rt.Progress) -> None:
            assert threading.current_thread() is threading.main_thread()
            found.append((path.name, step))

        infgen_rt.save_pictures(pictures(decoder), at_once=at_once, force=True, progress=on_step)
        return found

    one = steps(1)
    assert steps(2) == steps(3) == one
    assert list(dict.fromkeys(name for name, _ in one)) == NAMES
    assert all(one[index][1].fraction == 1 for index in range(len(one) - 1) if one[index][0] != one[index + 1][0])


def test_an_error_in_the_middle_is_that_pictures_alone(decoder: infgen_rt.Decoder) -> None:
    Path("b.png").write_text("precious")
    failed = infgen_rt.save_pictures(pictures(decoder))
    assert list(failed) == [Path("b.png")] and "b.png exists" in str(failed[Path("b.png")])
    assert sorted(path.name for path in Path().iterdir()) == NAMES
    assert Path("b.png").read_text() == "precious"


def test_a_folder_that_may_not_be_looked_into_fails_one_picture(
    decoder: infgen_rt.Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path) -> Iterator[Path]:  # as the system does for all users but root
        raise PermissionError(13, "Permission denied", str(self))

    Path("a_files").mkdir()
    monkeypatch.setattr(Path, "iterdir", refuse)
    first, second, *_ = (picture for picture, _ in pictures(decoder, "1x"))
    failed = infgen_rt.save_pictures([(first, "a.dzi"), (second, "b.png")], force=True)
    assert {path: str(error) for path, error in failed.items()} == {
        Path("a.dzi"): f"cannot write {Path('a.dzi').absolute()}: Permission denied"
    }
    assert Path("b.png").exists()


def test_an_error_that_is_returned_does_not_keep_its_picture(decoder: infgen_rt.Decoder) -> None:
    Path("b.png").write_text("precious")
    alive = list[weakref.ref[infgen_rt.Picture]]()

    def watched() -> Iterator[tuple[infgen_rt.Picture, str]]:
        for picture, name in pictures(decoder):
            alive.append(weakref.ref(picture))
            yield picture, name

    failed = infgen_rt.save_pictures(watched())
    gc.collect()
    assert len(failed) == 1 and not any(each() for each in alive)


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("ignores", [False, True])
def test_no_picture_takes_the_name_of_another(
    decoder: infgen_rt.Decoder, monkeypatch: pytest.MonkeyPatch, ignores: bool, force: bool
) -> None:
    """Nor one that differs in capitals, if the file system does not distinguish them."""
    monkeypatch.setattr("infgen_rt.writers.names.ignores_case", lambda folder: ignores)
    Path("link").symlink_to(Path().absolute())
    names = ("a.png", "b.png", "A.png" if ignores else "sub/../a.png", "link/b.png")
    given = [(picture, name) for (picture, _), name in zip(pictures(decoder), names, strict=True)]
    failed = infgen_rt.save_pictures(given, force=force)
    assert [str(path) for path in failed] == [str(Path(name)) for name in names[2:]]
    assert all("the name of two pictures" in str(error) for error in failed.values())
    assert np.array_equal(pixels_of("a.png"), given[0][0].read())
    assert sorted(path.name for path in Path().iterdir()) == ["a.png", "b.png", "link"]


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="their file systems do not distinguish capitals")
def test_names_that_differ_in_capitals_are_two_where_the_file_system_says_so(decoder: infgen_rt.Decoder) -> None:
    given = [(picture, name) for (picture, _), name in zip(pictures(decoder), ("a.png", "A.png"), strict=False)]
    assert infgen_rt.save_pictures(given) == {}
    assert sorted(path.name for path in Path().iterdir()) == ["A.png", "a.png"]


def test_pictures_are_where_their_names_pointed_when_they_were_given(decoder: infgen_rt.Decoder) -> None:
    def wandering() -> Iterator[tuple[infgen_rt.Picture, str]]:
        for picture, name in pictures(decoder, "1x"):
            yield picture, name
            Path(f"{name}.d").mkdir()
            os.chdir(f"{name}.d")

    start = Path().absolute()
    assert infgen_rt.save_pictures(wandering()) == {}
    assert sorted(str(path.relative_to(start)) for path in start.rglob("*.png")) == [
        "a.png",
        "a.png.d/b.png",
        "a.png.d/b.png.d/c.png",
        "a.png.d/b.png.d/c.png.d/d.png",
    ]


def test_an_error_of_the_iterable_comes_after_the_pictures_before_it(decoder: infgen_rt.Decoder) -> None:
    def some() -> Iterator[tuple[infgen_rt.Picture, str]]:
        given = pictures(decoder)
        yield next(given)
        yield next(given)
        raise infgen_rt.LatentError("c.npy is damaged")

    with pytest.raises(infgen_rt.LatentError, match="c.npy is damaged"):
        infgen_rt.save_pictures(some())
    assert sorted(path.name for path in Path().iterdir()) == NAMES[:2]


def pixels_of(name: str) -> np.ndarray:
    from PIL import Image

    with Image.open(name) as image:
        return np.asarray(image)


def test_plans_that_do_not_fit_together_wait_for_each_other(bundle: Path, busy: list[int]) -> None:
    with infgen_rt.open(bundle) as decoder:
        plan = next(pictures(decoder))[0].plan
    with infgen_rt.open(bundle, memory=int(1.2 * (plan.memory - plan.cache))) as decoder:
        infgen_rt.save_pictures(pictures(decoder))
    assert max(busy) == 1
    line: Line[None] = Line(2)
    with line:
        assert line.has_room(100, 10, Path("a.png"))  # a picture's own plan has checked its budget
        line.add(lambda post, stop: None, "first", 6, Path("a.png"))
        assert line.has_room(4, 10, Path("b.png"))
        assert not line.has_room(5, 10, Path("b.png"))
        assert not line.has_room(4, 10, Path("sub/../a.png"))


def test_cancelling_stops_all_pictures_and_leaves_no_incomplete_file(decoder: infgen_rt.Decoder) -> None:
    cancel = threading.Event()

    def on_step(path: Path, step: infgen_rt.Progress) -> None:
        if path.name == "b.png":
            cancel.set()

    with pytest.raises(infgen_rt.Cancelled):
        infgen_rt.save_pictures(pictures(decoder), progress=on_step, cancel=cancel)
    left = [path.name for path in Path().iterdir()]
    assert "a.png" in left and "d.png" not in left and set(left) <= set(NAMES)
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("infgen-work")]


def test_an_error_of_the_callers_own_stops_all_pictures(decoder: infgen_rt.Decoder) -> None:
    def on_step(path: Path, step: infgen_rt.Progress) -> None:
        raise error

    for error in (StopIteration("mine"), infgen_rt.PlanError("mine")):
        with pytest.raises(type(error), match="mine"):
            infgen_rt.save_pictures(pictures(decoder), progress=on_step)
    with pytest.raises(ZeroDivisionError):
        infgen_rt.save_pictures(pictures(decoder), cancel=lambda: 1 // 0 > 0)
    assert {path.name for path in Path().iterdir()} <= {"a.png", "b.png"}


def test_pictures_that_are_written_do_not_stay_in_memory(decoder: infgen_rt.Decoder) -> None:
    alive: weakref.WeakSet[infgen_rt.Picture] = weakref.WeakSet()

    def watched() -> Iterator[tuple[infgen_rt.Picture, str]]:
        for picture, name in pictures(decoder):
            gc.collect()
            assert len(alive) <= 2
            alive.add(picture)
            yield picture, name
            del picture

    infgen_rt.save_pictures(watched())


def test_at_least_one_picture_at_once(decoder: infgen_rt.Decoder) -> None:
    with pytest.raises(infgen_rt.PlanError, match="at_once of 0 is not possible: expected 1 or more"):
        infgen_rt.save_pictures([], at_once=0)


def test_events_and_errors_of_a_line_are_in_order_and_a_group_ends_with_its_error() -> None:
    later = threading.Event()
    told: list[Any] = []

    def slow(post: Any, stop: threading.Event) -> str:
        post("slow 1")
        assert later.wait(30)
        post("slow 2")
        return "slow"

    def quick(post: Any, stop: threading.Event) -> str:
        post("quick")
        later.set()
        raise infgen_rt.DecodeError("quick failed")

    def endless(post: Any, stop: threading.Event) -> str:
        assert stop.wait(30)
        return "stopped"

    line: Line[str] = Line(4)
    with line:
        line.add(slow, "one")
        line.add(quick, "two")
        line.add(endless, "two")
        line.add(lambda post, stop: "last", "three")
        assert line.full
        assert line.take(told.append) == "slow"
        assert told == ["slow 1", "slow 2"]
        with pytest.raises(infgen_rt.DecodeError, match="quick failed"):
            line.take(told.append)
        assert told[2:] == ["quick"] and len(line) == 1 and line.oldest == "three"
        assert line.take(told.append) == "last" and not line


@pytest.fixture
def command(bundle: Path) -> list[str]:
    for seed in range(4):
        np.save(f"{seed}.npy", tiny.random_latent(6, 7, seed))
    np.save("2.npy", tiny.random_latent(6, 7, 2)[:5])  # no latent space has five channels
    return ["decode", "0.npy", "1.npy", "2.npy", "3.npy", "-o", "out", "--model", str(bundle), "--size", "96x128"]


def test_what_is_printed_is_in_the_order_of_the_latents(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("infgen_rt.cli.console.click.echo", lambda text, err=False: said.append(text))
    Path("out").mkdir()
    Path("out/1.png").write_text("precious")
    assert main([*command, "--json"]) == 1
    order = [json.loads(text)["output"] if text.startswith("{") else text for text in said]
    outputs = [str(Path("out") / f"{number}.png") for number in range(4)]
    assert [text for text in order if text in outputs] == outputs
    first_error = next(index for index, text in enumerate(order) if "1.png exists" in text)
    assert order[first_error + 1] == outputs[1] and order.index(outputs[0]) < first_error
    warned = [json.loads(text).get("warnings") for text in said if text.startswith("{")]
    assert warned[0] and warned[0] == warned[3] and warned[1] is None


@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX")
def test_a_signal_leaves_complete_pictures_only(bundle: Path) -> None:
    for seed in range(4):
        np.save(f"{seed}.npy", tiny.random_latent(60, 90, seed))
    command = [sys.executable, "-m", "infgen_rt", "decode", *(f"{seed}.npy" for seed in range(4)), "-o", "out"]
    command += ["--model", str(bundle), "--normalisation", "model", "--size", "20x", "--tile", "64"]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    )
    while len(list(Path().glob("out/.*.png.*"))) < 2:
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode in (130, -signal.SIGINT) and "Traceback" not in errors
    assert list(Path("out").iterdir()) == []
