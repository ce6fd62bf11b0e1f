"""The line below the picture: progress with a button to cancel, and facts about the visible part."""

from PySide6.QtCore import Qt, Signal
from PySide6.QtWidgets import QLabel, QProgressBar, QPushButton, QSizePolicy, QStatusBar, QWidget

from infgen_rt.common.memory import format_bytes, peak_memory
from infgen_rt.common.progress import Progress
from infgen_rt.decoder import Decoder
from infgen_rt.qt.view import PictureView

_BAR_WIDTH = 160
_PHASES = {"measure": "Measuring the backends"}


class Bar(QStatusBar):
    """The status bar of the viewer."""

    cancelled = Signal()
    """The button was pressed."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.facts, self.tiles, self._work = QLabel(self), QLabel(self), QLabel(self)
        self.progress = QProgressBar(self)
        self.progress.setFixedWidth(_BAR_WIDTH)
        self.cancel = QPushButton("Cancel", self)
        self.cancel.setFocusPolicy(Qt.FocusPolicy.NoFocus)
        self.cancel.clicked.connect(self.cancelled)
        for widget in (self._work, self.progress, self.cancel):
            self.addWidget(widget)
        # Otherwise, a long text would make the window wider.
        self.facts.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Preferred)
        self.facts.setAlignment(Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)
        self.addPermanentWidget(self.facts, 1)
        self.addPermanentWidget(self.tiles)
        self.idle()

    def busy(self, work: str) -> None:
        """Show that some work has begun, before its progress is known."""
        self._work.setText(work)
        self.progress.setRange(0, 0)
        for widget in (self._work, self.progress, self.cancel):
            widget.show()

    def tell(self, progress: Progress) -> None:
        """Show the progress of the work."""
        if progress.stage in _PHASES:
            self._work.setText(_PHASES[progress.stage])
        self.progress.setRange(0, progress.total)
        self.progress.setValue(progress.done)

    def idle(self) -> None:
        """Show that there is no work."""
        for widget in (self._work, self.progress, self.cancel):
            widget.hide()

    def count(self, there: int, wanted: int) -> None:
        """Show how many of the visible tiles are decoded."""
        self.tiles.setText("" if there == wanted else f"tile {there} of {wanted}")

    def describe(self, view: PictureView, decoder: Decoder | None) -> None:
        """Show the picture's size, the zoom, the backend and the memory."""
        picture, port, reader, level = view.picture, view.viewport, view.reader, view.level
        if decoder is None or picture is None or port is None or reader is None or level is None:
            self.facts.clear()
            return
        runs, peak = decoder.backend, peak_memory()
        memory = f"{format_bytes(reader.memory)} of tiles" + (f", {format_bytes(peak)} at most in all" if peak else "")
        shown = f"{picture.size} at {port.zoom:.0%}, decoded at {level.size}"
        text = f"{shown}  |  {runs.name} {runs.device}, {runs.arithmetic}  |  {memory}"
        self.facts.setText(text)
        self.facts.setToolTip(text)
