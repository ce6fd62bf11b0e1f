"""Plots quality against time, and time and memory against the number of pixels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402 - the backend has to be chosen first
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from matplotlib.lines import Line2D  # noqa: E402

from benchmarks.compare import LOWER  # noqa: E402
from benchmarks.methods import ENGINES, METHODS, Job, Method
from benchmarks.process import later, median  # noqa: E402
from benchmarks.report import QUALITY, jobs, quality_of, scale_of  # noqa: E402
from benchmarks.suite import Results  # noqa: E402


def draw(results: Results, folder: Path) -> list[Path]:
    """Writes the plots as PNG files.

    Returns:
        The files. Quality is not plotted if it was not measured.
    """
    files = [
        _growth(results, folder / "time.png", "seconds", lambda value: value),
        _growth(results, folder / "memory.png", "MiB", lambda value: value / 2**20, "peak"),
    ]
    if results.quality:
        files.append(_quality(results, folder / "quality.png"))
    return files


def _growth(results: Results, file: Path, unit: str, convert: Callable[[float], float], name: str = "") -> Path:
    figure, axes = plt.subplots(figsize=(11, 6))
    latents = sorted({job.cells for job in jobs(results)})
    for cells in latents:
        for method in METHODS:
            # The latent of a native method follows from the picture's size, so its line is the same for all latents.
            if method.native and cells != latents[0]:
                continue
            points = [
                (job.pixels / 1e6, convert(median(runs, name or later(runs))))
                for job in jobs(results)
                if job.cells == cells and (runs := results.runs[str(job)].get(method.label))
            ]
            if points:
                label = method.label if method.native else f"{method.label} ({cells[1]}x{cells[0]} cells)"
                axes.plot(*zip(*points, strict=True), label=label, **_style(method, cells))
    axes.set(xscale="log", yscale="log", xlabel="megapixels", ylabel=unit)
    return _finish(figure, axes, file)


def _quality(results: Results, file: Path) -> Path:
    """One panel for each perceptual metric that was measured, or one for PSNR. In all of them, better is higher."""
    found = [level for by_method in results.quality.values() for level in by_method.values()]
    measured = [name for name in ("lpips", "frechet") if any(level.get(name) is not None for level in found)]
    names = measured or ["psnr"]
    figure, panels = plt.subplots(1, len(names), figsize=(5.5 * len(names), 4), squeeze=False)
    contenders = list(dict.fromkeys(method.name for method in METHODS))
    for name, axes in zip(names, panels[0], strict=True):
        told: set[tuple[str, float]] = set()
        for method, job, value in _levels(results, name):
            seconds = results.seconds(method, job)
            assert seconds is not None
            place = (seconds / (job.pixels / 1e6), value)
            colour = f"C{contenders.index(method.name)}"
            axes.plot(*place, color=colour, linestyle="none", **_engine_style(method))
            # Engines differ only in time, so the same quality gets only one label.
            if (method.name, value) not in told:
                told.add((method.name, value))
                text = f"{method.name}, {scale_of(job):.0f}x"
                axes.annotate(text, place, xytext=(0, 9), textcoords="offset points", fontsize=9, ha="center")
        axes.set(xscale="log", xlabel="seconds per megapixel", ylabel=f"{QUALITY[name][0]} (better is higher)")
        axes.margins(0.35, 0.15)
        if name in LOWER:
            axes.invert_yaxis()
        axes.grid(alpha=0.3)
    engines = {method.engine: method for method, *_ in _levels(results, names[0])}
    keys = [
        Line2D([], [], color="black", linestyle="none", label=engine, **_engine_style(method))
        for engine, method in engines.items()
    ]
    figure.legend(handles=keys, loc="lower center", ncols=len(keys), fontsize=9, frameon=False)
    figure.tight_layout(rect=(0, 0.07, 1, 1))
    figure.savefig(file, dpi=110)
    plt.close(figure)
    return file


def _style(method: Method, cells: tuple[int, int]) -> dict[str, Any]:
    """One colour per method, and one marker per size of latent."""
    return {
        "color": plt.get_cmap("nipy_spectral", len(METHODS) + 1)(METHODS.index(method)),
        "marker": "os^D"[(max(cells) // 64) % 4],
    }


def _engine_style(method: Method) -> dict[str, Any]:
    """One marker per engine, which is hollow for the fast precision."""
    return {
        "marker": "os^"[list(ENGINES).index(method.backend)],
        "fillstyle": "full" if method.precision == "exact" else "none",
        "markersize": 8,
    }


def _levels(results: Results, name: str) -> list[tuple[Method, Job, float]]:
    return [
        (method, job, value)
        for job in jobs(results)
        for method in METHODS
        if not (method.untiled or method.one_stage)
        and method.label in results.runs[str(job)]
        and (value := (quality_of(method, job, results) or {}).get(name)) is not None
    ]


def _finish(figure: Figure, axes: Axes, file: Path) -> Path:
    axes.grid(which="both", alpha=0.3)
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    plt.close(figure)
    return file
