"""Signals that arrive in the middle of a call, and whose handlers raise."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

NUMBER = getattr(signal, "SIGUSR1", signal.SIGINT)

if signal.getsignal(NUMBER) is signal.SIG_DFL:
    # The system's default ends the process, and with it the tests. A thread may still raise the signal after a test.
    signal.signal(NUMBER, signal.SIG_IGN)


class Own(Exception):
    """The caller's own error, of no kind that is known here."""


class OwnKnown(Own, TimeoutError, RuntimeError, ValueError):
    """The caller's own error, of every kind that this package catches from the system and from libraries."""


class OwnStop(Own, StopIteration):
    """The caller's own error that Python replaces by a RuntimeError when it leaves a generator."""


KINDS = (Own, OwnKnown, OwnStop)


@contextmanager
def handled(kind: type[Own], removed: bool = False) -> Iterator[None]:
    """Install a handler that raises an error, if `removed` after it has removed itself."""

    def handler(number: int, frame: object) -> None:
        if removed:
            signal.signal(NUMBER, before)
        raise kind("the caller's")

    before = signal.signal(NUMBER, handler)
    try:
        yield
    finally:
        signal.signal(NUMBER, before)


def arriving_in(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
    """Let a signal arrive whenever a function has been called."""
    real = getattr(owner, name)

    def called(*arguments: Any, **options: Any) -> Any:
        result = real(*arguments, **options)
        signal.raise_signal(NUMBER)
        return result

    monkeypatch.setattr(owner, name, called)
