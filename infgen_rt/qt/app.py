"""Runs the viewer as a program."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PySide6.QtCore import QTimer
from PySide6.QtWidgets import QApplication

from infgen_rt.common.signals import ENDING, handled, numbers
from infgen_rt.errors import InputError
from infgen_rt.qt.window import ViewerWindow
from infgen_rt.viewing.opening import Opener

# The milliseconds between two moments at which Python can handle signals. It cannot while Qt waits for events.
_SIGNALS = 200
_WINDOW = 1280, 860
_PROGRAM = "infgen-rt"


def run(opener: Opener, path: Path | None, sample: str | None) -> int:
    """Show the window until it is closed.

    Args:
        opener: opens the latents.
        path: the latent to open first. None for the sample.
        sample: the name of the sample to open first. None for an empty window.

    Returns:
        The number of the signal that closed the window, or 0 if the user did.

    Raises:
        InputError: there is no display.
    """
    if sys.platform.startswith("linux") and not any(
        os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "QT_QPA_PLATFORM")
    ):
        # Qt would abort the process.
        raise InputError("there is no display to show a window on: log in on a desktop, or use infgen-rt decode")
    app = QApplication.instance() or QApplication([_PROGRAM])
    window = ViewerWindow(opener)
    window.resize(*_WINDOW)
    window.show()
    if path is not None or sample is not None:
        window.open(path, sample)
    with _closing_on_signals(window) as received:
        app.exec()
    return received[0] if received else 0


@contextmanager
def _closing_on_signals(window: ViewerWindow) -> Iterator[list[int]]:
    """Close the window if a signal arrives that ends a program.

    Yields:
        The list of the numbers of the signals that have arrived.
    """
    received: list[int] = []

    def close(number: int, frame: object) -> None:
        received.append(number)
        window.close()

    with handled(numbers(ENDING), close):
        timer = QTimer(window)
        timer.timeout.connect(lambda: None)
        timer.start(_SIGNALS)
        try:
            yield received
        finally:
            timer.stop()
