"""Starts threads where work can do without them: it then takes longer, but it is still done."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event, Thread
from typing import Any, ParamSpec, TypeVar

from infgen_rt.common.arguments import WHOLE
from infgen_rt.common.callers import raise_callers
from infgen_rt.common.shortages import lacks_threads
from infgen_rt.errors import BackendError

_MOST_THREADS = 1024
"""The largest number of threads that can be asked for. No machine is faster with more."""

P = ParamSpec("P")
T = TypeVar("T")


def checked_threads(threads: Any) -> int | None:
    """The number of threads that a caller asks for. None for a backend's default.

    Raises:
        BackendError: it is no whole number, below 1, or larger than any machine needs.
    """
    if threads is not None and not (WHOLE.holds(threads) and 1 <= threads <= _MOST_THREADS):
        raise BackendError(f"{threads!r} threads are not possible: expected a whole number from 1 to {_MOST_THREADS}")
    return None if threads is None else int(threads)


def starts(thread: Thread) -> bool:
    """Start a thread. Returns False if the system allows no further one."""
    try:
        thread.start()
    except RuntimeError as error:
        raise_callers(error)
        if not lacks_threads(error):
            raise
        return False
    return True


def allowed(most: int) -> int:
    """The number of threads that the system allows now, from 0 to `most`. For libraries that start their own.

    Args:
        most: the number of threads that are wanted.
    """
    done, started = Event(), 0
    threads = [Thread(target=done.wait, daemon=True) for _ in range(most)]
    while started < most and starts(threads[started]):
        started += 1
    done.set()
    for thread in threads[:started]:
        thread.join()
    return started


class Pool(ThreadPoolExecutor):
    """A pool that gets along with the threads that the system allows.

    If the system allows fewer than planned, those that there are do all of the work. If it allows none, `submit` does
    the work in the caller's thread before it returns.
    """

    _alone = False

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """See `concurrent.futures.Executor.submit`."""
        if not self._alone:
            try:
                return super().submit(fn, *args, **kwargs)
            except RuntimeError as error:
                raise_callers(error)
                if not lacks_threads(error):
                    raise
                # The piece stays in the pool's queue, but no thread will take it.
                self._alone = True
        future: Future[T] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        # Errors that are no Exception, such as KeyboardInterrupt, leave this thread at once.
        except Exception as error:
            future.set_exception(error)
        return future

    def _adjust_thread_count(self) -> None:
        # The base class has put the piece into its queue before it calls this method to start a thread. If one thread
        # is running, it will do that piece too.
        try:
            super()._adjust_thread_count()
        except RuntimeError as error:
            raise_callers(error)
            if not (lacks_threads(error) and self._threads):
                raise
