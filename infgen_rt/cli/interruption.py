"""Lets signals such as Ctrl-C end work at once, also while a graph runs."""

import signal
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from threading import Event, Thread
from typing import TypeVar

from infgen_rt.errors import Cancelled

# Seconds between checks for signals on systems where waiting cannot be interrupted (Windows).
_SIGNALS = 0.1

T = TypeVar("T")


def beside(work: Callable[[Event], T]) -> T:
    """Do work in another thread, so that signals, which Python handles in the main thread, cancel it at once.

    Args:
        work: takes the event that is set to cancel it.

    Returns:
        What the work returns.
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
    """For work in the main thread that also imports libraries, which no event cancels, but a signal's handler does.

    The handler has to wait for the end of native code. Therefore, a thread sets the event as soon as a signal arrives.

    Yields:
        The event that cancels native code. It is never set in other threads than the main thread, which get no signals.
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
            raise KeyboardInterrupt from None  # some library has swallowed the handler's exception
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
