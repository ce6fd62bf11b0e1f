"""Measures how long the viewer's event loop stands still while a large picture is moved.

Run it as ``python -m benchmarks.studies.viewer``.

The window is drawn without a display. The result is the longest gap between two turns of the event loop. The study also
measures how long the machine keeps an idle thread waiting, because the viewer does not cause that part of a gap.
"""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import click
import numpy as np

from benchmarks import options
from benchmarks.latents import middle
from infgen_rt.latent.samples import load_sample
from infgen_rt.viewing import Opener

WINDOW = (1280, 860)
STEP, INTERVAL = (-37, -23), 0.016
"""Pixels by which the picture is moved, and seconds between two moves."""
SLEEP = 0.001
"""Seconds that the idle thread, and the event loop after each turn, sleep."""


class Idle(threading.Thread):
    """A thread that only sleeps, and records by how much its longest sleep was too long."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.longest = 0.0
        self.stopped = threading.Event()

    def run(self) -> None:
        while not self.stopped.is_set():
            start = time.perf_counter()
            time.sleep(SLEEP)
            self.longest = max(self.longest, time.perf_counter() - start - SLEEP)


def square(sample: str, folder: Path) -> Path:
    """Saves the middle square of a sample's latent."""
    latent = load_sample(sample).latent
    side = min(latent.shape[1:])
    path = folder / f"{sample}.npy"
    np.save(path, middle(latent, side, side))
    return path


def measure(opener: Opener, latent: Path, seconds: float, zoom: float, screenshot: Path | None) -> dict[str, float]:
    """Moves a picture to and fro in a window, and measures the gaps between turns of the event loop.

    Args:
        opener: Opens the picture.
        latent: File of the latent.
        seconds: How long the picture is moved.
        zoom: Window pixels per picture pixel.
        screenshot: File for an image of the window. ``None`` for no image.

    Returns:
        Times in milliseconds by name.
    """
    os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
    from PySide6.QtCore import QElapsedTimer, QEventLoop
    from PySide6.QtWidgets import QApplication

    from infgen_rt.qt import ViewerWindow

    app = QApplication.instance() or QApplication(["viewer"])
    window = ViewerWindow(opener)
    window.resize(*WINDOW)
    window.show()
    clock = QElapsedTimer()
    clock.start()
    window.open(latent)
    while window.view.picture is None:
        app.processEvents(QEventLoop.ProcessEventsFlag.WaitForMoreEvents, 50)
    opened = clock.elapsed()
    reader = window.view.reader
    assert reader is not None
    whole = window.view.viewport.wanted(reader.levels)[0] if window.view.viewport else None
    while whole is not None and reader.cached(whole) is None:
        app.processEvents(QEventLoop.ProcessEventsFlag.WaitForMoreEvents, 50)
    preview = clock.elapsed()
    window.view.zoom_to(zoom)
    idle = Idle()
    idle.start()
    gaps, end = [], time.perf_counter() + seconds
    last = next_move = time.perf_counter()
    right, down = STEP
    while last < end:
        app.processEvents()
        now = time.perf_counter()
        gaps.append(now - last)
        last = now
        if now >= next_move:
            before = window.view.seen
            window.view.move_by(right, down)
            if window.view.seen == before:
                right, down = -right, -down
            next_move = now + INTERVAL
        time.sleep(SLEEP)
    idle.stopped.set()
    if screenshot is not None:
        while reader.open_requests:
            app.processEvents(QEventLoop.ProcessEventsFlag.WaitForMoreEvents, 50)
        app.processEvents()
        window.grab().toImage().save(str(screenshot), quality=80)
    window.close()
    gaps.sort()
    return {
        "opened": opened,
        "preview": preview,
        "longest": 1000 * gaps[-1],
        "percentile 99": 1000 * gaps[int(0.99 * len(gaps))],
        "idle thread": 1000 * idle.longest,
    }


@click.command(cls=options.Command)
@click.option("--size", default="16384x16384", show_default=True, help="Size of the picture.")
@click.option("--sample", default="harbour", show_default=True, help="Name of the sample whose latent is decoded.")
@click.option("--seconds", default=20.0, show_default=True, help="How long the picture is moved.")
@click.option("--zoom", default=1.0, show_default=True, help="Window pixels per picture pixel.")
@click.option("--screenshot", type=click.Path(path_type=Path), help="File for an image of the window at the end.")
def main(size: str, sample: str, seconds: float, zoom: float, screenshot: Path | None) -> None:
    """Prints the longest gaps of the viewer's event loop while a picture is moved."""
    with TemporaryDirectory() as folder:
        opener = Opener(size, normalisation="model")
        for name, value in measure(opener, square(sample, Path(folder)), seconds, zoom, screenshot).items():
            click.echo(f"{name}: {value:.0f} ms")


if __name__ == "__main__":
    main()
