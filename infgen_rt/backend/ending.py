"""Stops what still runs when the interpreter ends.

Python ends daemon threads where they are. If one of them is running or loading a graph then, the whole process crashes.
"""

import atexit
from typing import Protocol
from weakref import WeakSet


class Ends(Protocol):
    """An object that runs graphs."""

    def end(self) -> None:
        """Let no further graph run, and wait for those that are running."""
        ...


_open: WeakSet[Ends] = WeakSet()


def end_at_exit(value: Ends) -> None:
    """Call an object's `end` when the interpreter ends, unless the object is gone by then."""
    _open.add(value)


@atexit.register
def _end_all() -> None:
    for value in list(_open):
        value.end()
