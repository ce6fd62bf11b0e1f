"""Signals that end a program, and blocks in which they have handlers of their own."""

import signal
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

TERMINATING = ("SIGTERM", "SIGHUP", "SIGBREAK")
"""The names of the signals by which another program or a closed terminal ends this one. No system has all of them."""
ENDING = ("SIGINT", *TERMINATING)
"""The names of all signals that end a program, with that of Ctrl-C."""


def numbers(names: Collection[str]) -> list[int]:
    """The numbers of those signals that this system has."""
    return [number for name in names if (number := getattr(signal, name, None)) is not None]


@contextmanager
def handled(signals: Collection[int], handler: Callable[[int, object], object]) -> Iterator[None]:
    """A block in which some signals have another handler. It must be in the main thread.

    Args:
        signals: the numbers of the signals.
        handler: the handler.
    """
    before = {number: signal.signal(number, handler) for number in signals}
    try:
        yield
    finally:
        for number, previous in before.items():
            # None means that another language than Python has set the handler. Python cannot restore it.
            signal.signal(number, signal.SIG_DFL if previous is None else previous)
