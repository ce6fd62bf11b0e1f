"""Compares the limit of ``memory=`` with the peak memory of the process: ``python -m benchmarks.memory``.

Each backend decodes a picture into each file format, with the least memory that the plan accepts. With ``--large``, one
backend also decodes large pictures, and pictures of large latents, with fixed limits. Their seconds per megapixel show
whether the time grows faster than the number of pixels. Each picture has a new process.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from benchmarks import options, table
from benchmarks.backends import ways
from benchmarks.latents import latent_file
from benchmarks.process import Order, run
from infgen_rt.common.folders import VARIABLE
from infgen_rt.common.memory import parse_bytes
from infgen_rt.writers import FORMATS

HEADER = (
    *("backend", "precision", "picture", "file", "allowed MB", "planned MB", "peak MB", "kept"),
    *("s", "s per megapixel"),
)
REFUSAL = re.compile(r"needs(?: at least)? ([\d.]+ [MG]iB)")
"""Finds the memory that a refusal names."""
ROUNDED = 2**20
"""Number of bytes to add to an amount, because it was rounded when it was printed."""


@dataclass(frozen=True)
class Promise:
    """A picture, and the memory limit for decoding it.

    Attributes:
        size: Width and height of the picture.
        ending: Ending of the file, without a dot.
        megabytes: Limit in millions of bytes. ``None`` for the least that the plan accepts.
        cells: Width and height of the latent.
        stages: Scales of the stages. ``None`` for one stage.
    """

    size: tuple[int, int]
    ending: str
    megabytes: int | None = None
    cells: tuple[int, int] = (64, 64)
    stages: tuple[float, ...] | None = None

    def __str__(self) -> str:
        (columns, rows), (width, height) = self.cells, self.size
        stages = ", stages " + ",".join(f"{scale:g}" for scale in self.stages) if self.stages else ""
        return f"{columns}x{rows} cells -> {width}x{height}{stages}"


SMALL = Promise((1280, 1024), "png", cells=(40, 32))
LARGE = (
    Promise((3840, 2160), "png", 400),
    Promise((7680, 4320), "png", 500),
    Promise((16384, 16384), "tif", 700),
    Promise((16384, 16384), "png", 700),
    Promise((2048, 2048), "png", 400, cells=(256, 256)),
    Promise((3840, 2160), "png", 700, cells=(480, 270)),
    Promise((7680, 4320), "png", 700, cells=(960, 540)),
    Promise((4096, 4096), "png", 500, stages=(4, 2)),
)


def endings() -> list[str]:
    """One ending of each file format."""
    first = {form.name: ending.removeprefix(".") for ending, form in reversed(FORMATS.items())}
    return list(first.values())[::-1]


def carried_out(order: Order, megabytes: int | None) -> tuple[int, dict[str, Any]]:
    """Runs an order with a memory limit.

    Args:
        order: The order.
        megabytes: The limit in millions of bytes. ``None`` for the least that is accepted. It is found by trying the
            amounts that refusals name.

    Returns:
        The limit in bytes, and the measurements.

    Raises:
        click.ClickException: The limit was refused, or the contender failed.
    """
    limit = ROUNDED if megabytes is None else megabytes * 10**6
    while True:
        try:
            return limit, run(replace(order, memory=str(limit)))
        except click.ClickException as error:
            named = REFUSAL.search(error.message)
            if megabytes is not None or named is None or parse_bytes(named[1]) < limit:
                raise
            limit = parse_bytes(named[1]) + ROUNDED


def verdict(peak: int, limit: int) -> str:
    """Whether a peak is within a limit, or at most a tenth above it."""
    return "yes" if peak <= limit else "within 10 %" if peak <= 1.1 * limit else "NO"


def row(promise: Promise, way: Sequence[str], model: Path, threads: int, folder: Path) -> list[str]:
    """Decodes a picture with a backend, on a device and in a precision, and returns the row of the table."""
    output = folder / f"picture.{promise.ending}"
    latent, (backend, device, precision) = latent_file(folder, promise.cells[::-1]), way
    order = Order("infgen", model, latent, promise.size, threads, backend, device, precision, output)
    where = backend if device == "cpu" else f"{backend} {device}"
    about = [where, precision, str(promise), promise.ending]
    try:
        limit, result = carried_out(replace(order, stages=promise.stages), promise.megabytes)
    except click.ClickException as error:
        return [*about, str(promise.megabytes or ""), "", "", f"NO: {error.message}", "", ""]
    output.unlink()
    seconds, megapixels = result["seconds"], promise.size[0] * promise.size[1] / 1e6
    amounts = [f"{amount / 1e6:.0f}" for amount in (limit, result["planned"], result["peak"])]
    return [*about, *amounts, verdict(result["peak"], limit), f"{seconds:.1f}", f"{seconds / megapixels:.3f}"]


@click.command(cls=options.Command)
@options.model
@click.option("--large", help="Name of a backend that also decodes large pictures.")
@options.threads
def main(model: Path, large: str | None, threads: int) -> None:
    """Decodes pictures into files, and prints the time and the memory."""
    able = ways(model)
    if large is not None and large not in {backend for backend, *_ in able}:
        raise click.BadParameter(f"{large!r} is no backend that runs here", param_hint="--large")
    click.echo(table.head(*HEADER))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ[VARIABLE] = str(folder / "cache")
        jobs = [(replace(SMALL, ending=ending), way) for way in able for ending in endings()]
        if large is not None:
            jobs += [(promise, (large, "cpu", "exact")) for promise in LARGE]
        for promise, way in jobs:
            click.echo(table.row(*row(promise, way, model, threads, folder)))


if __name__ == "__main__":
    main()
