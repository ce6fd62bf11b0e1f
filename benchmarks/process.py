"""Running one thing in a process of its own, so that its memory, start and caches are its own."""

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
    """What ``benchmarks.contender`` shall do.

    Attributes:
        kind: A function of it.
        model: Bundle, or graph; none for a network that the contender makes itself.
        latent: File with an array [C, h, w].
        size: Width and height of the picture.
        threads: CPU threads.
        backend: That runs this project's model, or the engine of a graph.
        device: Of the backend.
        precision: ``"exact"`` or ``"fast"``.
        output: File to write: a picture, whose writing counts, or ``.npy``, whose does not.
        upscaler: A second graph, that enlarges what the first gave.
        tiling: Whether a network that can decode in tiles does.
        memory: What this project may use, as ``infgen_rt.open`` takes it.
        tile: Largest side of its tiles, pixels; None to let it choose.
        stages: Of this project's iterative extrapolation.
        moments: Seconds after which work is cancelled.
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
    moments: tuple[float, ...] = ()


def run(order: Order) -> dict[str, Any]:
    """Carries an order out in a fresh process.

    Returns:
        What the contender measured: ``peak``, bytes of the whole process, and for most ``seconds``.

    Raises:
        click.ClickException: It failed; the last line of what it said is told.
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
    """The same for an order that tells when its picture was ``finished``, and perhaps when its ``first`` pixels were.

    Returns:
        What the contender measured, with those times in seconds since the process's start. A way that has no first
        pixels before the last has both at once.
    """
    began = time.time()
    result = run(order)
    times = {name: result.get(name, result["finished"]) - began for name in ("first", "finished")}
    return {**result, **times}


def median(runs: Sequence[dict[str, Any]], name: str) -> float:
    """Of one figure of several runs."""
    return float(statistics.median(entry[name] for entry in runs))


def spread(runs: Sequence[dict[str, Any]], name: str) -> str:
    """Least and most of one figure."""
    values = [entry[name] for entry in runs]
    return f"{min(values):.2f} - {max(values):.2f}"
