"""A line for messages in the window. Unlike a dialog, it does not interrupt the user."""

from PySide6.QtCore import Qt
from PySide6.QtWidgets import QFrame, QHBoxLayout, QLabel, QToolButton, QWidget

_ERROR, _NOTE = "#7a1f1f", "#5a4a12"


class Message(QFrame):
    """A line of text above the picture, with a button that closes it. It is hidden while there is no text."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._label = QLabel(self)
        self._label.setWordWrap(True)
        self._label.setTextFormat(Qt.TextFormat.PlainText)
        self._label.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        close = QToolButton(self)
        close.setText("×")
        close.setToolTip("Close the message")
        close.setAutoRaise(True)
        close.clicked.connect(self.clear)
        layout = QHBoxLayout(self)
        layout.setContentsMargins(10, 4, 4, 4)
        layout.addWidget(self._label, 1)
        layout.addWidget(close, 0, Qt.AlignmentFlag.AlignTop)
        self.hide()

    @property
    def text(self) -> str:
        """The text that is shown, or an empty one."""
        return "" if self.isHidden() else self._label.text()

    def show_error(self, text: str) -> None:
        """Show what went wrong."""
        self._show(text, _ERROR)

    def show_note(self, text: str) -> None:
        """Show a warning or a result."""
        self._show(text, _NOTE)

    def clear(self) -> None:
        """Remove the text."""
        self._label.clear()
        self.hide()

    def _show(self, text: str, colour: str) -> None:
        self.setStyleSheet(f"Message {{ background: {colour}; }} QLabel, QToolButton {{ color: white; }}")
        self._label.setText(text)
        self.show()
