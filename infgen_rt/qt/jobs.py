"""Does work such as opening and saving in other threads, so that the event loop is not blocked."""

from collections.abc import Callable
from threading import Event, Thread
from typing import Any

from PySide6.QtCore import QObject, Signal, Slot

from infgen_rt.common.progress import Progress, Tell
from infgen_rt.common.shortages import MORE_MEMORY
from infgen_rt.common.threads import starts
from infgen_rt.errors import DecodeError
from infgen_rt.qt.post import Post

Work = Callable[[Tell, Event], Any]


class Job(QObject):
    """Does work in its own thread. Its signals arrive in the thread in which the job was created.

    Args:
        work: the function that does the work. It gets a function to call with its progress, and an event that is set to
            cancel it.
        parent: the parent object in Qt.
    """

    progressed = Signal(object)
    """The work has done a step: a `Progress`."""
    finished = Signal(object)
    """The work is done: its result."""
    failed = Signal(object)
    """The work has raised an exception, which is `Cancelled` if it was cancelled."""

    def __init__(self, work: Work, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._work = work
        self._cancelled = Event()
        self._thread = Thread(target=self._run, name="infgen-job", daemon=True)
        self._told, self._ended = Post(self._tell), Post(self._end)

    def start(self) -> None:
        """Start the work. If the system allows no thread for it, `failed` says so."""
        if not starts(self._thread):
            self._ended.send((None, DecodeError(f"the system allowed no further thread: {MORE_MEMORY}")))

    def cancel(self) -> None:
        """Ask the work to stop. It stops at its next step, or in the middle of a graph."""
        self._cancelled.set()

    def wait(self) -> None:
        """Wait until the work has ended. Its signals may arrive later."""
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        result, error = None, None
        try:
            result = self._work(self._told.send, self._cancelled)
        # Every error is shown in the window.
        except BaseException as raised:
            error = raised
        self._ended.send((result, error))

    @Slot(object)
    def _tell(self, progress: Progress) -> None:
        self.progressed.emit(progress)

    @Slot(object)
    def _end(self, outcome: tuple[Any, BaseException | None]) -> None:
        result, error = outcome
        if error is None:
            self.finished.emit(result)
        else:
            self.failed.emit(error)
