"""Measures how many pictures per minute a batch of latents gives: ``python -m benchmarks.batches``.

The ways take turns. In each turn, a way decodes all latents into PNG files. The ways are:

- a process for each latent, as a loop in a shell does
- one decoder, one picture after another
- one decoder that works on two pictures at once, as ``infgen_rt.save_pictures`` and ``infgen-rt decode`` do
- two decoders in one process, each with half of the threads. The package has no such way. The row shows what it would
  give.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np

import infgen_rt
from benchmarks import options, table
from benchmarks.machine import machine
from benchmarks.timing import seconds
from infgen_rt.backend.candidates import Precision

ENGINES: tuple[tuple[str, Precision], ...] = (("onnxruntime", "exact"), ("openvino", "fast"))
"""Backends and precisions that are measured."""
AFTER = "one after another"
"""The way that the others are compared with."""


def latents_of(sample: str, cells: int, count: int) -> list[np.ndarray[Any, Any]]:
    """Square parts of a sample, each at another place."""
    whole = infgen_rt.load_sample(sample).latent
    _, height, width = whole.shape
    places = [(number * 7 % (height - cells + 1), number * 11 % (width - cells + 1)) for number in range(count)]
    return [whole[:, top : top + cells, left : left + cells] for top, left in places]


def processes(files: Sequence[Path], folder: Path, arguments: Sequence[str]) -> None:
    """Decodes each latent in a process of its own."""
    for file in files:
        command = [sys.executable, "-m", "infgen_rt", "decode", str(file), "-o", str(folder / f"{file.stem}.png")]
        subprocess.run([*command, *arguments, "--quiet"], check=True)


def together(
    decoder: infgen_rt.Decoder, files: Sequence[Path], folder: Path, size: tuple[int, int], at_once: int
) -> None:
    """Decodes all latents with one decoder.

    Raises:
        click.ClickException: A picture could not be written.
    """

    def pictures() -> Iterator[tuple[infgen_rt.Picture, Path]]:
        for file in files:
            latent = infgen_rt.load_latent(file, normalisation="model")
            yield decoder.picture(latent, size, normalisation="model"), folder / f"{file.stem}.png"

    if failed := infgen_rt.save_pictures(pictures(), at_once=at_once, force=True):
        raise click.ClickException(str(next(iter(failed.values()))))


def apart(decoders: Sequence[infgen_rt.Decoder], files: Sequence[Path], folder: Path, size: tuple[int, int]) -> None:
    """Decodes the latents with several decoders at the same time."""
    with ThreadPoolExecutor(len(decoders)) as pool:
        shares = [files[number :: len(decoders)] for number in range(len(decoders))]
        works = [
            pool.submit(together, each, share, folder, size, 1) for each, share in zip(decoders, shares, strict=True)
        ]
        for work in works:
            work.result()


def turns_of(
    model: Path, engine: tuple[str, Precision], latents: Sequence[Any], side: int, threads: int, repeat: int
) -> list[dict[str, float]]:
    """Measures all ways on an engine.

    Args:
        model: The bundle.
        engine: The backend and the precision.
        latents: Arrays [C, h, w].
        side: Side of each picture in pixels.
        threads: Number of CPU threads.
        repeat: Number of turns.

    Returns:
        The seconds of each way, for each turn.
    """
    backend, precision = engine
    size = (side, side)
    with tempfile.TemporaryDirectory() as name, ExitStack() as opened:
        folder = Path(name)
        files = [folder / f"{number}.npy" for number in range(len(latents))]
        for path, latent in zip(files, latents, strict=True):
            np.save(path, latent)
        one, *halves = (
            opened.enter_context(infgen_rt.open(model, backend, device="cpu", precision=precision, threads=each))
            for each in (threads, max(1, threads // 2), max(1, threads // 2))
        )
        arguments = ["--model", str(model), "--backend", backend, "--device", "cpu", "--precision", precision]
        arguments += ["--threads", str(threads), "--size", f"{side}x{side}", "--normalisation", "model", "--force"]
        ways: dict[str, Callable[[], object]] = {
            "a process for each": partial(processes, files, folder, arguments),
            AFTER: partial(together, one, files, folder, size, 1),
            "two at once": partial(together, one, files, folder, size, 2),
            "two decoders, half of the threads each": partial(apart, halves, files, folder, size),
        }
        # The first run of a way in this process also loads libraries and graphs.
        for way in list(ways.values())[1:]:
            way()
        return [{way: seconds(run) for way, run in ways.items()} for _ in range(repeat)]


@click.command(cls=options.Command)
@options.model
@click.option("--sample", default="osprey", show_default=True)
@click.option("--cells", default=32, show_default=True, help="Side of each latent in cells.")
@click.option("--side", default=1024, show_default=True, help="Side of each picture in pixels.")
@click.option("--latents", "count", default=12, show_default=True, help="Number of latents.")
@options.threads
@click.option(
    "--repeat",
    type=click.IntRange(min=1),
    default=5,
    show_default=True,
    help="Number of turns. Their medians are printed.",
)
@click.option("--json", "file", type=click.Path(path_type=Path), help="File for all measurements, as JSON.")
def main(
    model: Path, sample: str, cells: int, side: int, count: int, threads: int, repeat: int, file: Path | None
) -> None:
    """Decodes a batch in several ways, and prints the pictures per minute of each."""
    latents = latents_of(sample, cells, count)
    heads = ("backend", "precision", "way", "pictures per minute", "least - most", f"of {AFTER}")
    click.echo(f"{count} pictures of {side}x{side} from {cells}x{cells} cells, {threads} threads, {repeat} turns\n")
    click.echo(table.head(*heads))
    samples: dict[str, list[dict[str, float]]] = {}
    for engine in ENGINES:
        turns = turns_of(model, engine, latents, side, threads, repeat)
        samples[" ".join(engine)] = turns
        for way in turns[0]:
            rates = [60 * count / turn[way] for turn in turns]
            # The ratio is between runs of the same turn, so that other work on the machine changes it less.
            ratio = statistics.median(turn[AFTER] / turn[way] for turn in turns)
            figures = (f"{statistics.median(rates):.1f}", f"{min(rates):.1f} - {max(rates):.1f}", f"{ratio:.2f}x")
            click.echo(table.row(*engine, way, *figures))
    if file:
        facts = {"machine": machine(threads), "pictures": count, "cells": cells, "side": side, "seconds": samples}
        file.write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
