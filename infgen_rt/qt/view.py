"""The widget that shows a picture of any size."""

from functools import partial

from PySide6.QtCore import QEvent, QPoint, QPointF, QRect, QSize, Qt, Signal, Slot
from PySide6.QtGui import QColor, QImage, QKeyEvent, QMouseEvent, QPainter, QPaintEvent, QResizeEvent, QWheelEvent
from PySide6.QtWidgets import QSizePolicy, QWidget

from infgen_rt.geometry.levels import Level, Tile
from infgen_rt.geometry.shapes import Box, Size
from infgen_rt.picture import Picture
from infgen_rt.qt.post import Post
from infgen_rt.viewing.frames import Frame
from infgen_rt.viewing.reader import CACHE, TileReader
from infgen_rt.viewing.requests import Request
from infgen_rt.viewing.viewport import Viewport

_BACKGROUND = QColor(32, 32, 32)
# One notch of a mouse wheel, in the unit of Qt's events, and the factor by which it zooms.
_NOTCH, _WHEEL = 120, 1.25
_STEP = 0.2
"""The part of the window by which an arrow key moves the picture."""
# From this zoom on, pixels are shown as squares.
_SQUARES = 3.0


class PictureView(QWidget):
    """Shows a picture of any size. Only its visible part is decoded, at the level of the zoom.

    The whole picture comes first, as a preview. The tiles that are seen follow, from the middle outwards, decoded in
    other threads. What has scrolled away is dropped, and tiles are remembered. A frame never waits for a decode.

    The wheel zooms, dragging and the arrow keys move, `+` and `-` zoom, `0` shows the whole picture and `1` its own
    pixels. A double click changes between these two.

    Args:
        parent: the parent widget.
        cache: the maximum number of bytes of tiles to keep. It should be enough for the pixels of several windows.
    """

    moved = Signal()
    """The visible part of the picture has changed, or its size in the window."""
    progressed = Signal(int, int)
    """The number of visible tiles that are decoded, and the number of all visible tiles."""
    failed = Signal(str)
    """A tile could not be decoded. The text is the library's message."""

    def __init__(self, parent: QWidget | None = None, *, cache: int = CACHE) -> None:
        super().__init__(parent)
        self._cache = cache
        self._reader: TileReader | None = None
        self._viewport: Viewport | None = None
        self._dragged: QPointF | None = None
        self.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Expanding)
        self.setAttribute(Qt.WidgetAttribute.WA_OpaquePaintEvent)
        self._arrivals = Post(self._on_arrived)
        # If the widget is deleted without `shut`, nothing else ends the reader's threads.
        self._open: list[TileReader] = []
        self.destroyed.connect(partial(_close, self._open))

    @property
    def picture(self) -> Picture | None:
        """The picture that is shown."""
        return None if self._reader is None else self._reader.pyramid.picture

    @property
    def reader(self) -> TileReader | None:
        """The reader of the picture's tiles."""
        return self._reader

    @property
    def viewport(self) -> Viewport | None:
        """The visible part of the picture, and its place in the window."""
        return self._viewport

    @property
    def seen(self) -> Box | None:
        """The box of the picture's pixels that are visible. Pixels of which only a part is visible are included."""
        return None if self._viewport is None else self._viewport.seen

    @property
    def level(self) -> Level | None:
        """The level whose tiles are shown."""
        return self._viewport.level(self._reader.levels) if self._reader and self._viewport else None

    def set_picture(self, picture: Picture | None) -> None:
        """Show a picture, or none. At first, the whole picture is visible. Its decoder must stay open while it is."""
        if self._reader is not None:
            self._reader.close(wait=False)
        self._reader = None if picture is None else TileReader(picture, cache=self._cache)
        self._open[:] = [] if self._reader is None else [self._reader]
        self._viewport = None if picture is None else Viewport.fitting(picture.size, self._window)
        self._changed()

    def shut(self) -> None:
        """Stop all work and wait until it has ended. Call it before the decoder is closed."""
        if self._reader is not None:
            self._reader.close()
        self._reader = self._viewport = None
        self._open.clear()
        self._changed()

    def set_viewport(self, viewport: Viewport) -> None:
        """Show another part of the picture."""
        self._viewport = viewport
        self._changed()

    def zoom_to(self, zoom: float, at: QPointF | None = None) -> None:
        """Zoom.

        Args:
            zoom: the number of the display's pixels per pixel of the picture.
            at: the point of the widget at which the picture does not move. None for the middle.
        """
        if self._viewport is not None:
            ratio = self.devicePixelRatioF()
            point = None if at is None else (at.x() * ratio, at.y() * ratio)
            self.set_viewport(self._viewport.zoomed(zoom, point))

    def zoom_by(self, factor: float, at: QPointF | None = None) -> None:
        """Zoom by a factor. For `at`, see `zoom_to`."""
        if self._viewport is not None:
            self.zoom_to(self._viewport.zoom * factor, at)

    def show_whole(self) -> None:
        """Show the whole picture."""
        self.zoom_to(0.0)

    def move_by(self, right: float, down: float) -> None:
        """Move the picture in the widget. Distances are in the widget's own unit."""
        if self._viewport is not None:
            ratio = self.devicePixelRatioF()
            self.set_viewport(self._viewport.moved(right * ratio, down * ratio))

    def sizeHint(self) -> QSize:  # noqa: N802
        return QSize(1024, 768)

    # Painting.

    def paintEvent(self, event: QPaintEvent) -> None:  # noqa: N802
        painter = QPainter(self)
        painter.fillRect(self.rect(), _BACKGROUND)
        reader, view = self._reader, self._viewport
        if reader is None or view is None:
            return
        ratio = self.devicePixelRatioF()
        painter.scale(1 / ratio, 1 / ratio)
        painter.setRenderHint(QPainter.RenderHint.SmoothPixmapTransform, view.zoom < _SQUARES)
        level = view.level(reader.levels)
        for tile in level.touching(view.seen_at(level)):
            place = view.place(level, level.box(tile.column, tile.row))
            if (found := _nearest(reader, tile)) is None:
                continue
            shown, frame = found
            painter.setClipRect(QRect(*place))
            source = reader.levels[shown.level]
            _draw(painter, frame, view.place(source, source.box(shown.column, shown.row)))

    # Events that move the picture.

    def resizeEvent(self, event: QResizeEvent) -> None:  # noqa: N802
        if self._viewport is not None:
            self.set_viewport(self._viewport.resized(self._window))

    def wheelEvent(self, event: QWheelEvent) -> None:  # noqa: N802
        self.zoom_by(_WHEEL ** (event.angleDelta().y() / _NOTCH), event.position())
        event.accept()

    def mousePressEvent(self, event: QMouseEvent) -> None:  # noqa: N802
        if event.button() == Qt.MouseButton.LeftButton:
            self._dragged = event.position()
            self.setCursor(Qt.CursorShape.ClosedHandCursor)

    def mouseMoveEvent(self, event: QMouseEvent) -> None:  # noqa: N802
        if self._dragged is not None:
            way = event.position() - self._dragged
            self._dragged = event.position()
            self.move_by(way.x(), way.y())

    def mouseReleaseEvent(self, event: QMouseEvent) -> None:  # noqa: N802
        if event.button() == Qt.MouseButton.LeftButton:
            self._dragged = None
            self.unsetCursor()

    def mouseDoubleClickEvent(self, event: QMouseEvent) -> None:  # noqa: N802
        if self._viewport is not None and self._viewport.fits:
            self.zoom_to(1.0, event.position())
        else:
            self.show_whole()

    def keyPressEvent(self, event: QKeyEvent) -> None:  # noqa: N802
        across, down = _STEP * self.width(), _STEP * self.height()
        steps = {
            Qt.Key.Key_Left: (across, 0.0),
            Qt.Key.Key_Right: (-across, 0.0),
            Qt.Key.Key_Up: (0.0, down),
            Qt.Key.Key_Down: (0.0, -down),
        }
        key = Qt.Key(event.key())
        if key in steps:
            self.move_by(*steps[key])
        elif key in (Qt.Key.Key_Plus, Qt.Key.Key_Equal):
            self.zoom_by(_WHEEL)
        elif key == Qt.Key.Key_Minus:
            self.zoom_by(1 / _WHEEL)
        elif key == Qt.Key.Key_0:
            self.show_whole()
        elif key == Qt.Key.Key_1:
            self.zoom_to(1.0)
        else:
            super().keyPressEvent(event)

    def event(self, event: QEvent) -> bool:
        # The window was moved to a display of another density.
        if event.type() == QEvent.Type.DevicePixelRatioChange and self._viewport is not None:
            self.set_viewport(self._viewport.resized(self._window))
        return super().event(event)

    @property
    def _window(self) -> Size:
        """The widget's size in the display's own pixels."""
        ratio = self.devicePixelRatioF()
        return Size(max(1, round(self.width() * ratio)), max(1, round(self.height() * ratio)))

    def _changed(self) -> None:
        """Request the tiles that are visible now, and draw."""
        if self._reader is not None and self._viewport is not None:
            # The reader's threads send the requests to the widget's own thread.
            self._reader.want(self._viewport.wanted(self._reader.levels), self._arrivals.send)
        self._count()
        self.moved.emit()
        self.update()

    def _count(self) -> None:
        if self._reader is not None and self._viewport is not None:
            tiles = self._viewport.wanted(self._reader.levels)
            self.progressed.emit(sum(self._reader.cached(tile) is not None for tile in tiles), len(tiles))

    @Slot(object)
    def _on_arrived(self, request: Request) -> None:
        error = request.error
        if error is not None:
            self.failed.emit(str(error) or type(error).__name__)
        self._count()
        self.update()


def _close(readers: list[TileReader], deleted: object = None) -> None:
    for reader in readers:
        reader.close(wait=False)
    readers.clear()


def _nearest(reader: TileReader, tile: Tile) -> tuple[Tile, Frame] | None:
    """The tile if it is decoded. Otherwise, the most detailed decoded tile of a smaller level for the same place."""
    for smaller in range(tile.level + 1):
        covering = Tile(tile.level - smaller, tile.column >> smaller, tile.row >> smaller)
        frame = reader.cached(covering)
        if frame is not None:
            return covering, frame
    return None


def _draw(painter: QPainter, frame: Frame, place: Box) -> None:
    """Draw a frame, whose memory Qt reads without a copy."""
    image = QImage(frame.rows.data, *frame.size, frame.stride, QImage.Format.Format_RGB32)
    if place.size == frame.size:
        painter.drawImage(QPoint(place.x, place.y), image)
    else:
        painter.drawImage(QRect(*place), image)
