"""A caller's word reaches what runs, from whatever thread it comes, and nothing else."""

import asyncio
import multiprocessing
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from contextvars import copy_context
from pathlib import Path
from threading import Event
from typing import Any

import pytest

import infgen_rt
from infgen_rt.common.cancellation import Cancellation, current
from infgen_rt.errors import Cancelled, DecodeError

from . import tiny

LATENT = tiny.random_latent(6, 6)


def wait_for(cancel: Event, interrupted: Event) -> None:
    """As a session that can be interrupted: it would run until then."""
    with current().interrupting(interrupted.set):
        cancel.set()
        assert interrupted.wait(30)


@pytest.mark.parametrize("threads", [0, 1])
def test_what_runs_is_interrupted_in_whatever_thread_it_runs(threads: int) -> None:
    cancel, interrupted = Event(), Event()
    cancellation = Cancellation(cancel)
    with cancellation.watched():
        if threads:
            with ThreadPoolExecutor(threads) as pool:
                pool.submit(copy_context().run, wait_for, cancel, interrupted).result()
        else:
            wait_for(cancel, interrupted)
        with pytest.raises(Cancelled):
            cancellation.check()
        # And what would only begin does not.
        with pytest.raises(Cancelled), current().interrupting(interrupted.clear):
            pytest.fail("began")
    current().check()


def test_work_that_nobody_cancels_is_left_alone() -> None:
    other, interrupted = Event(), Event()
    other.set()
    with Cancellation(None).watched(), current().interrupting(interrupted.set):
        current().check()
    with Cancellation(lambda: False).watched(), current().interrupting(interrupted.set):
        current().check()
    assert not interrupted.is_set()


def test_a_function_that_fails_does_so_where_it_can_be_caught() -> None:
    def failing() -> bool:
        raise KeyError("mine")

    cancellation = Cancellation(failing)
    with cancellation.watched(), pytest.raises(KeyError, match="mine"):
        cancellation.check()


def test_reading_can_be_cancelled_and_begun_again(bundle: Path) -> None:
    with infgen_rt.open(bundle) as decoder:
        picture = decoder.picture(LATENT, (160, 160), tile=64)
        with pytest.raises(Cancelled):
            picture.read(cancel=lambda: True)
        assert picture.read(cancel=Event()).shape == (160, 160, 3)


def test_a_graph_that_is_interrupted_is_no_error_of_the_backend_s(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cancel, interrupted = Event(), Event()

    def run(inputs: object) -> None:
        wait_for(cancel, interrupted)
        raise DecodeError("exiting due to terminate flag")

    with infgen_rt.open(bundle) as decoder:
        picture = decoder.picture(LATENT)
        whole = picture.read()
        other = decoder.picture(LATENT)
        with monkeypatch.context() as patch:
            patch.setattr(decoder._engine._sessions["prefill"], "run", run)
            with pytest.raises(Cancelled, match="^cancelled$"):
                other.read(cancel=cancel)
        assert (other.read() == whole).all()


def test_closing_lets_go_of_what_pictures_hold(bundle: Path) -> None:
    with infgen_rt.open(bundle) as decoder:
        picture = decoder.picture(LATENT)
        picture.read()
        decoder.close()
        with pytest.raises(DecodeError, match="the decoder is closed"):
            picture.read()
    contexts, kept = picture._stage.contexts, picture._stage.tiles._source._context
    features = kept._source._source._source
    assert not picture._stage.tiles._cache._tiles and not contexts._tiles._tiles
    assert contexts._features is features._latent._latent is features._moments._made._made is None


@pytest.mark.parametrize("kind", ["threading", "multiprocessing", "asyncio", "manager"])
def test_events_of_every_kind_cancel(bundle: Path, tmp_path: Path, kind: str) -> None:
    with ExitStack() as stack:
        event: Any = Event()
        if kind == "multiprocessing":
            event = multiprocessing.get_context("spawn").Event()
        elif kind == "manager":
            event = stack.enter_context(multiprocessing.get_context("spawn").Manager()).Event()
        elif kind == "asyncio":
            event = asyncio.Event()
        picture = stack.enter_context(infgen_rt.open(bundle)).picture(tiny.random_latent(9, 12), "2x", tile=64)
        picture.read(cancel=event)
        event.set()
        with pytest.raises(Cancelled):
            picture.read(cancel=event)
        with pytest.raises(Cancelled):
            picture.save(tmp_path / "a.png", cancel=event)
        with pytest.raises(Cancelled):
            next(picture.tiles(cancel=event))


def test_what_is_no_event_is_refused(bundle: Path) -> None:
    with infgen_rt.open(bundle) as decoder, pytest.raises(TypeError, match="expected an event or a function"):
        decoder.picture(tiny.random_latent(4, 4)).read(cancel=3)  # type: ignore[call-overload]
