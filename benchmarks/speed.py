"""Seconds and peak memory of one large picture, beside a tiny decoder: ``python -m benchmarks.speed --teacher FILE``.

Every run is a fresh process; contenders take turns, so that a busy machine slows all of them alike. Medians are given.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

import infgen_rt
from infgen_rt.bundle import DEFAULT_BUNDLE
from infgen_rt.geometry import parse_size


@dataclass(frozen=True)
class Contender:
    """One line of the table.

    Attributes:
        name: For people.
        kind: What ``benchmarks.contender`` calls it.
        model: Bundle or graph.
        latent: File with an array [C, h, w].
        output: File to write: a picture, whose writing counts, or ``.npy``, whose does not.
        backend: That runs this project's model.
        device: Of the backend.
        precision: ``"exact"`` or ``"fast"``.
    """

    name: str
    kind: str
    model: Path
    latent: Path
    output: Path | None = None
    backend: str = "onnxruntime"
    device: str = "cpu"
    precision: str = "exact"

    def run(self, size: tuple[int, int], threads: int) -> dict[str, Any]:
        """Runs it once in a process of its own."""
        order: dict[str, Any] = {
            "contender": self.kind,
            "model": str(self.model),
            "latent": str(self.latent),
            "output": str(self.output) if self.output else None,
            "size": size,
            "threads": threads,
            "backend": self.backend,
            "device": self.device,
            "precision": self.precision,
        }
        command = [sys.executable, "-m", "benchmarks.contender"]
        process = subprocess.run(command, input=json.dumps(order), capture_output=True, text=True)
        if process.returncode:
            raise click.ClickException(f"{self.name}: {process.stderr.strip().splitlines()[-1]}")
        result: dict[str, Any] = json.loads(process.stdout)
        return result


def export_teacher(teacher: Path, file: Path) -> None:
    """The teacher's decoder as an ONNX graph with dynamic height and width."""
    import torch

    from infgen_training.teacher import Teacher

    decoder = Teacher.load(teacher).decoder
    channels = next(decoder.parameters()).shape[1]
    height, width = (torch.export.Dim(name, min=2, max=1024) for name in "hw")
    torch.onnx.export(
        decoder,
        (torch.zeros(1, channels, 16, 24),),
        file,
        dynamo=True,
        input_names=["latent"],
        dynamic_shapes=({2: height, 3: width},),
        external_data=False,
        verbose=False,
    )


@click.command()
@click.option("--teacher", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Adds its decoder.")
@click.option(
    "--model", type=click.Path(path_type=Path), default=DEFAULT_BUNDLE, help="Bundle; default the shipped one."
)
@click.option("--sample", default="osprey", show_default=True)
@click.option("--size", default="4k", show_default=True)
@click.option("--threads", default=os.cpu_count() or 1, show_default=True)
@click.option("--repeat", default=3, show_default=True)
@click.option("--json", "file", type=click.Path(path_type=Path), help="Where to write every sample.")
def main(
    teacher: Path | None, model: Path, sample: str, size: str, threads: int, repeat: int, file: Path | None
) -> None:
    """Decodes a sample latent to one large picture, several ways."""
    latent = infgen_rt.load_sample(sample).latent
    width, height = parse_size(size, infgen_rt.Size(8 * latent.shape[2], 8 * latent.shape[1]))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.save(folder / "latent.npy", latent)
        contenders = [
            Contender("infgen-rt, array", "infgen", model, folder / "latent.npy"),
            Contender("infgen-rt, PNG file", "infgen", model, folder / "latent.npy", folder / "picture.png"),
        ]
        if teacher:
            export_teacher(teacher, folder / "teacher.onnx")
            # The decoder costs the same whatever the latent shows: one as large as the picture is only tiled here.
            repeats = (1, -(-height // (8 * latent.shape[1])), -(-width // (8 * latent.shape[2])))
            large = np.tile(latent, repeats)[:, : -(-height // 8), : -(-width // 8)]
            np.save(folder / "large.npy", large)
            contenders += [
                Contender("TAEF2, small, + bicubic", "teacher", folder / "teacher.onnx", folder / "latent.npy"),
                Contender("TAEF2 at full size", "teacher", folder / "teacher.onnx", folder / "large.npy"),
            ]
        samples: dict[str, list[dict[str, Any]]] = {contender.name: [] for contender in contenders}
        for _ in range(repeat):
            for contender in contenders:
                samples[contender.name].append(contender.run((width, height), threads))
    click.echo(
        f"{width}x{height} from {latent.shape[2]}x{latent.shape[1]} cells, {threads} threads, {repeat} runs each"
    )
    click.echo("| method | median s | fastest - slowest | peak MiB |\n|---|---|---|---|")
    for contender in contenders:
        seconds = [entry["seconds"] for entry in samples[contender.name]]
        peak = statistics.median(entry["peak"] for entry in samples[contender.name]) / 2**20
        spread = f"{min(seconds):.2f} - {max(seconds):.2f}"
        click.echo(f"| {contender.name} | {statistics.median(seconds):.2f} | {spread} | {peak:.0f} |")
    if file:
        file.write_text(json.dumps({"size": (width, height), "threads": threads, "samples": samples}, indent=2) + "\n")


if __name__ == "__main__":
    main()
