"""Compares all backends and precisions that work on this machine: ``python -m benchmarks.backends``.

Each decodes the middle of a sample at scales 1, 2 and 4, in new processes that are run in turns. The results are the
median seconds per megapixel of the whole picture (prefill included), the peak memory, and the PSNR of the 8-bit picture
against ONNX Runtime's in float32. Then the time from the start of a process to the first tile of a picture of 512x512
pixels and to the whole picture is measured, first with an empty cache folder and then with a full one.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import click
import numpy as np

import infgen_rt
from benchmarks import options, table
from benchmarks.latents import middle
from benchmarks.process import Order, median, run, start
from infgen_rt.backend.candidates import Survey
from infgen_rt.backend.protocol import KNOWN
from infgen_rt.bundle.folder import Bundle
from infgen_rt.common.folders import VARIABLE
from infgen_rt.common.pixels import psnr
from infgen_rt.errors import BackendError

SCALES = (1, 2, 4)
CELLS = 64
"""Largest side of the part of the sample that is decoded, in cells."""
REFERENCE = ("onnxruntime", "cpu", "exact")


def ways(bundle: Path) -> list[tuple[str, str, str]]:
    """Backend, device and precision of everything that works on this machine."""
    found = []
    for name in KNOWN:
        try:
            candidates = Survey.of(Bundle.open(bundle).manifest, name).candidates
        except BackendError:
            continue
        for device in dict.fromkeys(candidate.device.id for candidate in candidates):
            here = [candidate for candidate in candidates if candidate.device.id == device]
            found += [(name, device, "exact")] if any(candidate.exact for candidate in here) else []
            found += [(name, device, "fast")] if not all(candidate.exact for candidate in here) else []
    return found


@click.command(cls=options.Command)
@options.model
@click.option("--sample", default="osprey", show_default=True)
@options.threads
@click.option("--repeat", type=click.IntRange(min=1), default=3, show_default=True)
@click.option("--json", "file", type=click.Path(path_type=Path), help="File for all measurements, as JSON.")
def main(model: Path, sample: str, threads: int, repeat: int, file: Path | None) -> None:
    """Decodes a sample on every backend, and prints tables of times, memory and quality."""
    latent = middle(infgen_rt.load_sample(sample).latent, CELLS, CELLS)
    height, width = (8 * side for side in latent.shape[1:])
    samples: dict[str, list[dict[str, Any]]] = {}
    quality: dict[tuple[Any, ...], float] = {}
    everything = ways(model)
    if REFERENCE not in everything:
        raise click.ClickException('the others are compared with ONNX Runtime: pip install "infgen-rt[cpu]"')
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ[VARIABLE] = str(folder / "cache")
        np.save(folder / "latent.npy", latent)
        jobs = list(itertools.product(everything, SCALES))
        for number, (way, scale) in itertools.product(range(repeat), jobs):
            output = folder / f"{'-'.join(way)}-{scale}.npy".replace(":", "_")
            size = (scale * width, scale * height)
            result = run(Order("infgen", model, folder / "latent.npy", size, threads, *way, output))
            samples.setdefault(f"{' '.join(way)} {scale}", []).append(result)
            if number == 0:
                reference = folder / f"{'-'.join(REFERENCE)}-{scale}.npy"
                quality[(*way, scale)] = psnr(np.load(output), np.load(reference), 255)
        click.echo(f"{latent.shape[2]}x{latent.shape[1]} cells, {threads} threads, {repeat} runs each, {_machine()}\n")
        header = ["backend", "device", "precision", "arithmetic", "s per megapixel at 1x", "2x", "4x"]
        header += ["peak MiB at 4x", "PSNR at 1x", "4x"]
        click.echo(table.head(*header))
        for way in everything:
            runs = {scale: samples[f"{' '.join(way)} {scale}"] for scale in SCALES}
            speeds = (median(runs[scale], "again") / (scale**2 * width * height / 1e6) for scale in SCALES)
            peak = median(runs[SCALES[-1]], "peak") / 2**20
            levels = (f"{quality[(*way, scale)]:.1f}" for scale in (SCALES[0], SCALES[-1]))
            cells = [*way, runs[1][0]["arithmetic"], *(f"{speed:.3f}" for speed in speeds), f"{peak:.0f}", *levels]
            click.echo(table.row(*cells))
        starts = _starts(everything, model, threads, repeat, folder)
    header = ["backend", "device", "precision", "first tile, s", "picture, s", "at the first start"]
    click.echo(f"\n{table.head(*header)}")
    for way, (first, *later) in starts.items():
        tile, picture = (statistics.median(taken[part] for taken in later) for part in range(2))
        click.echo(table.row(*way, f"{tile:.2f}", f"{picture:.2f}", f"{first[0]:.2f} and {first[1]:.2f}"))
    if file:
        told = {" ".join(way): taken for way, taken in starts.items()}
        file.write_text(json.dumps({"samples": samples, "starts": told}, indent=2) + "\n")


def _starts(
    everything: list[tuple[str, str, str]], model: Path, threads: int, repeat: int, folder: Path
) -> dict[tuple[str, str, str], list[tuple[float, float]]]:
    """Seconds from the start of a process to its first tile and to its whole picture of 512x512 pixels.

    At the first start of each backend and precision, the cache folder is empty. The processes are run in turns.
    """
    times: dict[tuple[str, str, str], list[tuple[float, float]]] = {way: [] for way in everything}
    for _, way in itertools.product(range(repeat + 1), everything):
        os.environ[VARIABLE] = str(folder / "-".join(way).replace(":", "_"))
        order = Order("first_tile", model, folder / "latent.npy", (512, 512), threads, *way)
        result = start(order)
        times[way].append((result["first"], result["finished"]))
    return times


def _machine() -> str:
    import platform

    return f"{platform.system()} {platform.machine()}, Python {sys.version.split()[0]}"


if __name__ == "__main__":
    main()
