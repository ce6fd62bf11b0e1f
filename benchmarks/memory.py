"""Compares the limit of ``memory=`` with the peak memory of the process: ``python -m benchmarks.memory``.

Large pictures, and pictures of large latents, are decoded into files. Each has a new process and a limit on memory. The
seconds per megapixel show whether time grows with the pixels.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import click

from benchmarks.process import Order, run
from benchmarks.suite import latent_file
from infgen_rt.bundle.folder import DEFAULT_BUNDLE

MIB = 2**20


@dataclass(frozen=True)
class Promise:
    """A picture, its file's ending, its limit in megabytes, its latent's cells and the stages between them."""

    size: tuple[int, int]
    ending: str
    megabytes: int
    cells: tuple[int, int] = (64, 64)
    stages: tuple[float, ...] | None = None

    def __str__(self) -> str:
        (columns, rows), (width, height) = self.cells, self.size
        stages = ", stages " + ",".join(f"{scale:g}" for scale in self.stages) if self.stages else ""
        return f"{columns}x{rows} cells -> {width}x{height}{stages}"


PROMISES = (
    Promise((3840, 2160), "png", 400),
    Promise((7680, 4320), "png", 500),
    Promise((16384, 16384), "tif", 700),
    Promise((16384, 16384), "png", 700),
    Promise((2048, 2048), "png", 400, cells=(256, 256)),
    Promise((3840, 2160), "png", 700, cells=(480, 270)),
    Promise((7680, 4320), "png", 700, cells=(960, 540)),
    Promise((4096, 4096), "png", 500, stages=(4, 2)),
)


@click.command()
@click.option(
    "--model", type=click.Path(path_type=Path), default=DEFAULT_BUNDLE, help="Bundle; default the shipped one."
)
@click.option("--backend", default="onnxruntime", show_default=True)
@click.option("--precision", default="exact", show_default=True)
@click.option("--threads", default=os.cpu_count() or 1, show_default=True)
def main(model: Path, backend: str, precision: str, threads: int) -> None:
    """Decodes pictures into files and prints what that took."""
    click.echo(
        "| picture | file | allowed MB | peak MB | kept | seconds | s per megapixel |\n|---|---|---|---|---|---|---|"
    )
    with tempfile.TemporaryDirectory() as name:
        for promise in PROMISES:
            output = Path(name) / f"picture.{promise.ending}"
            order = Order(
                kind="infgen",
                model=model,
                latent=latent_file(Path(name), promise.cells[::-1]),
                size=promise.size,
                threads=threads,
                backend=backend,
                precision=precision,
                output=output,
                memory=f"{promise.megabytes}MB",
                stages=promise.stages,
            )
            try:
                result = run(order)
            except click.ClickException as error:  # the plan does not fit into the limit
                refused = [str(promise), promise.ending, str(promise.megabytes), "", f"NO: {error.message}", "", ""]
                click.echo(f"| {' | '.join(refused)} |")
                continue
            output.unlink()
            peak, megapixels = result["peak"] / 1e6, promise.size[0] * promise.size[1] / 1e6
            cells = [
                str(promise),
                promise.ending,
                str(promise.megabytes),
                f"{peak:.0f}",
                "yes" if peak <= promise.megabytes else "NO",
                f"{result['seconds']:.1f}",
                f"{result['seconds'] / megapixels:.3f}",
            ]
            click.echo(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
