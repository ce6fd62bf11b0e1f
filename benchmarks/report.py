"""Results as tables."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from benchmarks.process import median, spread
from benchmarks.suite import METHODS, PROJECT, Job, Method, Results


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
    """How many times the latent's own size a picture has."""
    return math.sqrt(job.pixels / (job.cells[0] * job.cells[1])) / 8


def quality_of(method: Method, job: Job, results: Results) -> Mapping[str, float] | None:
    """What the evaluation found for a method at the scale of a job, if it measured there."""
    for name, methods in results.quality.items():
        if abs(float(name) / scale_of(job) - 1) < 0.1 and method.quality is not None:
            # At scale 1 nothing is enlarged.
            return methods.get(method.quality) or methods.get(method.quality.partition(" + ")[0])
    return None


def work(method: Method, job: Job, results: Results) -> float | None:
    """Multiply-adds of a method's networks for a job; None where they were not counted."""
    if method.kind == "diffusers":
        return None
    if method.peer is not None:
        # A latent as large as the picture / 8, or the small one, whose picture an upscaler sees.
        cells = job.pixels / 64 if method.native else job.cells[0] * job.cells[1]
        enlarging = 64 * cells * results.costs[method.upscaler] if method.upscaler else 0
        return results.costs[method.peer] * cells + enlarging
    # What is beyond the largest scale is resampled.
    most = 8 * results.costs.get("largest scale", math.inf)
    width, height = min(job.size[0], most * job.cells[1]), min(job.size[1], most * job.cells[0])
    return results.costs["context"] * job.cells[0] * job.cells[1] + results.costs["decode"] * width * height


def against(method: Method, job: Job, results: Results) -> float | None:
    """Its seconds over this project's in the same engine and precision; None where there is no such run."""
    for own in METHODS:
        if (own.name, own.precision, own.backend) == (PROJECT, method.precision, method.backend):
            mine, other = results.seconds(own, job), results.seconds(method, job)
            return other / mine if mine and other else None
    return None


def markdown(results: Results) -> str:
    """Everything, as Markdown."""
    machine = results.machine
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    lines = [f"{machine['processor']}, {machine['threads']} threads, {machine['system']}, {versions}", ""]
    for job in jobs(results):
        lines += _job(job, results)
    lines += ["A viewport of 1024x1024 in a picture of 16384x16384", ""]
    lines += _table(("method", "first time, s", "again, s", "half moved, s", "peak MiB"))
    for name, runs in results.viewport.items():
        cells = [f"{median(runs, key):.3f}" for key in ("seconds", "again", "moved")]
        lines.append(_row(name, *cells, f"{median(runs, 'peak') / 2**20:.0f}"))
    lines += ["", "From the start of a process to its first pixels, and to the whole picture", ""]
    lines += _table(("method", "first pixels, s", "picture, s", "peak MiB"))
    for name, runs in results.starts.items():
        cells = [f"{median(runs, key):.2f}" for key in ("first", "finished")]
        lines.append(_row(name, *cells, f"{median(runs, 'peak') / 2**20:.0f}"))
    lines += ["", "Largest matrix products, thousand million multiply-adds a second: " + _rates(results)]
    sizes = ", ".join(f"{name} {size / 1e6:.0f}" for name, size in results.installed.items())
    lines += ["", f"Installed, MB: {sizes}"]
    return "\n".join(lines)


def _job(job: Job, results: Results) -> list[str]:
    megapixels = job.pixels / 1e6
    runs = results.runs[str(job)]
    lines = [f"**{job}**", ""]
    header = ("method", "median s", "least - most", "s a megapixel", "of ours", "peak MiB", "of the peak")
    lines += _table((*header, "PSNR", "SSIMULACRA2"))
    for method in METHODS:
        if method.label not in runs:
            continue
        own = runs[method.label]
        seconds, done = median(own, "seconds"), work(method, job, results)
        peak = results.peaks.get(f"{method.backend} {method.precision}")
        ratio, level = against(method, job, results), quality_of(method, job, results)
        lines.append(
            _row(
                method.label,
                f"{seconds:.2f}",
                spread(own, "seconds"),
                f"{seconds / megapixels:.3f}",
                f"{ratio:.2f}x" if ratio else "",
                f"{median(own, 'peak') / 2**20:.0f}",
                f"{done / seconds / peak:.0%}" if done and peak else "",
                *(("", "") if level is None else (f"{level['psnr']:.2f}", f"{level['ssimulacra2']:.1f}")),
            )
        )
    return [*lines, ""]


def _rates(results: Results) -> str:
    return ", ".join(f"{name} {rate / 1e9:.0f}" for name, rate in results.peaks.items())


def _table(names: tuple[str, ...]) -> list[str]:
    return [_row(*names), "|---" * len(names) + "|"]


def _row(*cells: Any) -> str:
    return "| " + " | ".join(str(cell) for cell in cells) + " |"
