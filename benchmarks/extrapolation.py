"""Ways beyond the trained range: ``python -m benchmarks.extrapolation --photos DIR --teacher FILE``.

As in ``infgen_training.evaluate``, the true picture is the photograph, and the latent is made of its copy reduced by
the scale, so every way has to bring back what the reduction took.
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

import infgen_rt
from infgen_training.data import to_tensor
from infgen_training.evaluate import LANCZOS, Pixels, Task, resize
from infgen_training.metrics import compare
from infgen_training.teacher import Teacher

TRAINED = 4
"""What one stage enlarges before Lanczos does the rest."""
FORMATS = {"psnr": ".2f", "ssim": ".4f", "ssimulacra2": ".1f", "seconds": ".2f"}

Make = Callable[[NDArray[np.float32], tuple[int, int]], Pixels]
"""Makes the picture of a width and height from a latent."""


def ways(decoder: infgen_rt.Decoder, teacher: Teacher, scale: float) -> dict[str, Make]:
    """What is compared: `two stages` encode with the model, or for what that costs, with the teacher."""
    step = scale**0.5

    def one(latent: NDArray[np.float32], size: tuple[int, int]) -> Pixels:
        return decoder.picture(latent, size).read()

    def direct(latent: NDArray[np.float32], size: tuple[int, int]) -> Pixels:
        return decoder.picture(latent, size, stages=(scale,)).read()

    def two(latent: NDArray[np.float32], size: tuple[int, int]) -> Pixels:
        return decoder.picture(latent, size, stages=(step, step)).read()

    def two_by_teacher(latent: NDArray[np.float32], size: tuple[int, int]) -> Pixels:
        between = decoder.picture(latent, size, stages=(step, step)).plan.stages[0].grid.picture
        return one(teacher.encode(to_tensor(one(latent, between))[None])[0].numpy(), size)

    def lanczos(latent: NDArray[np.float32], size: tuple[int, int]) -> Pixels:
        return resize(decoder.picture(latent, TRAINED).read(), size[::-1], LANCZOS)

    return {
        "one stage": direct,
        f"two stages, {step:.3g} each": two,
        "the same, encoded by the teacher": two_by_teacher,
        f"one stage to {TRAINED}, then Lanczos": lanczos,
    }


def measure(make: Make, task: Task) -> dict[str, float]:
    """Quality and seconds of one picture."""
    start = time.perf_counter()
    pixels = make(task.latent[0].numpy(), task.size[::-1])
    seconds = time.perf_counter() - start
    return {**compare(pixels, task.truth), "seconds": seconds}


@click.command()
@click.option("--photos", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True)
@click.option("--teacher", type=click.Path(exists=True, dir_okay=False, path_type=Path), required=True)
@click.option("--model", type=click.Path(path_type=Path), help="Bundle.  [default: the one in the package]")
@click.option("--scales", default="6,8", show_default=True, help="Comma-separated.")
@click.option("--limit", type=int, help="Only the first photographs.")
def main(photos: Path, teacher: Path, model: Path | None, scales: str, limit: int | None) -> None:
    """Prints a table: one stage beyond the trained range, two within it, and one within it enlarged by Lanczos."""
    files = sorted(file for file in photos.iterdir() if file.suffix in {".webp", ".png", ".jpg"})[:limit]
    maker = Teacher.load(teacher)
    click.echo("| scale | way | PSNR | SSIM | SSIMULACRA2 | seconds |\n|---|---|---|---|---|---|")
    with warnings.catch_warnings(), infgen_rt.open(model) as decoder:
        warnings.simplefilter("ignore", infgen_rt.InfGenWarning)
        for scale in (float(text) for text in scales.split(",")):
            scores: dict[str, list[dict[str, float]]] = {}
            for file in tqdm(files, desc=f"scale {scale:g}"):
                task = Task.of(Image.open(file).convert("RGB"), scale, maker)
                for name, make in ways(decoder, maker, scale).items():
                    scores.setdefault(name, []).append(measure(make, task))
            for name, entries in scores.items():
                cells = [f"{statistics.fmean(entry[key] for entry in entries):{form}}" for key, form in FORMATS.items()]
                click.echo(f"| {scale:g} | {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
