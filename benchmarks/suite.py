"""Runs all comparisons and collects the results."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import click

from benchmarks.contender import LONG
from benchmarks.latents import latent_file
from benchmarks.machine import LIBRARIES, installed, machine
from benchmarks.methods import Extent, Job, Method
from benchmarks.peers import PEERS, write_peer
from benchmarks.process import Order, later, median, run, start
from infgen_export.quiet import quiet

Quality = dict[str, dict[str, dict[str, float | None]]]
"""Means by scale, method and metric, as the evaluation command writes them. ``None`` if no picture has the metric."""


@dataclass
class Results:
    """All results of a run.

    Attributes:
        machine: Processor, system, threads, versions, and which of ``peers.PEERS`` had trained weights.
        costs: Multiply-adds of each peer's network per input position.
        own: Multiply-adds of this project's model, by scale; see ``cost.decoder_cost``.
        peaks: Most multiply-adds per second of a matrix product, for each engine and precision.
        runs: Every sample of each method and job.
        viewport: Every sample of reading a viewport, for each backend and precision.
        starts: Every sample of a start, for each method.
        installed: Size in bytes of each installed package that a method needs.
        quality: Results of the evaluation command, if its report was given.
    """

    machine: dict[str, Any]
    costs: dict[str, float] = field(default_factory=dict)
    own: dict[str, dict[str, float]] = field(default_factory=dict)
    peaks: dict[str, float] = field(default_factory=dict)
    runs: dict[str, dict[str, list[dict[str, Any]]]] = field(default_factory=dict)
    viewport: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    starts: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    installed: dict[str, int] = field(default_factory=dict)
    quality: Quality = field(default_factory=dict)

    @classmethod
    def load(cls, file: Path) -> Results:
        """Reads a file that ``save`` wrote.

        Raises:
            click.ClickException: The file was not written by ``save``.
        """
        try:
            found = cls(**json.loads(file.read_text()))
            about = [found.machine[name] for name in ("processor", "system", "threads", "versions")]
            if not isinstance(about[-1], dict) or not all(isinstance(part, dict) for part in vars(found).values()):
                raise TypeError("its parts have other types")
            return found
        except (TypeError, ValueError, KeyError, OSError) as error:
            raise click.ClickException(f"{file} is not the results.json of a run: {error}") from error

    def save(self, file: Path) -> None:
        """Writes the results as JSON."""
        file.write_text(json.dumps(asdict(self), indent=1) + "\n")

    def seconds(self, method: Method, job: Job) -> float | None:
        """Median time of a method for a job in seconds, after a first picture. ``None`` if it was not run."""
        runs = self.runs.get(str(job), {}).get(method.label)
        return median(runs, later(runs)) if runs else None


def measure(
    extent: Extent,
    model: Path,
    weights: Mapping[str, Path],
    threads: int,
    repeat: int,
    folder: Path,
    say: Callable[[str], None],
) -> Results:
    """Measures everything. The methods are run in turns.

    Args:
        extent: How much to measure.
        model: Bundle of this project.
        weights: Python files that load networks of ``peers.PEERS``. The others have random weights.
        threads: Number of CPU threads for all methods.
        repeat: Number of processes of each method, which make several pictures each. Methods that take tens of seconds
            are run once.
        folder: Folder for graphs and latents.
        say: Called with a line of text for each step.
    """
    results = Results(machine(threads) | {"trained": sorted(weights)})
    for name in PEERS:
        say(f"building {name}")
        with quiet():
            results.costs[name] = write_peer(name, weights.get(name), folder / f"{name}.onnx")
    product = folder / "product.onnx"
    _write_product(product)
    orders = [
        (method, job, _order(method, job, model, threads, folder))
        for job in dict.fromkeys((*extent.heavy, *extent.jobs))
        for method in extent.methods
        if extent.includes(method, job)
    ]
    for number in range(repeat):
        done: dict[Order, dict[str, Any]] = {}  # at full size, a peer's order is the same for every latent
        for method, job, order in orders:
            samples = results.runs.setdefault(str(job), {}).setdefault(method.label, [])
            if number and (extent.once(method, job) or samples[0]["seconds"] >= LONG):
                continue
            if order not in done:
                say(f"[{number + 1}/{repeat}] {method.label}: {job}")
                done[order] = run(order)
            samples.append(done[order])
        for method in extent.methods:
            if extent.starts(method) and not (number and method.heavy):
                say(f"[{number + 1}/{repeat}] {method.label}: start")
                order = _order(method, extent.start, model, threads, folder)
                order = replace(order, kind="first_tile" if method.kind == "infgen" else method.kind)
                results.starts.setdefault(method.label, []).append(start(order))
            if method.kind == "infgen" and not (method.untiled or method.one_stage):
                order = replace(_order(method, extent.viewport, model, threads, folder), kind="viewport")
                results.viewport.setdefault(method.label, []).append(run(order))
        # Other work on the machine can only lower the speed, so the highest speed of all rounds counts.
        for engine, precision in (("onnxruntime", "exact"), ("openvino", "exact"), ("openvino", "fast")):
            order = Order("products", product, latent_file(folder, (1, 1)), (1, 1), threads, engine, "cpu", precision)
            name = f"{engine} {precision}"
            results.peaks[name] = max(results.peaks.get(name, 0), run(order)["rate"])
    results.installed = {name: size for name in LIBRARIES if (size := installed(name))}
    return results


def _order(method: Method, job: Job, model: Path, threads: int, folder: Path) -> Order:
    cells = (-(-job.size[1] // 8), -(-job.size[0] // 8)) if method.native else job.cells
    return Order(
        kind=method.kind,
        model=folder / f"{method.peer}.onnx" if method.peer else model,
        latent=latent_file(folder, cells),
        size=job.size,
        threads=threads,
        backend=method.backend,
        precision=method.precision,
        upscaler=folder / f"{method.upscaler}.onnx" if method.upscaler else None,
        tiling=method.tiling,
        memory="12GiB" if method.untiled else None,
        tile=max(job.size) if method.untiled else None,
        one_stage=method.one_stage,
    )


def _write_product(file: Path) -> None:
    """Writes a matrix product with a constant as an ONNX graph."""
    import torch

    with quiet():
        torch.onnx.export(
            torch.nn.Linear(2048, 2048, bias=False).requires_grad_(False),
            (torch.zeros(2048, 2048),),
            file,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
