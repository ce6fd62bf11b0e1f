"""Makes signals such as Ctrl-C end the work at once, even while a graph runs."""

import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread

from infgen_rt.common.signals import ENDING, numbers
from infgen_rt.common.threads import starts
from infgen_rt.errors import Cancelled


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
        # Without a watcher, a signal ends the work as soon as the graph has run.
        watched = starts(watcher)
        try:
            yield arrived
        except Cancelled:
            raise KeyboardInterrupt from None  # a library has suppressed the handler's exception
        finally:
            signal.set_wakeup_fd(before)
            writing.shutdown(socket.SHUT_WR)
            if watched:
                watcher.join()


def _watch(reading: socket.socket, arrived: Event) -> None:
    """Set the event when the number of a terminating signal is read. Return when the other end is shut down."""
    ending = numbers(ENDING)
    while arrivals := reading.recv(64):
        if any(number in ending for number in arrivals):
            arrived.set()
