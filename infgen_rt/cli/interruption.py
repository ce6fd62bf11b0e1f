"""Makes signals such as Ctrl-C end the work at once, even while a graph runs."""

import signal
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from threading import Event, Thread
from typing import TypeVar

from infgen_rt.errors import Cancelled

# The seconds between two checks for signals on systems where waiting cannot be interrupted (Windows).
_SIGNALS = 0.1

T = TypeVar("T")


def beside(work: Callable[[Event], T]) -> T:
    """Do work in another thread. Python handles signals in the main thread, which is then free to cancel the work.

    Args:
        work: the function that does the work. It gets an event, which is set to cancel it.

    Returns:
        The result of the function.
    """
    cancel = Event()
    with ThreadPoolExecutor(1, "infgen-work") as pool:
        future = pool.submit(work, cancel)
        try:
            while not wait([future], timeout=_SIGNALS).done:
                pass
        finally:
            cancel.set()
        return future.result()


@contextmanager
def interruptible() -> Iterator[Event]:
    """Make signals end work in the main thread that imports libraries and runs graphs.

    A signal handler ends an import, which no event can cancel. It cannot end a running graph, because Python calls it
    only when native code has returned. Therefore, another thread sets an event as soon as a signal arrives.

    Yields:
        The event that cancels a running graph. If the work is not in the main thread, it gets no signals, and the event
        is never set.
    """
    arrived = Event()
    if threading.current_thread() is not threading.main_thread():
        yield arrived
        return
    reading, writing = socket.socketpair()
    with reading, writing:
        writing.setblocking(False)
        before = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
        watcher = Thread(target=_watch, args=(reading, arrived), name="infgen-signals", daemon=True)
        watcher.start()
        try:
            yield arrived
        except Cancelled:
            raise KeyboardInterrupt from None  # a library has suppressed the handler's exception
        finally:
            signal.set_wakeup_fd(before)
            writing.shutdown(socket.SHUT_WR)
            watcher.join()


def _watch(reading: socket.socket, arrived: Event) -> None:
    """Set the event when the number of a terminating signal is read. Return when the other end is shut down."""
    ending = {getattr(signal, name, None) for name in ("SIGINT", "SIGTERM", "SIGHUP")}
    while numbers := reading.recv(64):
        if any(number in ending for number in numbers):
            arrived.set()
