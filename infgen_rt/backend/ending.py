"""Closes what is still open when the interpreter ends.

Python ends daemon threads where they are. If one of them is running a graph then, the whole process crashes.
"""

import atexit
from typing import Protocol
from weakref import WeakSet


class Closes(Protocol):
    """An object with graphs."""

    def close(self) -> None:
        """Wait for the runs in progress, and free the graphs. Later runs fail."""
        ...


_open: WeakSet[Closes] = WeakSet()


def close_at_exit(value: Closes) -> None:
    """Close an object when the interpreter ends, unless it is gone by then. It may be closed before."""
    _open.add(value)


@atexit.register
def _close_all() -> None:
    for value in list(_open):
        value.close()
