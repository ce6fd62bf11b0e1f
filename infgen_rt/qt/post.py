"""Carries values from other threads to the thread of a Qt object."""

from collections.abc import Callable
from typing import Any

from PySide6.QtCore import QObject, Qt, Signal


class Post(QObject):
    """Calls a slot of a Qt object in that object's own thread.

    Other threads must not emit the signals of an object that Qt may delete at the same moment, because that crashes the
    process. Qt never deletes a post, because it has no parent. What is sent after the slot's object was deleted is
    dropped.

    Args:
        slot: a method of the object, with one argument.
    """

    _sent = Signal(object)

    def __init__(self, slot: Callable[[Any], None]) -> None:
        super().__init__()
        self._sent.connect(slot, Qt.ConnectionType.QueuedConnection)

    def send(self, value: object) -> None:
        """Call the slot with a value, some time later. Any thread may call this."""
        self._sent.emit(value)
