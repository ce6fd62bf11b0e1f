"""Several tiles at a time: the same pictures, in order, and no more at once than planned."""

import threading
import time
from collections.abc import Callable, Iterator
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import infgen_rt
from infgen_rt.backend.engine import cores
from infgen_rt.backend.gate import Gate
from infgen_rt.bundle.folder import Bundle
from infgen_rt.bundle.graphs import DECODE
from infgen_rt.geometry.shapes import Box
from infgen_rt.nodes.tiles import Tiles

from . import tiny
from .watching import Run, on_runs

LATENT = tiny.random_latent(40, 50)
SIZE = (1200, 900)
pytestmark = pytest.mark.filterwarnings("ignore::infgen_rt.InfGenWarning")


@pytest.fixture
def parallel(bundle: Path) -> Iterator[infgen_rt.Decoder]:
    with infgen_rt.open(bundle, "onnxruntime", threads=3, memory="1GB") as decoder:
        yield decoder


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many decodes were under way when each began."""
    seen: list[int] = []
    running, lock = 0, threading.Lock()

    def decode(run: Run, inputs: Any, shared: bool) -> Any:
        nonlocal running
        with lock:
            running += 1
            seen.append(running)
        time.sleep(0.02)
        try:
            return run()
        finally:
            with lock:
                running -= 1

    on_runs(monkeypatch, DECODE, decode)
    return seen


@pytest.mark.parametrize("stages", [None, (2, 1.5)])
def test_a_picture_is_the_same_with_any_number_of_workers(
    bundle: Path, parallel: infgen_rt.Decoder, at_once: list[int], stages: tuple[float, ...] | None
) -> None:
    picture = parallel.picture(LATENT, SIZE, tile=256, stages=stages)
    assert picture.plan.workers == 3 and str(picture.plan).count(", 3 at a time") == len(picture.plan.stages)
    pixels, floats = picture.read(), picture.read(dtype=np.float32)
    assert max(at_once) == 3
    at_once.clear()
    with infgen_rt.open(bundle, "onnxruntime", threads=1, memory="1GB") as decoder:
        alone = decoder.picture(LATENT, SIZE, tile=256, stages=stages)
        assert alone.plan.workers == 1 and "at a time" not in str(alone.plan)
        assert np.abs(floats - alone.read(dtype=np.float32)).max() < 1e-5
        assert np.abs(pixels - alone.read().astype(int)).max() <= 1
    assert max(at_once) == 1


def test_tiles_and_files_are_those_of_the_picture(
    parallel: infgen_rt.Decoder, at_once: list[int], tmp_path: Path
) -> None:
    from PIL import Image

    picture = parallel.picture(LATENT, SIZE, tile=128)
    whole = picture.read()
    steps: list[infgen_rt.Progress] = []
    picture.save(tmp_path / "a.png", progress=steps.append)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "a.png")), whole)
    assert [step.done for step in steps] == list(range(1, steps[0].total + 1))
    for box, pixels in picture.tiles(start=(1000, 100)):
        assert np.array_equal(pixels, whole[box.slices]) and pixels.flags.c_contiguous
    assert max(at_once) == 3


def test_one_tile_has_all_threads(parallel: infgen_rt.Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    def decode(run: Run, inputs: Any, shared: bool) -> Any:
        asked.append(shared)
        return run()

    on_runs(monkeypatch, DECODE, decode)
    picture = parallel.picture(LATENT, SIZE, tile=256)
    picture.read((10, 10, 200, 200))
    assert asked == [False]
    picture.read((10, 10, 700, 700))
    assert len(asked) > 5 and all(asked[1:])


def test_workers_that_do_not_fit_are_left_out(bundle: Path) -> None:
    """Fewer at a time, or one, rather than small tiles; what is planned is in the budget."""
    found = {}
    for memory in (100, 70, 40, 12):
        with infgen_rt.open(bundle, "onnxruntime", threads=4, memory=memory * 10**6) as decoder:
            plan = decoder.picture(LATENT, (4000, 3200), max_scale=inf).plan
            assert plan.memory <= plan.budget
            found[memory] = plan.workers
            assert plan.workers == 1 or min(plan.stages[0].tile) >= 31  # balanced, so that none is a sliver
    assert sorted(found.values(), reverse=True) == list(found.values()) and set(found.values()) == {1, 2, 4}


def test_a_tile_that_fails_is_named_and_the_decoder_goes_on(
    parallel: infgen_rt.Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    count, lock = 0, threading.Lock()

    def decode(run: Run, inputs: Any, shared: bool) -> Any:
        nonlocal count
        with lock:
            count += 1
            if count == 4:
                raise infgen_rt.DecodeError("the driver is gone")
        return run()

    on_runs(monkeypatch, DECODE, decode)
    picture = parallel.picture(LATENT, SIZE, tile=128)
    with pytest.raises(
        infgen_rt.DecodeError, match=r"the tile \d+,\d+,\d+,\d+ could not be decoded: the driver is gone"
    ):
        picture.read()
    assert picture.read().any()


def test_cancelling_starts_no_further_tile(parallel: infgen_rt.Decoder, at_once: list[int], tmp_path: Path) -> None:
    picture, cancel = parallel.picture(LATENT, SIZE, tile=128), threading.Event()
    picture.preview(64)
    at_once.clear()
    before = set(threading.enumerate())

    def progress(step: infgen_rt.Progress) -> None:
        if step.stage == "decode":
            cancel.set()

    with pytest.raises(infgen_rt.Cancelled):
        picture.save(tmp_path / "a.png", progress=progress, cancel=cancel)
    begun = len(at_once)
    time.sleep(0.1)
    # The first, and those that were read ahead of it.
    assert len(at_once) == begun <= 2 + 3 and list(tmp_path.iterdir()) == []
    assert set(threading.enumerate()) <= before


@pytest.mark.parametrize("raised", [None, ValueError("the caller's own")])
def test_what_was_read_ahead_for_a_cancelled_caller_does_not_fail_the_next(
    parallel: infgen_rt.Decoder, at_once: list[int], raised: Exception | None
) -> None:
    expected = parallel.picture(LATENT, SIZE, tile=128, stages=(2, 1.5)).read()
    for last in range(2, 14, 3):
        picture, steps = parallel.picture(LATENT, SIZE, tile=128, stages=(2, 1.5)), 0

        def progress(step: infgen_rt.Progress) -> None:
            nonlocal steps
            steps += 1

        def cancel() -> bool:
            if steps >= last and raised is not None:  # noqa: B023
                raise raised
            return steps >= last  # noqa: B023

        with pytest.raises(type(raised) if raised else infgen_rt.Cancelled):
            picture.read(progress=progress, cancel=cancel)
        assert np.abs(picture.read().astype(int) - expected).max() <= 1


def test_closing_waits_for_the_tiles_that_are_under_way(parallel: infgen_rt.Decoder, at_once: list[int]) -> None:
    picture, failures = parallel.picture(LATENT, SIZE, tile=64), []

    def read() -> None:
        try:
            picture.read()
        except infgen_rt.DecodeError as error:
            failures.append(str(error))

    reader = threading.Thread(target=read)
    reader.start()
    while not at_once:
        time.sleep(0.005)
    parallel.close()
    reader.join()
    assert len(failures) == 1 and "the decoder is closed" in failures[0]


def test_several_readers_share_the_workers(parallel: infgen_rt.Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two threads that read have no more runs at once between them than one has."""
    session = type(parallel._engine._sessions["prefill"])
    running, most, lock, run = 0, 0, threading.Lock(), session.run

    def on_run(self: Any, inputs: Any) -> Any:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.02)
        try:
            return run(self, inputs)
        finally:
            with lock:
                running -= 1

    monkeypatch.setattr(session, "run", on_run)
    pictures = [parallel.picture(LATENT, SIZE, tile=tile) for tile in (128, 192)]
    expected = pictures[0].read()
    results: list[np.ndarray] = []
    readers = [threading.Thread(target=lambda p=picture: results.append(p.read())) for picture in pictures]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    assert len(results) == 2 and all(np.abs(result - expected.astype(int)).max() <= 1 for result in results)
    assert most == 3


def test_backends_that_gain_nothing_have_one_worker() -> None:
    manifest = Bundle.open().manifest
    assert {recipe.target for recipe in manifest.recipes} >= {"onnx", "openvino", "torch"}
    for backend, workers in (("onnxruntime", 4), ("openvino", 4), ("torch", 1)):
        pytest.importorskip(backend)
        with infgen_rt.open(backend=backend, precision="exact", threads=4) as decoder:
            assert decoder._engine.workers == workers
    with infgen_rt.open(backend="onnxruntime", precision="exact") as decoder:
        assert decoder._engine.workers == cores() >= 1


@pytest.mark.parametrize("alone", [True, False])
def test_a_gate_lets_in_so_many_or_one(alone: bool) -> None:
    gate, inside, most, lock = Gate(3), 0, 0, threading.Lock()

    def visit(alone: bool) -> None:
        nonlocal inside, most
        with gate.enter(alone):
            with lock:
                inside += 1
                most = max(most, inside)
                assert not alone or inside == 1
            time.sleep(0.005)
            with lock:
                inside -= 1

    visits: list[Callable[[], None]] = [lambda n=n: visit(alone and n % 6 == 0) for n in range(24)]
    threads = [threading.Thread(target=each) for each in visits]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert inside == 0 and 1 < most <= 3


def test_a_gate_is_shut_when_all_have_left_and_stays_open_if_one_does_not() -> None:
    gate, entered, leave = Gate(2), threading.Event(), threading.Event()

    def visit(alone: bool) -> None:
        with gate.enter(alone):
            entered.set()
            leave.wait(60)

    one, all_places, late = (threading.Thread(target=visit, args=(each,), daemon=True) for each in (False, True, False))
    one.start()
    assert entered.wait(60) and not gate.shut(0.01)
    all_places.start()  # it takes the free place, and must still get the other one
    leave.set()
    assert gate.shut(60)
    late.start()
    late.join(0.2)
    assert late.is_alive() and not one.is_alive()


@pytest.mark.parametrize("stages", [None, (2, 1.5)])
def test_what_is_left_in_the_middle_is_closed_without_waiting(
    parallel: infgen_rt.Decoder, monkeypatch: pytest.MonkeyPatch, stages: tuple[float, ...] | None
) -> None:
    """The garbage collector may close it while its thread holds what the end of another one needs."""
    picture = parallel.picture(LATENT, SIZE, tile=256, stages=stages)
    left = picture._stage.tiles.prepare() if stages else picture.tiles(start=(0, 0))
    blocked, free, read = threading.Event(), threading.Event(), Tiles.read

    def slow(tiles: Tiles, box: Box, *options: Any, **named: Any) -> Any:
        if (box.x, box.y) != (0, 0):
            blocked.set()
            assert free.wait(60)
        return read(tiles, box, *options, **named)

    monkeypatch.setattr(Tiles, "read", slow)
    while next(left) == "prefill":  # what is decoded first is given, and more of it is under way then
        pass
    assert blocked.wait(60)
    closing = threading.Thread(target=left.close if stages is None else picture._stage.contexts.let_go)
    closing.start()
    closing.join(10)
    stuck = closing.is_alive()
    free.set()
    closing.join()
    assert not stuck
