"""Compares ways to decode at scales beyond the trained range.

``python -m benchmarks.studies.extrapolation --photos DIR --teacher FILE``

As in ``infgen_training.evaluate``, the true picture is the photograph, and the latent is made from the photograph
reduced by the scale. Every way therefore has to restore what the reduction removed. This needs large photographs. For a
photograph of 2048x1152 pixels, the latent at scale 8 has only 32x18 cells.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

import infgen_rt
from benchmarks import options, table
from infgen_rt.errors import InputError
from infgen_training.config import PATCH
from infgen_training.evaluate import Row, Task
from infgen_training.metrics import compare
from infgen_training.options import FILE, FOLDER
from infgen_training.perception import Eye
from infgen_training.photos import open_photo, photo_files, photo_size
from infgen_training.teacher import Teacher
from infgen_training.views import Pixels, to_tensor

LEAST = 16
"""Smallest side of a latent, in cells. A photograph with a smaller latent at a scale is not measured at this scale."""
FORMATS = {"lpips": ".3f", "frechet": ".1f", "psnr": ".2f", "ssimulacra2": ".1f", "seconds": ".2f"}
HEADER = ("scale", "way", "LPIPS", "patch Frechet", "PSNR", "SSIMULACRA2", "seconds")

Latent = NDArray[np.float32]
Make = Callable[[Latent, tuple[int, int]], Pixels]
"""Makes a picture with a given width and height from a latent."""


def ways(
    decoder: infgen_rt.Decoder, teacher: Teacher, scale: float, chains: list[tuple[float, ...]]
) -> dict[str, Make]:
    """The ways that are compared at a scale, by name.

    Args:
        decoder: Decoder of the model.
        teacher: The teacher. In some ways it encodes between stages, which shows what the model's encoder costs.
        scale: Scale of all ways.
        chains: Stages that multiply to the scale.
    """

    def staged(stages: tuple[float, ...], latent: Latent, size: tuple[int, int]) -> Pixels:
        return decoder.picture(latent, size, stages=stages).read()

    def by_teacher(stages: tuple[float, ...], latent: Latent, size: tuple[int, int]) -> Pixels:
        for stage in decoder.picture(latent, size, stages=stages).plan.stages[:-1]:
            picture = decoder.picture(latent, stage.grid.picture).read()
            latent = teacher.encode(to_tensor(picture)[None])[0].numpy()
        return decoder.picture(latent, size).read()

    def lanczos(latent: Latent, size: tuple[int, int]) -> Pixels:
        return decoder.picture(latent, size, max_scale=math.inf).read()

    found: dict[str, Make] = {
        f"{decoder.manifest.scale_range[1]:g}, then Lanczos": lanczos,
        "one stage": partial(staged, (scale,)),
    }
    for stages in chains:
        name = "stages " + ",".join(f"{each:g}" for each in stages)
        found[name] = partial(staged, stages)
        found[f"{name}, encoded by the teacher"] = partial(by_teacher, stages)
    return found


def parse_chain(text: str) -> tuple[float, ...]:
    """Parses scales such as ``"4,2"``.

    Raises:
        click.BadParameter: The text is not a list of scales.
    """
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise click.BadParameter(f"{text!r} is not a list of scales such as 4,2", param_hint="--stages") from None


@click.command(cls=options.Command)
@click.option("--photos", type=FOLDER, required=True)
@click.option("--teacher", type=FILE, required=True)
@click.option("--model", type=click.Path(path_type=Path), help="Bundle.  [default: the one in the package]")
@click.option(
    "--stages", "chains", multiple=True, default=("2,2.5", "2,3", "2,4"), show_default=True,
    help="Scales of a chain; repeatable. Chains are measured at the scale that they multiply to.",
)  # fmt: skip
@click.option(
    "--eye/--no-eye", default=True, show_default=True, help="Whether to measure LPIPS and patch Frechet distances."
)
@click.option("--limit", type=int, help="Largest number of photographs at each scale.")
def main(
    photos: Path, teacher: Path, model: Path | None, chains: tuple[str, ...], eye: bool, limit: int | None
) -> None:
    """Prints a table that compares chains of stages with one stage and with its largest picture enlarged by Lanczos."""
    by_scale: dict[float, list[tuple[float, ...]]] = {}
    for chain in map(parse_chain, chains):
        by_scale.setdefault(round(math.prod(chain), 6), []).append(chain)
    try:
        files, sees = photo_files(photos), Eye() if eye else None
        maker = Teacher.load(teacher)
    except (InputError, FileNotFoundError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(table.head(*HEADER))
    with warnings.catch_warnings(), infgen_rt.open(model) as decoder:
        warnings.simplefilter("ignore", infgen_rt.InfGenWarning)
        for scale, stages in sorted(by_scale.items()):
            large = [file for file in files if min(photo_size(file)) >= LEAST * PATCH * scale][:limit]
            rows: dict[str, Row] = {}
            truths: list[NDArray[np.float64]] = []
            for file in tqdm(large, desc=f"scale {scale:g}", disable=None):
                task = Task.of(open_photo(file), scale, maker)
                truths += [sees.features.of(task.truth)] if sees else []
                for name, make in ways(decoder, maker, scale, stages).items():
                    start = time.perf_counter()
                    pixels = make(task.latent[0].numpy(), task.size[::-1])
                    score = {"seconds": time.perf_counter() - start, **compare(pixels, task.truth)}
                    row = rows.setdefault(name, Row())
                    row.scores.append(score | ({"lpips": sees.lpips.of(pixels, task.truth)} if sees else {}))
                    row.features += [sees.features.of(pixels)] if sees else []
            for name, row in rows.items():
                means = row.means(truths)
                found = ((means.get(metric), form) for metric, form in FORMATS.items())
                cells = ("" if value is None else format(value, form) for value, form in found)
                click.echo(table.row(f"{scale:g}", name, *cells))
            click.echo(f"scale {scale:g}: {len(large)} of {len(files)} photographs are large enough", err=True)


if __name__ == "__main__":
    main()
