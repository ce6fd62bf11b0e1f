"""Measures how fast a data set is decoded in Ray Data: ``python -m benchmarks.studies.ray``.

Two workers with one core each are compared with one worker with two cores. Both decode the same latents to files on
this machine, in a cluster of two processors. The time to start the workers is not measured.
"""

from __future__ import annotations

import json
import os
import statistics
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import numpy as np

from benchmarks import options, table
from infgen_rt.geometry.shapes import Size
from infgen_rt.latent.samples import load_sample, sample_names

CORES = 2
SETUPS = {"two workers with one core": (2, 1), "one worker with two cores": (1, 2)}
"""Number of workers, and of the cores of each."""


def latents(count: int, cells: Size) -> list[dict[str, Any]]:
    """Rows of a data set. Each has a part of a sample, and all parts have the same size."""
    rows: list[dict[str, Any]] = []
    names = sample_names()
    for number in range(count):
        latent = load_sample(names[number % len(names)]).latent
        left = 7 * number % (latent.shape[2] - cells.width + 1)
        top = 5 * number % (latent.shape[1] - cells.height + 1)
        part = latent[:, top : top + cells.height, left : left + cells.width]
        rows.append({"key": f"{number:04}", "latent": np.ascontiguousarray(part)})
    return rows


def measure(rows: list[dict[str, Any]], workers: int, cores: int, size: str, backend: str) -> float:
    """Decodes the rows in a new cluster, and returns the seconds per picture.

    The first picture of each worker is not counted, because it takes additional time to load graphs.
    """
    import ray

    import infgen_rt.ray

    ray.init(num_cpus=CORES, include_dashboard=False, log_to_driver=False)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.wait_for_min_actors_s = 600  # begin when all workers have opened the model
    try:
        with TemporaryDirectory() as folder:
            options = {"size": size, "backend": backend, "normalisation": "model", "folder": folder}
            pictures = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
                infgen_rt.ray.Decode,
                fn_constructor_kwargs=options,
                compute=ray.data.ActorPoolStrategy(size=workers),
                num_cpus=cores,
                batch_size=1,
            )
            ends = sorted(Path(row["file"]).stat().st_mtime for row in pictures.take_all())
    finally:
        ray.shutdown()
    return (ends[-1] - ends[workers - 1]) / (len(ends) - workers)


@click.command(cls=options.Command)
@click.option("--count", default=24, show_default=True, help="Number of latents.")
@click.option("--cells", default="64x64", show_default=True, help="Width and height of the latents in cells.")
@click.option("--size", default="2x", show_default=True, help="Size of the pictures.")
@click.option("--backend", default="onnxruntime", show_default=True)
@click.option(
    "--runs", default=3, show_default=True, help="Number of runs of each set-up. The set-ups are run in turns."
)
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="File for the times as JSON.")
def main(count: int, cells: str, size: str, backend: str, runs: int, output: Path | None) -> None:
    """Prints the seconds per picture for two workers with one core each, and for one worker with two cores."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    width, height = map(int, cells.split("x"))
    rows = latents(count, Size(width, height))
    times: dict[str, list[float]] = {name: [] for name in SETUPS}
    for _ in range(runs):
        for name, (workers, cores) in SETUPS.items():
            times[name].append(measure(rows, workers, cores, size, backend))
            click.echo(f"{name}: {times[name][-1]:.3f} s", err=True)
    click.echo(table.head("workers", "seconds per picture, median", "least - most"))
    for name, found in times.items():
        click.echo(table.row(name, f"{statistics.median(found):.3f}", f"{min(found):.3f} - {max(found):.3f}"))
    if output:
        output.write_text(json.dumps({"cells": cells, "size": size, "backend": backend, "seconds": times}, indent=2))


if __name__ == "__main__":
    main()
