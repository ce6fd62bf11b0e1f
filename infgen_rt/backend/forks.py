"""Handles forked processes. A child has the graphs that its parent loaded, but not the threads that run them.

In the child, running or freeing such a graph would wait for these threads forever. A child therefore never frees what
it got from its parent, not even when it ends. If it tries to run such a graph, an error says what to do instead.
"""

import ctypes
import os
from weakref import WeakSet

from infgen_rt.errors import BackendError, DecodeError

_REMEDY = (
    "start processes with multiprocessing.get_context('spawn'), or open a decoder in each of them and none before they "
    "are forked"
)
_kept: WeakSet[object] = WeakSet()
_used: set[str] = set()
_inherited: set[str] = set()


def keep_in_children(value: object) -> None:
    """Keep forked children from freeing an object. The object must support weak references."""
    _kept.add(value)


def note_use(backend: str) -> None:
    """Record that a backend has loaded a graph in this process."""
    _used.add(backend)


def check_backend(backend: str) -> None:
    """Check that a backend can be used in this process.

    Raises:
        BackendError: it has loaded a graph in a process from which this one was forked.
    """
    if backend in _inherited:
        raise BackendError(f"backend {backend!r} was used in the process that this one was forked from: {_REMEDY}")


class Birthplace:
    """The process in which an object was created, which is the process in which this is created."""

    def __init__(self) -> None:
        self._process = os.getpid()

    @property
    def here(self) -> bool:
        """Whether the current process is that process."""
        return os.getpid() == self._process

    def check(self) -> None:
        """Raise DecodeError if the current process is another one."""
        if not self.here:
            raise DecodeError(f"this decoder was opened before the process was forked: {_REMEDY}")


def _in_child() -> None:
    _inherited.update(_used)
    for value in list(_kept):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(value))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
