"""Cancellation: passes a caller's request to stop on to the running graph."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from threading import Event, Lock, Thread
from typing import Protocol

from infgen_rt.common.callers import Unwrapped, ask
from infgen_rt.common.threads import starts
from infgen_rt.errors import Cancelled


class Settable(Protocol):
    """An event of `threading`, `multiprocessing` (also from a manager) or `asyncio`, or a similar object."""

    def is_set(self) -> bool:
        """Whether the event is set."""
        ...


Cancel = Settable | Callable[[], bool]
"""How a caller cancels: with an event that is set, or with a function that returns True."""

# The seconds between two checks of whether the caller has cancelled.
_INTERVAL = 0.02


class Cancellation:
    """The cancellation of one piece of work. All threads of the work may use it.

    Args:
        cancel: the caller's event or function, which is checked from several threads. None for work that cannot be
            cancelled.

    Raises:
        TypeError: `cancel` is neither an event nor a function.
    """

    def __init__(self, cancel: Cancel | None = None) -> None:
        requested: Callable[[], bool] | None = getattr(cancel, "is_set", None) or cancel  # type: ignore[assignment]
        self._requested = requested
        if requested is not None and not callable(requested):
            raise TypeError(f"cancel is {cancel!r}: expected an event or a function that returns True")
        self._interrupts: list[Callable[[], object]] = []
        self._stopped = False
        self._failure: Exception | None = None
        self._lock = Lock()

    def check(self) -> None:
        """Check whether the caller has cancelled the work.

        Raises:
            Cancelled: it was cancelled. If the caller's function has failed, its error is raised instead.
        """
        if self._requested is not None and not self._stopped and ask(self._requested):
            self._stopped = True
        if self._stopped:
            raise self._failure or Cancelled("cancelled")

    def watched(self) -> AbstractContextManager[None]:
        """Make this the current cancellation in a block, and interrupt the work there as soon as the caller cancels.

        Errors of the caller's own leave the block as they are; see `callers.Unwrapped`.
        """
        return Unwrapped(self._watching())

    @contextmanager
    def _watching(self) -> Iterator[None]:
        token = _CURRENT.set(self)
        done = Event()
        watcher = Thread(target=self._watch, args=(done,), name="infgen-cancel", daemon=True)
        # Without a watcher, the work stops at its next check, and a running graph is not interrupted.
        watched = self._requested is not None and starts(watcher)
        try:
            yield
        finally:
            _CURRENT.reset(token)
            done.set()
            if watched:
                watcher.join()

    @contextmanager
    def interrupting(self, interrupt: Callable[[], object]) -> Iterator[None]:
        """Call a function from another thread if the work is cancelled during the block.

        Args:
            interrupt: stops the running graph. It must not raise errors.

        Raises:
            Cancelled: the work is already cancelled.
        """
        with self._lock:
            if self._stopped:
                raise self._failure or Cancelled("cancelled")
            self._interrupts.append(interrupt)
        try:
            yield
        finally:
            with self._lock:
                self._interrupts.remove(interrupt)

    def _watch(self, done: Event) -> None:
        assert self._requested is not None
        while not done.wait(_INTERVAL):
            # An error of the caller's function also ends the work. It is raised in the caller's thread.
            try:
                requested = ask(self._requested)
            except Exception as error:
                self._failure = error
            if self._failure or requested:
                with self._lock:
                    self._stopped = True
                    for interrupt in self._interrupts:
                        interrupt()
                return


_NEVER = Cancellation()
_CURRENT: ContextVar[Cancellation] = ContextVar("infgen-cancellation", default=_NEVER)


def current() -> Cancellation:
    """The cancellation of this thread's work. A backend's session that can stop a run calls its `interrupting`."""
    return _CURRENT.get()
