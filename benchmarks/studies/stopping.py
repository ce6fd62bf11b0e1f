"""Measures how fast work stops and how much memory it leaves: ``python -m benchmarks.studies.stopping``.

It measures how long a picture goes on after it is cancelled, at moments from its first graph to its last tiles. It also
measures how much memory a process keeps after a decoder is closed. Every set of pictures has a new process.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

import click

from benchmarks import options, table
from benchmarks.latents import latent_file
from benchmarks.process import Order, run

ALLOWED = 0.3
"""Maximum seconds from cancelling to the error, on a CPU."""
PICTURES = (
    ((64, 64), (2048, 2048), None),
    ((64, 64), (16384, 16384), None),
    ((512, 512), (4096, 4096), None),
    ((64, 64), (8192, 8192), (4.0, 4.0)),
)
"""Cells, sizes and stages of the pictures that are cancelled."""
MOMENTS = (0.02, 0.1, 0.2, 0.4, 0.7, 1.0, 1.4, 1.9, 2.5, 4.0, 6.0)
"""Seconds after which a picture is cancelled."""
CLOSED = ((64, 64), (3840, 2160))
"""Cells and size of the picture that is decoded before closing."""


@click.command(cls=options.Command)
@options.model
@click.option("--backend", "backends", multiple=True, default=("onnxruntime", "openvino", "torch"), show_default=True)
@options.threads
def main(model: Path, backends: tuple[str, ...], threads: int) -> None:
    """Cancels pictures and closes decoders, and prints how long that takes and how much memory remains."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        heads = ("backend", "cancelled picture", "moments", "median, s", "longest, s", f"within {ALLOWED} s")
        click.echo(table.head(*heads))
        for backend in backends:
            for cells, size, stages in PICTURES:
                order = Order(
                    kind="cancelling",
                    model=model,
                    latent=latent_file(folder, cells[::-1]),
                    size=size,
                    threads=threads,
                    backend=backend,
                    output=folder / "picture.png",
                    stages=stages,
                    moments=MOMENTS,
                )
                waited = run(order)["seconds"]
                way = f"{cells[0]}x{cells[1]} cells -> {size[0]}x{size[1]}{', in stages' if stages else ''}"
                longest = max(waited)
                verdict = "yes" if longest <= ALLOWED else "NO"
                seconds = (f"{statistics.median(waited):.3f}", f"{longest:.3f}")
                click.echo(table.row(backend, way, len(waited), *seconds, verdict))
        states = ("before it is opened, MB", "after a picture, MB", "after close, MB")
        click.echo(f"\n{table.head('backend', *states, 'kept, MB')}")
        for backend in backends:
            cells, size = CLOSED
            order = Order("closing", model, latent_file(folder, cells[::-1]), size, threads, backend)
            before, after, closed = (amount / 1e6 for amount in run(order)["resident"])
            amounts = (before, after, closed, closed - before)
            click.echo(table.row(backend, *(f"{amount:.0f}" for amount in amounts)))


if __name__ == "__main__":
    main()
