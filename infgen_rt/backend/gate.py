"""A gate that limits how many threads are inside at the same time."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock, Semaphore
from time import monotonic

_SHORTLY = 0.1


class Gate:
    """Lets in several threads at the same time, or one thread alone, in the order in which they arrive.

    Args:
        places: the number of threads that may be inside at the same time.
    """

    def __init__(self, places: int) -> None:
        self._places = places
        self._free = Semaphore(places)
        self._turn = Lock()

    @contextmanager
    def enter(self, alone: bool) -> Iterator[None]:
        """Wait for one place, or for all of them if `alone`, and hold it."""
        needed, taken = self._places if alone else 1, 0
        try:
            # Only one thread at a time takes places. Otherwise, two threads that need all places could each get half.
            with self._turn:
                while taken < needed:
                    self._free.acquire()
                    taken += 1
            yield
        finally:
            # An error of a signal handler may end the waiting after some places were taken.
            if taken:
                self._free.release(taken)

    def shut(self, patience: float) -> bool:
        """Let nobody in any more, once everybody has left.

        Args:
            patience: the most seconds to wait.

        Returns:
            Whether everybody has left. If not, the gate stays open.
        """
        until = monotonic() + patience
        while True:
            taken = 0
            while taken < self._places and self._free.acquire(timeout=_SHORTLY):
                taken += 1
            if taken == self._places:
                return True
            # A thread that waits for all places may need these.
            if taken:
                self._free.release(taken)
            if monotonic() >= until:
                return False
