"""Cancellation: how a caller's word reaches the graph that runs at that moment."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from threading import Event, Lock, Thread
from typing import Protocol

from infgen_rt.errors import Cancelled


class Settable(Protocol):
    """An event, of `threading`, `multiprocessing` (a manager's too) or `asyncio`, or what is like one."""

    def is_set(self) -> bool:
        """Whether it is set."""
        ...


Cancel = Settable | Callable[[], bool]
"""What a caller cancels by: an event that is set, or a function that returns True."""

_INTERVAL = 0.02
"""Seconds between two looks at a caller's word."""


class Cancellation:
    """One piece of work that may be cancelled; serves the threads that work on it.

    Args:
        cancel: the caller's word, asked from several threads; None for work that is not cancelled.

    Raises:
        TypeError: it is neither an event nor a function.
    """

    def __init__(self, cancel: Cancel | None = None) -> None:
        requested: Callable[[], bool] | None = getattr(cancel, "is_set", None) or cancel  # type: ignore[assignment]
        self._requested = requested
        if requested is not None and not callable(requested):
            raise TypeError(f"cancel is {cancel!r}: expected an event or a function that returns True")
        self._interrupts: list[Callable[[], object]] = []
        self._stopped = False
        self._lock = Lock()

    def check(self) -> None:
        """Raises Cancelled: the caller said so."""
        if self._stopped or (self._requested is not None and self._requested()):
            raise Cancelled("cancelled")

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Make it the current one, and interrupt what runs in it as soon as the caller says so."""
        token = _CURRENT.set(self)
        done = Event()
        watcher = Thread(target=self._watch, args=(done,), name="infgen-cancel", daemon=True)
        if self._requested is not None:
            watcher.start()
        try:
            yield
        finally:
            _CURRENT.reset(token)
            done.set()
            if self._requested is not None:
                watcher.join()

    @contextmanager
    def interrupting(self, interrupt: Callable[[], object]) -> Iterator[None]:
        """While inside, have something called, from another thread, once the work is cancelled.

        Raises:
            Cancelled: it is already.
        """
        with self._lock:
            if self._stopped:
                raise Cancelled("cancelled")
            self._interrupts.append(interrupt)
        try:
            yield
        finally:
            with self._lock:
                self._interrupts.remove(interrupt)

    def _watch(self, done: Event) -> None:
        assert self._requested is not None
        while not done.wait(_INTERVAL):
            # A caller's function that fails does so in the caller's thread too, at the next step.
            try:
                requested = self._requested()
            except Exception:
                return
            if requested:
                with self._lock:
                    self._stopped = True
                    for interrupt in self._interrupts:
                        interrupt()
                return


_NEVER = Cancellation()
_CURRENT: ContextVar[Cancellation] = ContextVar("infgen-cancellation", default=_NEVER)


def current() -> Cancellation:
    """That of the work that this thread is at; a backend's session that can stop a run enters `interrupting`."""
    return _CURRENT.get()
