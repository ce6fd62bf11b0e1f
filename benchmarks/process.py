"""Runs each measurement in a separate process, so that it does not share memory, start-up or caches with others."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click


@dataclass(frozen=True)
class Order:
    """An order for ``benchmarks.contender``, which runs one way of decoding once.

    Attributes:
        kind: Name of the contender's function.
        model: Bundle or graph. ``None`` for a network that the contender makes itself.
        latent: File with an array [C, h, w].
        size: Width and height of the picture.
        threads: Number of CPU threads.
        backend: Backend for this project's model, or engine of a graph.
        device: Device of the backend.
        precision: ``"exact"`` or ``"fast"``.
        output: File to write. The measured time includes writing a picture, but not writing a ``.npy`` file.
        upscaler: A second graph that enlarges the picture of the first.
        tiling: Whether a network that can decode in tiles does so.
        memory: Memory limit of this project, as for ``infgen_rt.open``.
        tile: Largest side of this project's tiles in pixels. ``None`` to let it choose.
        stages: Stages of this project's iterative extrapolation.
        one_stage: Whether this project decodes in one stage where two are its default.
        moments: Times in seconds after which the work is cancelled, each for a picture of its own.
    """

    kind: str
    model: Path | None
    latent: Path
    size: tuple[int, int]
    threads: int
    backend: str = "onnxruntime"
    device: str = "cpu"
    precision: str = "exact"
    output: Path | None = None
    upscaler: Path | None = None
    tiling: bool = False
    memory: str | None = None
    tile: int | None = None
    stages: tuple[float, ...] | None = None
    one_stage: bool = False
    moments: tuple[float, ...] = ()


def run(order: Order) -> dict[str, Any]:
    """Carries out an order in a new process.

    Returns:
        The contender's measurements. ``peak`` is the peak memory of the process in bytes. Most contenders also give
        ``seconds``.

    Raises:
        click.ClickException: The contender failed. The message is the last line of its output.
    """
    text = json.dumps({name: str(v) if isinstance(v, Path) else v for name, v in asdict(order).items()})
    command = [sys.executable, "-m", "benchmarks.contender"]
    process = subprocess.run(command, input=text, capture_output=True, text=True)
    if process.returncode:
        reason = (process.stderr.strip().splitlines() or [f"exit code {process.returncode}"])[-1]
        raise click.ClickException(f"{order.kind} on {order.backend}: {reason}")
    result: dict[str, Any] = json.loads(process.stdout)
    return result


def start(order: Order) -> dict[str, Any]:
    """Carries out an order whose contender reports when its picture was finished.

    Returns:
        The contender's measurements. ``finished`` is the time at which the picture was finished, and ``first`` the time
        of its first pixels, both in seconds since the start of the process. They are the same if a method has no pixels
        before the picture is finished.

    Raises:
        click.ClickException: As for ``run``.
    """
    began = time.time()
    result = run(order)
    times = {name: result.get(name, result["finished"]) - began for name in ("first", "finished")}
    return {**result, **times}


def median(runs: Sequence[dict[str, Any]], name: str) -> float:
    """The median of a figure over several runs."""
    return float(statistics.median(entry[name] for entry in runs))


def later(runs: Sequence[dict[str, Any]]) -> str:
    """The name of the figure with the time of later pictures. Runs of earlier versions have that of the first alone."""
    return "again" if all("again" in entry for entry in runs) else "seconds"


def spread(runs: Sequence[dict[str, Any]], name: str) -> str:
    """The smallest and the largest value of a figure over several runs, as text."""
    values = [entry[name] for entry in runs]
    return f"{min(values):.2f} - {max(values):.2f}"
