"""A gate: how many may be inside at a time."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock, Semaphore


class Gate:
    """Lets in some at a time, or one who wants to be alone; who comes first is let in first.

    Args:
        places: how many there are.
    """

    def __init__(self, places: int) -> None:
        self._places = places
        self._free = Semaphore(places)
        self._turn = Lock()

    @contextmanager
    def enter(self, alone: bool) -> Iterator[None]:
        """Wait for a place, or for all of them, and hold it."""
        needed = self._places if alone else 1
        # Who is at the gate is the only one who takes places, so that two who want all of them do not get half each.
        with self._turn:
            for _ in range(needed):
                self._free.acquire()
        try:
            yield
        finally:
            self._free.release(needed)
