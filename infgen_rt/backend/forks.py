"""Forking: a child process has what its parent loaded, but none of the threads that run it.

What waits for those threads hangs: a run, and freeing what was loaded, which happens at the child's end at the latest.
So a child keeps what it was born with for ever, and is told what to do instead of a run.
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
    """Have a child process never free something, which can be referred to weakly."""
    _kept.add(value)


def note_use(backend: str) -> None:
    """Note that a backend has loaded a graph in this process."""
    _used.add(backend)


def check_backend(backend: str) -> None:
    """Raises BackendError: it has loaded a graph in a process that this one was forked from."""
    if backend in _inherited:
        raise BackendError(f"backend {backend!r} was used in the process that this one was forked from: {_REMEDY}")


class Birthplace:
    """The process that something was made in."""

    def __init__(self) -> None:
        self._process = os.getpid()

    @property
    def here(self) -> bool:
        """Whether this is that process."""
        return os.getpid() == self._process

    def check(self) -> None:
        """Raises DecodeError: this is another process."""
        if not self.here:
            raise DecodeError(f"this decoder was opened before the process was forked: {_REMEDY}")


def _in_child() -> None:
    _inherited.update(_used)
    for value in list(_kept):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(value))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
