"""Shows results as tables."""

from __future__ import annotations

import math
from collections.abc import Mapping

from benchmarks import table
from benchmarks.methods import ENLARGED, METHODS, PROJECT, Job, Method
from benchmarks.process import later, median, spread
from benchmarks.suite import Results

QUALITY = {
    "lpips": ("LPIPS", ".3f"),
    "frechet": ("patch Frechet", ".1f"),
    "psnr": ("PSNR", ".2f"),
    "flat": ("flat", ".2f"),
}
"""The evaluation's metrics that are shown, with their names and formats."""
ROWS = {
    "infgen": "infgen-rt",
    "teacher": "TAEF2",
    "teacher + bicubic": "TAEF2 + bicubic",
    "teacher + Real-ESRGAN": "TAEF2 + Real-ESRGAN",
}
"""The evaluation's methods that are shown, with their names."""
NAMES = {"taef2": "TAEF2", "vae": "FLUX.2's VAE", "esrgan": "Real-ESRGAN"}
"""Names of the peers' networks."""


def jobs(results: Results) -> list[Job]:
    """The pictures that were made, smallest first."""
    found = []
    for name in results.runs:
        size, cells = name.removesuffix(" cells").split(" from ")
        width, height = (int(side) for side in size.split("x"))
        columns, rows = (int(side) for side in cells.split("x"))
        found.append(Job((rows, columns), (width, height)))
    return sorted(found, key=lambda job: (job.cells, job.pixels))


def scale_of(job: Job) -> float:
    """The scale of a job's picture, relative to the latent's own size."""
    return math.sqrt(job.pixels / (job.cells[0] * job.cells[1])) / 8


def quality_of(method: Method, job: Job, results: Results) -> Mapping[str, float | None] | None:
    """The evaluation's results for a method at the scale of a job. ``None`` if there are none."""
    for name, methods in results.quality.items():
        if abs(float(name) / scale_of(job) - 1) < 0.1 and method.quality is not None:
            # At scale 1, nothing is enlarged, and the results have the name of the decoder alone.
            return methods.get(method.quality) or methods.get(method.quality.partition(" + ")[0])
    return None


def work(method: Method, job: Job, results: Results) -> float | None:
    """Multiply-adds of a method's networks for a job. ``None`` if they were not counted."""
    if method.kind == "diffusers":
        return None
    if method.peer is not None:
        # The latent has a cell for every 8x8 pixels of the picture, or it is small and an upscaler may follow.
        cells = job.pixels / 64 if method.native else job.cells[0] * job.cells[1]
        enlarging = 64 * cells * results.costs[method.upscaler] if method.upscaler else 0
        return results.costs[method.peer] * cells + enlarging
    if not results.own:
        return None
    # The runtime uses the smallest enlargement for the scale. Beyond the largest, it resamples the picture.
    scales = sorted(results.own, key=float)
    scale = max(job.size[0] / job.cells[1], job.size[1] / job.cells[0]) / 8
    cost = results.own[next((name for name in scales if float(name) >= scale - 1e-6), scales[-1])]
    most = 8 * float(scales[-1])
    width, height = min(job.size[0], most * job.cells[1]), min(job.size[1], most * job.cells[0])
    return cost["context"] * job.cells[0] * job.cells[1] + cost["decode"] * width * height


def against(method: Method, job: Job, results: Results) -> float | None:
    """A method's time divided by this project's, in the same engine and precision. ``None`` if a run is missing."""
    mine, other = _own(method, job, results), results.seconds(method, job)
    return other / mine if mine and other else None


def _own(method: Method, job: Job, results: Results) -> float | None:
    """This project's time in seconds, in a method's engine and precision. ``None`` if there is no such run."""
    for own in METHODS:
        if (own.name, own.precision, own.backend) == (PROJECT, method.precision, method.backend):
            return results.seconds(own, job)
    return None


def markdown(results: Results) -> str:
    """All results, as Markdown."""
    machine = results.machine
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    lines = [f"{machine['processor']}, {machine['threads']} threads, {machine['system']}, {versions}", ""]
    if untrained := [name for peer, name in NAMES.items() if peer in results.costs and peer not in _trained(results)]:
        lines += [f"These have random weights, because only their cost matters: {', '.join(untrained)}", ""]
    if results.quality:
        lines += _quality(results)
    for job in jobs(results):
        lines += _job(job, results)
    lines += _ratios(results)
    lines += ["A viewport of 1024x1024 in a picture of 16384x16384", ""]
    lines.append(table.head("method", "first time, s", "again, s", "half moved, s", "peak MiB"))
    for name, runs in results.viewport.items():
        cells = [f"{median(runs, key):.3f}" for key in ("seconds", "again", "moved")]
        lines.append(table.row(name, *cells, f"{median(runs, 'peak') / 2**20:.0f}"))
    lines += ["", "From the start of a process to its first pixels, and to the whole picture", ""]
    lines.append(table.head("method", "first pixels, s", "picture, s", "peak MiB"))
    for name, runs in results.starts.items():
        cells = [f"{median(runs, key):.2f}" for key in ("first", "finished")]
        lines.append(table.row(name, *cells, f"{median(runs, 'peak') / 2**20:.0f}"))
    lines += ["", "Largest matrix products, thousand million multiply-adds per second: " + _rates(results)]
    sizes = ", ".join(f"{name} {size / 1e6:.0f}" for name, size in results.installed.items())
    lines += ["", f"Installed, MB: {sizes}"]
    return "\n".join(lines)


def _job(job: Job, results: Results) -> list[str]:
    """The table of one picture, with a row for each method that made it."""
    megapixels = job.pixels / 1e6
    runs = results.runs[str(job)]
    lines = [f"**{job}**", ""]
    times = ("first picture, s", "later ones, s", "least - most", "s per megapixel", "of ours")
    lines.append(table.head("method", *times, "peak MiB", "of the peak", *(name for name, _ in QUALITY.values())))
    for method in METHODS:
        if method.label not in runs:
            continue
        own = runs[method.label]
        seconds, done = median(own, later(own)), work(method, job, results)
        peak = results.peaks.get(f"{method.backend} {method.precision}")
        ratio, level = against(method, job, results), quality_of(method, job, results)
        lines.append(
            table.row(
                method.label,
                f"{median(own, 'seconds'):.2f}",
                f"{seconds:.2f}",
                spread(own, later(own)),
                f"{seconds / megapixels:.3f}",
                f"{ratio:.2f}x" if ratio else "",
                f"{median(own, 'peak') / 2**20:.0f}",
                f"{done / seconds / peak:.0%}" if done and peak else "",
                *_level(level or {}),
            )
        )
    return [*lines, ""]


def _quality(results: Results) -> list[str]:
    """The evaluation's results, at its own scales."""
    lines = ["**Quality**", "", table.head("scale", "method", *(name for name, _ in QUALITY.values()))]
    for scale, found in results.quality.items():
        lines += [table.row(scale, name, *_level(found[row])) for row, name in ROWS.items() if row in found]
    return [*lines, ""]


def _level(level: Mapping[str, float | None]) -> list[str]:
    """Table cells of the shown metrics. A cell is empty if its metric was not measured."""
    found = ((level.get(name), form) for name, (_, form) in QUALITY.items())
    return ["" if value is None else format(value, form) for value, form in found]


def _ratios(results: Results) -> list[str]:
    """A table with the time of a tiny decoder with a strong enlarger, divided by this project's time."""
    rows = [
        table.row(job, method.engine, f"{mine:.2f}", f"{theirs:.2f}", f"{theirs / mine:.1f}")
        for job in jobs(results)
        for method in METHODS
        if method.name == ENLARGED and (theirs := results.seconds(method, job)) and (mine := _own(method, job, results))
    ]
    header = ("picture", "engine", f"{PROJECT}, s", f"{ENLARGED}, s", "times as long")
    return [f"**{ENLARGED} against {PROJECT}**", "", table.head(*header), *rows, ""] if rows else []


def _trained(results: Results) -> list[str]:
    """Names of the peers with trained weights. In results of earlier versions, it was always the tiny decoder alone."""
    trained: list[str] = results.machine.get("trained", ["taef2"])
    return trained


def _rates(results: Results) -> str:
    return ", ".join(f"{name} {rate / 1e9:.0f}" for name, rate in results.peaks.items())
