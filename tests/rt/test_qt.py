"""The viewer's widget and window, without a display."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import infgen_rt
from infgen_rt.bundle.graphs import DECODE
from infgen_rt.cli.main import main
from infgen_rt.geometry.shapes import Box, Size
from infgen_rt.viewing import Opener, Viewport

from . import tiny
from .watching import Run, on_runs

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")  # xcb under Xvfb, for a real window system
# A bare machine may lack libraries of the system that Qt needs, such as libEGL.
pytest.importorskip("PySide6.QtWidgets", reason="PySide6 cannot be imported here", exc_type=ImportError)

from PySide6.QtCore import QEvent, QMimeData, QPoint, QPointF, Qt, QUrl, Slot
from PySide6.QtGui import QDragEnterEvent, QDropEvent, QGuiApplication, QImage, QWheelEvent
from PySide6.QtTest import QTest
from PySide6.QtWidgets import QApplication, QWidget

from infgen_rt.qt import Job, PictureView, ViewerWindow
from infgen_rt.qt.post import Post

LATENT = tiny.random_latent(24, 32)
SIZE = Size(1024, 768)
SECONDS = 60


@pytest.fixture(scope="module")
def app() -> QApplication:
    application = QApplication.instance() or QApplication(["tests"])
    assert isinstance(application, QApplication)
    return application


@pytest.fixture
def picture(decoder: infgen_rt.Decoder) -> infgen_rt.Picture:
    return decoder.picture(LATENT, SIZE, normalisation="model")


@pytest.fixture
def view(app: QApplication, picture: infgen_rt.Picture) -> Iterator[PictureView]:
    view = PictureView()
    view.resize(300, 200)
    view.set_picture(picture)
    view.show()
    settle(view)
    yield view
    view.shut()
    view.deleteLater()


@pytest.fixture
def window(app: QApplication, bundle: Path, tmp_path: Path) -> Iterator[ViewerWindow]:
    np.save(tmp_path / "latent.npy", LATENT)
    window = ViewerWindow(Opener("4x", model=bundle, normalisation="model"))
    window.resize(500, 400)
    window.show()
    yield window
    window.close()
    window.deleteLater()


@pytest.fixture
def opened(window: ViewerWindow, tmp_path: Path) -> ViewerWindow:
    window.open(tmp_path / "latent.npy")
    until(lambda: not window.busy)
    settle(window.view)
    return window


def until(condition: Callable[[], bool]) -> None:
    """Let events happen until a condition is true."""
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        QApplication.processEvents()
        time.sleep(0.002)


def settle(view: PictureView) -> None:
    """Wait until all that is seen is there and drawn."""
    until(lambda: is_complete(view))
    QApplication.processEvents()


def is_complete(view: PictureView) -> bool:
    reader, port = view.reader, view.viewport
    assert reader is not None and port is not None
    return all(reader.cached(tile) is not None for tile in port.wanted(reader.levels))


def pixels_of(image: QImage) -> np.ndarray:
    """uint8 [height, width, 3]."""
    converted = image.convertToFormat(QImage.Format.Format_RGB888)
    rows = np.frombuffer(converted.constBits(), np.uint8).reshape(converted.height(), converted.bytesPerLine())
    return rows[:, : 3 * converted.width()].reshape(converted.height(), converted.width(), 3).copy()


def grab(view: PictureView) -> np.ndarray:
    return pixels_of(view.grab().toImage())


def port_of(view: PictureView) -> Viewport:
    assert view.viewport is not None
    return view.viewport


def drag(view: PictureView, start: QPoint, way: QPoint) -> None:
    QTest.mousePress(view, Qt.MouseButton.LeftButton, pos=start)
    for step in range(1, 5):
        QTest.mouseMove(view, start + way * step / 4)
    QTest.mouseRelease(view, Qt.MouseButton.LeftButton, pos=start + way)


def roll(view: PictureView, at: QPointF, notches: int) -> None:
    none = Qt.MouseButton.NoButton, Qt.KeyboardModifier.NoModifier, Qt.ScrollPhase.NoScrollPhase
    angle = QPoint(0, 120 * notches)
    QApplication.sendEvent(view, QWheelEvent(at, view.mapToGlobal(at), QPoint(), angle, *none, False))


# The widget.


def test_the_whole_picture_is_seen_first_and_at_its_own_level(view: PictureView, picture: infgen_rt.Picture) -> None:
    assert port_of(view).fits and view.seen == SIZE.box and view.level is not None
    assert view.level.size == (256, 192)
    shown = grab(view)[:, 17:283]  # 200 / 768 of 1024 is 267 pixels wide
    reduced = np.asarray(Image.fromarray(picture.at((256, 192)).read()).resize((266, 200)))
    assert np.abs(shown.astype(int) - reduced).mean() < 6
    assert (grab(view)[:, :16] == 32).all()


def test_at_its_own_pixels_the_widget_shows_exactly_what_read_gives(
    view: PictureView, picture: infgen_rt.Picture
) -> None:
    view.zoom_to(1.0)
    settle(view)
    seen = view.seen
    assert seen is not None and seen.size == (300, 200)
    assert np.array_equal(grab(view), picture.read(seen))


def test_dragging_moves_the_picture_with_the_mouse(view: PictureView, picture: infgen_rt.Picture) -> None:
    view.zoom_to(1.0)
    before = view.seen
    drag(view, QPoint(200, 150), QPoint(-120, -80))
    settle(view)
    after = view.seen
    assert before is not None and after is not None
    assert after == before._replace(x=before.x + 120, y=before.y + 80)
    assert np.array_equal(grab(view), picture.read(after))
    drag(view, QPoint(100, 100), QPoint(4000, 4000))
    settle(view)
    assert view.seen == Box(0, 0, 300, 200) and np.array_equal(grab(view), picture.read((0, 0, 300, 200)))


def test_the_wheel_zooms_at_the_mouse(view: PictureView, picture: infgen_rt.Picture) -> None:
    view.zoom_to(1.0)
    at = QPointF(60, 150)
    before = port_of(view).to_picture(60, 150)
    roll(view, at, 2)
    assert port_of(view).zoom == pytest.approx(1.25**2)
    assert port_of(view).to_picture(60, 150) == pytest.approx(before)
    roll(view, at, -40)
    assert port_of(view).fits
    roll(view, at, 40)
    settle(view)
    assert port_of(view).zoom == 32.0
    # Far beyond 1:1, a pixel is a square.
    x, y = port_of(view).to_picture(150, 100)
    assert np.array_equal(grab(view)[100, 150], picture.read((int(x), int(y), 1, 1))[0, 0])


def test_keys_and_double_clicks(view: PictureView) -> None:
    QTest.mouseDClick(view, Qt.MouseButton.LeftButton, pos=QPoint(150, 100))
    assert port_of(view).zoom == 1.0
    middle = port_of(view).x
    QTest.keyClick(view, Qt.Key.Key_Right)
    assert port_of(view).x == middle + 60
    QTest.keyClick(view, Qt.Key.Key_Minus)
    assert port_of(view).zoom == pytest.approx(0.8)
    QTest.keyClick(view, Qt.Key.Key_0)
    assert port_of(view).fits
    QTest.keyClick(view, Qt.Key.Key_1)
    assert port_of(view).zoom == 1.0


def test_only_what_is_seen_is_decoded_and_nothing_again(view: PictureView, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[int] = []

    def count(run: Run, inputs: Mapping[str, Any], shared: bool) -> Any:
        decoded.append(len(inputs["token_y"]) * len(inputs["token_x"]))
        return run()

    on_runs(monkeypatch, DECODE, count)
    view.zoom_to(1.0)
    settle(view)
    tiles = len(decoded)
    assert 0 < tiles <= 6
    view.show_whole()
    view.zoom_to(1.0)
    settle(view)
    assert len(decoded) == tiles


def test_a_frame_does_not_wait_for_a_decode_and_what_scrolled_away_is_dropped(
    view: PictureView, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = holding(monkeypatch)
    view.zoom_to(1.0)
    for _ in range(4):
        drag(view, QPoint(280, 100), QPoint(-250, 0))
        # Decoding stands still, and the preview is shown enlarged instead.
        assert grab(view).std() > 1
    assert view.reader is not None
    # Beside what is seen, only the two threads may have something left of before.
    assert view.reader.open_requests <= len(port_of(view).wanted(view.reader.levels)) + 2
    held.set()
    settle(view)


def holding(patch: pytest.MonkeyPatch) -> threading.Event:
    """Decodes wait until the event is set."""
    go = threading.Event()

    def wait(run: Run, inputs: Mapping[str, Any], shared: bool) -> Any:
        assert go.wait(SECONDS)
        return run()

    on_runs(patch, DECODE, wait)
    return go


def test_a_tile_that_fails_is_told_and_the_rest_is_shown(view: PictureView, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(run: Run, inputs: Mapping[str, Any], shared: bool) -> Any:
        raise infgen_rt.DecodeError("the device is gone")

    texts: list[str] = []
    view.failed.connect(texts.append)
    with monkeypatch.context() as patch:
        on_runs(patch, DECODE, fail)
        view.zoom_to(1.0)
        until(lambda: bool(texts))
        assert "the device is gone" in texts[0] and grab(view).std() > 1
        until(lambda: view.reader is not None and view.reader.open_requests == 0)
    view.move_by(1, 0)
    settle(view)


def test_a_view_that_is_deleted_without_being_shut_ends_its_threads(
    app: QApplication, picture: infgen_rt.Picture, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", told.append)
    for settled in (True, False):
        parent = QWidget()
        view = PictureView(parent)
        view.resize(300, 200)
        view.set_picture(picture)
        if settled:
            settle(view)
        reader = view.reader
        assert reader is not None
        del view
        parent.deleteLater()
        QApplication.sendPostedEvents(None, QEvent.Type.DeferredDelete)
        until(lambda threads=reader._threads: not any(thread.is_alive() for thread in threads))
        assert reader.memory == 0
    assert not told


def test_values_that_are_sent_while_qt_deletes_their_receiver_are_dropped(app: QApplication) -> None:
    """A signal of the receiver itself would crash the process now and then."""

    class Receiver(QWidget):
        @Slot(object)
        def take(self, value: object) -> None:
            taken.append(value)

    taken: list[object] = []
    for _ in range(200):
        receiver, stopped = Receiver(), threading.Event()
        post = Post(receiver.take)

        def send(post: Post = post, stopped: threading.Event = stopped) -> None:
            while not stopped.is_set():
                post.send(1)

        thread = threading.Thread(target=send)
        thread.start()
        receiver.deleteLater()
        del receiver
        QApplication.sendPostedEvents(None, QEvent.Type.DeferredDelete)
        before = len(taken)
        QApplication.processEvents()
        stopped.set()
        thread.join()
        assert len(taken) == before


def test_another_picture_takes_the_place_of_the_first(view: PictureView, decoder: infgen_rt.Decoder) -> None:
    other = decoder.picture(tiny.random_latent(24, 32, seed=5), SIZE, normalisation="model")
    view.zoom_to(1.0)
    view.set_picture(other)
    settle(view)
    assert view.picture is other and port_of(view).fits
    view.zoom_to(1.0)
    settle(view)
    assert view.seen is not None and np.array_equal(grab(view), other.read(view.seen))
    view.set_picture(None)
    assert view.seen is None and (grab(view) == 32).all()


# The window.


def test_a_file_that_is_dropped_is_opened(window: ViewerWindow, tmp_path: Path) -> None:
    data = QMimeData()
    data.setUrls([QUrl.fromLocalFile(str(tmp_path / "latent.npy"))])
    none = Qt.MouseButton.LeftButton, Qt.KeyboardModifier.NoModifier
    enter = QDragEnterEvent(QPoint(10, 10), Qt.DropAction.CopyAction, data, *none)
    QApplication.sendEvent(window, enter)
    assert enter.isAccepted()
    QApplication.sendEvent(window, QDropEvent(QPointF(10, 10), Qt.DropAction.CopyAction, data, *none))
    assert window.busy and window.bar.progress.isVisible()
    until(lambda: not window.busy)
    settle(window.view)
    assert window.view.picture is not None and window.view.picture.size == (1024, 768)
    assert window.windowTitle().startswith("latent.npy") and window.message.text == ""
    facts = window.bar.facts.text()
    assert "1024x768 at " in facts and "onnxruntime cpu" in facts and "of tiles" in facts
    assert window.width() == 500


def test_what_is_wrong_with_a_file_is_said_in_the_window_in_the_librarys_words(
    opened: ViewerWindow, tmp_path: Path
) -> None:
    shown = opened.view.picture
    (tmp_path / "broken.npy").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(99))
    for name, text in (("broken.npy", "is a PNG picture, and not a latent"), ("none.npy", "does not exist")):
        opened.open(tmp_path / name)
        until(lambda: not opened.busy)
        assert text in opened.message.text
    assert opened.view.picture is shown
    opened.message.clear()
    assert opened.message.text == ""


def test_warnings_are_shown_too(app: QApplication, bundle: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "latent.npy", 1.4 * LATENT)  # as large as the latents of FLUX.2's VAE
    window = ViewerWindow(Opener("4x", model=bundle))
    window.open(tmp_path / "latent.npy")
    until(lambda: not window.busy)
    until(lambda: "normalisation" in window.message.text)
    window.close()


def test_the_picture_and_the_view_are_saved(opened: ViewerWindow, tmp_path: Path) -> None:
    picture = opened.view.picture
    assert picture is not None
    opened.save(tmp_path / "whole.png")
    until(lambda: not opened.busy)
    assert f"saved {tmp_path / 'whole.png'}" == opened.message.text
    opened.view.zoom_to(1.0)
    opened.save(tmp_path / "part.png", opened.view.seen)
    until(lambda: not opened.busy)
    assert opened.view.seen is not None
    with Image.open(tmp_path / "whole.png") as whole, Image.open(tmp_path / "part.png") as part:
        assert np.array_equal(np.asarray(whole), picture.read())
        assert np.array_equal(np.asarray(part), picture.read(opened.view.seen))


def test_saving_is_cancelled_by_the_button_and_leaves_nothing(
    opened: ViewerWindow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = holding(monkeypatch)
    opened.save(tmp_path / "whole.png")
    assert opened.bar.cancel.isVisible()
    opened.open(tmp_path / "latent.npy")
    assert "has to wait" in opened.message.text
    QTest.mouseClick(opened.bar.cancel, Qt.MouseButton.LeftButton)
    held.set()
    until(lambda: not opened.busy)
    assert opened.message.text == "cancelled" and not opened.bar.cancel.isVisible()
    assert [path.name for path in tmp_path.iterdir()] == ["latent.npy"]


def test_a_file_that_cannot_be_saved_is_told_and_an_old_one_is_kept(opened: ViewerWindow, tmp_path: Path) -> None:
    (tmp_path / "old.png").write_bytes(b"old")
    for name, text in (("old.png", "exists"), ("new.gif", ".png"), ("none/new.png", "no such folder")):
        opened.save(tmp_path / name)
        until(lambda: not opened.busy)
        assert text in opened.message.text
    assert (tmp_path / "old.png").read_bytes() == b"old"
    opened.save(tmp_path / "old.png", force=True)
    until(lambda: not opened.busy)
    assert (tmp_path / "old.png").read_bytes() != b"old"


def test_closing_the_window_ends_what_is_going_on(
    opened: ViewerWindow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = holding(monkeypatch)
    opened.save(tmp_path / "whole.png")
    opened.cancel()
    held.set()
    opened.close()
    assert [path.name for path in tmp_path.iterdir()] == ["latent.npy"]


def test_what_was_made_when_the_window_closed_is_not_shown(
    window: ViewerWindow, tmp_path: Path, app: QApplication
) -> None:
    window.open(tmp_path / "latent.npy")
    (job,) = window.findChildren(Job)
    job.wait()  # it has ended, and its signal waits for the event loop
    window.close()
    app.processEvents()
    assert window.view.reader is None and not window.busy and window.message.text == ""


def test_the_view_is_copied(opened: ViewerWindow) -> None:
    opened.view.zoom_to(1.0)
    picture, seen = opened.view.picture, opened.view.seen
    opened.copy()
    until(lambda: not opened.busy)
    assert picture is not None and seen is not None
    assert np.array_equal(pixels_of(QGuiApplication.clipboard().image()), picture.read(seen))


def test_a_file_of_several_latents_is_leafed_through(window: ViewerWindow, tmp_path: Path) -> None:
    np.save(tmp_path / "batch.npy", np.stack([LATENT, tiny.random_latent(24, 32, seed=3)]))
    window.open(tmp_path / "batch.npy")
    until(lambda: not window.busy)
    assert "(1 of 2)" in window.windowTitle()
    first = window.view.picture
    window.show_picture(1)
    assert "(2 of 2)" in window.windowTitle() and window.view.picture is not first
    window.show_picture(2)
    assert "(2 of 2)" in window.windowTitle()


def test_without_a_picture_saving_and_copying_say_what_is_missing(window: ViewerWindow, tmp_path: Path) -> None:
    for act in (window.copy, lambda: window.save(tmp_path / "a.png")):
        window.message.clear()
        act()
        assert "there is no picture" in window.message.text


def test_a_job_tells_an_error_of_any_kind(app: QApplication) -> None:
    errors: list[BaseException] = []

    def work(tell: Any, cancel: Any) -> None:
        raise ZeroDivisionError

    job = Job(work)
    job.failed.connect(errors.append)
    job.start()
    until(lambda: bool(errors))
    assert isinstance(errors[0], ZeroDivisionError)


# The command.


def test_the_command_shows_a_window_until_a_signal_ends_it(bundle: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "latent.npy", LATENT)
    command = [sys.executable, "-m", "infgen_rt", "view", "latent.npy", "--model", str(bundle)]
    code = (
        "import os, signal, sys, threading; from infgen_rt.qt import view; from infgen_rt.cli.main import main\n"
        "paint = view._draw\n"
        "def draw(*given):\n"
        "    paint(*given); os.kill(os.getpid(), signal.SIGTERM)\n"
        "view._draw = draw\n"
        f"sys.exit(main({command[3:]!r}))"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=SECONDS)
    assert result.returncode == 143, result.stderr
    assert "Error" not in result.stderr


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems always have a display")
def test_without_a_display_the_command_says_so(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "QT_QPA_PLATFORM"):
        monkeypatch.delenv(name, raising=False)
    assert main(["view", "--model", str(bundle)]) == 2
    assert "there is no display" in capsys.readouterr().err
