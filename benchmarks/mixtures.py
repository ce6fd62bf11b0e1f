"""Two checkpoints' weights, mixed: ``python -m benchmarks.mixtures BEFORE AFTER --photos DIR --teacher FILE``.

A run is often better than its start in some ways and worse in others, and a mixture of both better than either. They
are measured on the middle of the photographs that are kept out of training, as they are and in other colours (channels
in another order, twice the saturation), and on as many drawn pictures.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from os import cpu_count
from pathlib import Path

import click
import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from benchmarks.study import CROP, middle, tasks
from infgen_export.checkpoint import load_checkpoint, save_checkpoint
from infgen_training.config import TrainConfig
from infgen_training.data import recolour
from infgen_training.drawn import draw_picture
from infgen_training.evaluate import BICUBIC, Pixels, Task, resize, to_pixels
from infgen_training.metrics import compare, mean
from infgen_training.teacher import Teacher

SATURATION = 2.0
ORDERS = ((2, 0, 1), (1, 2, 0), (2, 1, 0), (0, 2, 1), (1, 0, 2))
COLUMNS = ("psnr", "ssimulacra2", "flat", "vivid")

Method = Callable[[Task], Pixels]


@torch.inference_mode()
def row(method: Method, found: Mapping[float, Sequence[Task]]) -> str:
    """Cells of a Markdown table, one a scale."""
    cells = []
    with ThreadPoolExecutor(cpu_count()) as pool:
        for items in found.values():
            pictures = [method(task) for task in tqdm(items, leave=False)]
            scores = list(pool.map(compare, pictures, [task.truth for task in items]))
            means = {name: mean([score[name] for score in scores]) for name in COLUMNS}
            cells.append(" / ".join("-" if value is None else f"{value:.2f}" for value in means.values()))
    return " | ".join(cells)


_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)


@click.command()
@click.argument("before", type=_FOLDER)
@click.argument("after", type=_FOLDER)
@click.option("--photos", type=_FOLDER, required=True, help="Those that a run keeps out of training are measured.")
@click.option("--teacher", type=click.Path(exists=True, dir_okay=False, path_type=Path), required=True)
@click.option("--shares", default="0,0.25,0.5,0.75,1", show_default=True, help="Of AFTER, comma-separated.")
@click.option("--scales", default="1,2,4", show_default=True, help="Comma-separated.")
@click.option("-o", "--output", type=click.Path(file_okay=False, path_type=Path), help="For the mixtures themselves.")
def main(before: Path, after: Path, photos: Path, teacher: Path, shares: str, scales: str, output: Path | None) -> None:
    """Prints PSNR / SSIMULACRA2 / errors of flat and of vivid colours a scale, for the teacher and each mixture."""
    files = [file for file in sorted(photos.iterdir()) if file.stem in TrainConfig().exclude]
    sides, pair = [float(scale) for scale in scales.split(",")], Teacher.load(teacher)
    plain = [middle(file) for file in files]
    other = [
        Image.fromarray(np.ascontiguousarray(recolour(picture, SATURATION, order)))
        for picture, order in zip(plain, itertools.cycle(ORDERS), strict=False)
    ]
    drawn = [draw_picture(np.random.default_rng(index), plain, CROP) for index in range(len(plain))]
    kinds = {"": plain, ", other colours": other, ", drawn": drawn}
    sets = {kind: tasks(pictures, sides, pair) for kind, pictures in kinds.items()}
    click.echo(f"| share of {after} | {' | '.join(f'scale {scale:g}' for scale in sides)} |")
    click.echo("|---" * (1 + len(sides)) + "|")

    def say(name: str, method: Method) -> None:
        for what, found in sets.items():
            click.echo(f"| {name}{what} | {row(method, found)} |")

    say("teacher + bicubic", lambda task: resize(to_pixels(pair.decode(task.latent)), task.size, BICUBIC))
    first, model = load_checkpoint(before).state_dict(), load_checkpoint(after).eval()
    second = {name: value.clone() for name, value in model.state_dict().items()}
    for share in (float(text) for text in shares.split(",")):
        mixed = {
            name: torch.lerp(first[name].float(), value.float(), share) if value.is_floating_point() else value
            for name, value in second.items()
        }
        model.load_state_dict(mixed)
        say(f"{share:g}", lambda task: to_pixels(model(task.latent, task.size)))
        if output is not None:
            save_checkpoint(output / f"{share:g}", model, torch.float16)


if __name__ == "__main__":
    main()
