"""The viewer's window: opens latents, shows them, and saves and copies pictures."""

from collections.abc import Callable
from pathlib import Path
from threading import Event
from typing import Any

from PySide6.QtCore import Qt, Signal, Slot
from PySide6.QtGui import QAction, QCloseEvent, QDragEnterEvent, QDropEvent, QGuiApplication, QImage, QKeySequence
from PySide6.QtWidgets import QFileDialog, QMainWindow, QVBoxLayout, QWidget

from infgen_rt.common.notices import Notices
from infgen_rt.common.progress import Progress, Tell
from infgen_rt.errors import Cancelled, InfGenError, one_line
from infgen_rt.geometry.shapes import Box
from infgen_rt.qt.bar import Bar
from infgen_rt.qt.jobs import Job, Work
from infgen_rt.qt.message import Message
from infgen_rt.qt.view import PictureView
from infgen_rt.viewing.opening import Opened, Opener
from infgen_rt.viewing.pyramid import Pyramid
from infgen_rt.writers import FORMATS

_LATENTS = "Latents (*.npy *.npz *.safetensors *.latent);;All files (*)"
_HINT = "Drop a latent here, or open one (Ctrl+O): .npy, .npz, .safetensors or ComfyUI's .latent"
_NO_PICTURE = "there is no picture: open a latent first"


class _Told(Notices):
    """Passes warnings to a function, instead of giving them as warnings of Python."""

    def __init__(self, tell: Callable[[str], object]) -> None:
        super().__init__()
        self._tell = tell

    def warn(self, cause: str, text: str) -> None:
        self._tell(text)


class ViewerWindow(QMainWindow):
    """A window with a `PictureView`, menus, a status bar and a line for messages. Files can be dropped on it.

    Opening, saving and copying are done beside the event loop, one at a time, and can be cancelled.

    Args:
        opener: opens the latents. The window closes it.
        parent: the parent widget.
    """

    opened = Signal()
    """A latent is open, and its picture is shown."""
    idle = Signal()
    """The work has ended, with success or without."""
    _warned = Signal(str)

    def __init__(self, opener: Opener, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.view, self.message, self.bar = PictureView(), Message(), Bar()
        self._opener = opener
        self._opened: Opened | None = None
        self._index = 0
        self._job: Job | None = None
        opener.notices = _Told(self._warned.emit)
        inside = QWidget(self)
        layout = QVBoxLayout(inside)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(0)
        layout.addWidget(self.message)
        layout.addWidget(self.view, 1)
        self.setCentralWidget(inside)
        self.setStatusBar(self.bar)
        self.setAcceptDrops(True)
        self.setWindowTitle("infgen-rt")
        self._make_menus()
        self._warned.connect(self.message.show_note, Qt.ConnectionType.QueuedConnection)
        self.view.failed.connect(self.message.show_error)
        self.view.progressed.connect(self.bar.count)
        self.view.progressed.connect(self._describe)
        self.view.moved.connect(self._describe)
        self.bar.cancelled.connect(self.cancel)
        self.message.show_note(_HINT)

    @property
    def busy(self) -> bool:
        """Whether something is being opened, saved or copied."""
        return self._job is not None

    def open(self, path: str | Path | None, sample: str | None = None) -> None:
        """Open a latent's file, or a sample, and show its first picture. Errors are shown in the window."""
        name = Path(path).name if path is not None else sample
        self.message.clear()

        def work(tell: Tell, cancel: Event) -> Opened:
            return self._opener.open(path, sample, progress=tell, cancel=cancel)

        self._start(f"Opening {name}", work, self._show)

    def save(self, path: str | Path, region: Box | None = None, force: bool = False, **options: Any) -> None:
        """Save the picture or a part of it. Nothing appears under the name unless it is complete.

        Args:
            path: as for `Picture.save`.
            region: as for `Picture.save`.
            force: as for `Picture.save`.
            options: further arguments of `Picture.save`.
        """
        picture = self.view.picture
        if picture is None:
            self.message.show_error(_NO_PICTURE)
            return

        def work(tell: Tell, cancel: Event) -> str:
            picture.save(path, region=region, force=force, progress=tell, cancel=cancel, **options)
            return f"saved {path}"

        self._start(f"Saving {Path(path).name}", work, self.message.show_note)

    def copy(self) -> None:
        """Copy the visible part to the clipboard, at the level of the zoom."""
        picture, port, level = self.view.picture, self.view.viewport, self.view.level
        if picture is None or port is None or level is None:
            self.message.show_error(_NO_PICTURE)
            return
        seen = port.seen_at(level)

        def work(tell: Tell, cancel: Event) -> QImage:
            frame = Pyramid(picture, level.tile).region(level.number, seen, "bgra", progress=tell, cancel=cancel)
            # Qt gets a copy, because the clipboard may keep the image longer than the frame exists.
            return QImage(frame.rows.data, *frame.size, frame.stride, QImage.Format.Format_RGB32).copy()

        self._start("Copying", work, self._take_to_clipboard)

    @Slot()
    def cancel(self) -> None:
        """Cancel the current work."""
        if self._job is not None:
            self._job.cancel()

    def show_picture(self, index: int) -> None:
        """Show another picture of a file with several."""
        if self._opened is not None and 0 <= index < len(self._opened.pictures):
            self._index = index
            self.view.set_picture(self._opened.pictures[index])
            count = len(self._opened.pictures)
            which = f" ({index + 1} of {count})" if count > 1 else ""
            self.setWindowTitle(f"{self._opened.title}{which} - infgen-rt")

    def dragEnterEvent(self, event: QDragEnterEvent) -> None:  # noqa: N802
        if any(url.isLocalFile() for url in event.mimeData().urls()):
            event.acceptProposedAction()

    def dropEvent(self, event: QDropEvent) -> None:  # noqa: N802
        files = [url.toLocalFile() for url in event.mimeData().urls() if url.isLocalFile()]
        event.acceptProposedAction()
        self.open(files[0])

    def closeEvent(self, event: QCloseEvent) -> None:  # noqa: N802
        if self._job is not None:
            self._job.cancel()
            self._job.wait()
            # What the job has made must not be shown any more.
            self._job.finished.disconnect(self._finish)
            self._job.failed.disconnect(self._fail)
            self._end()
        self.view.shut()
        self._opener.close()
        super().closeEvent(event)

    # Work.

    def _start(self, name: str, work: Work, then: Callable[[Any], object]) -> None:
        if self._job is not None:
            self.message.show_error(f"{name} has to wait: cancel what is going on first, or wait for its end")
            return
        job = self._job = Job(work, self)
        self._then = then
        job.progressed.connect(self._tell)
        job.finished.connect(self._finish)
        job.failed.connect(self._fail)
        self.bar.busy(name)
        job.start()

    @Slot(object)
    def _tell(self, progress: Progress) -> None:
        self.bar.tell(progress)

    @Slot(object)
    def _finish(self, result: Any) -> None:
        self._end()
        self._then(result)
        self.idle.emit()

    @Slot(object)
    def _fail(self, error: BaseException) -> None:
        self._end()
        if isinstance(error, Cancelled):
            self.message.show_note(str(error))
        elif isinstance(error, InfGenError):
            self.message.show_error(str(error))
        else:
            self.message.show_error(f"{type(error).__name__}: {one_line(error)}")
        self.idle.emit()

    def _end(self) -> None:
        if self._job is not None:
            self._job.deleteLater()
        self._job = None
        self.bar.idle()

    def _show(self, opened: Opened) -> None:
        self._opened = opened
        self.show_picture(0)
        self.opened.emit()

    def _take_to_clipboard(self, image: QImage) -> None:
        QGuiApplication.clipboard().setImage(image)
        self.message.show_note(f"copied {image.width()}x{image.height()} pixels")

    @Slot()
    def _describe(self, *_: object) -> None:
        self.bar.describe(self.view, self._opened.decoder if self._opened else None)

    # Menus.

    def _make_menus(self) -> None:
        keys, view = QKeySequence.StandardKey, self.view
        menus: dict[str, list[tuple[str, QKeySequence.StandardKey | str, Callable[[], object]]]] = {
            "&File": [
                ("&Open...", keys.Open, self._ask_for_latent),
                ("&Save picture as...", keys.Save, lambda: self._ask_and_save(None)),
                ("Save &view as...", keys.SaveAs, lambda: self._ask_and_save(view.seen)),
                ("&Copy view", keys.Copy, self.copy),
                ("&Quit", keys.Quit, self.close),
            ],
            "&View": [
                ("Zoom &in", "Ctrl++", lambda: view.zoom_by(2.0)),
                ("Zoom &out", "Ctrl+-", lambda: view.zoom_by(0.5)),
                ("&Whole picture", "Ctrl+0", view.show_whole),
                ("&1:1", "Ctrl+1", lambda: view.zoom_to(1.0)),
                ("&Next picture", "PgDown", lambda: self.show_picture(self._index + 1)),
                ("&Previous picture", "PgUp", lambda: self.show_picture(self._index - 1)),
            ],
        }
        for title, entries in menus.items():
            menu = self.menuBar().addMenu(title)
            for text, key, act in entries:
                action = QAction(text, self)
                action.setShortcut(QKeySequence(key))
                action.triggered.connect(act)
                menu.addAction(action)

    def _ask_for_latent(self) -> None:
        path, _ = QFileDialog.getOpenFileName(self, "Open a latent", "", _LATENTS)
        if path:
            self.open(path)

    def _ask_and_save(self, region: Box | None) -> None:
        endings = " ".join(f"*{ending}" for ending in FORMATS)
        name = f"{Path(self._opened.title).stem}.png" if self._opened else ""
        path, _ = QFileDialog.getSaveFileName(self, "Save", name, f"Pictures ({endings})")
        if path:
            # The dialog has asked whether to replace the file.
            self.save(path, region, force=Path(path).exists())
