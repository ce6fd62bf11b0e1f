"""Measures what parts of the model and of its training are worth: ``python -m benchmarks.studies.study``.

Every variant starts in the same way as a new model in ``infgen_training.train``, and is trained for the same number of
steps on the same batches. Its quality is measured on held-out photographs and shown next to its cost. The training is
short, so the differences show a direction and not the final quality.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import matplotlib.pyplot as plt
import torch

from benchmarks import options
from benchmarks.cost import decoder_cost
from benchmarks.table import head, row
from infgen_model import PRESETS, DecoderConfig, InfGen, Level
from infgen_model.checkpoint import load_checkpoint, save_checkpoint
from infgen_rt.errors import InputError
from infgen_training.batches import Batches, Turns
from infgen_training.config import HELD_OUT, TrainConfig
from infgen_training.evaluate import OURS, evaluate
from infgen_training.losses import Vgg
from infgen_training.options import FILE, FOLDER, device_option
from infgen_training.perception import Eye
from infgen_training.photos import middle_of, open_photo, photo_files
from infgen_training.teacher import Teacher
from infgen_training.train import drawn
from infgen_training.trainer import Trainer
from infgen_training.views import load_shards
from infgen_training.warmstart import warm_start

CROP = (1024, 768)
"""Largest size of the middle of a photograph that is measured. It lets a variant be measured in a minute."""
SCALES = (1.0, 2.0, 4.0)
FIRST = "as it ships"


def _blocks(config: DecoderConfig, two: int, four: int) -> DecoderConfig:
    """The same config with other numbers of blocks for the enlargements by 2 and 4."""
    one, middle, largest = config.enlargements
    return replace(config, enlargements=(one, replace(middle, blocks=two), replace(largest, blocks=four)))


def _largest(config: DecoderConfig, **changes: int) -> DecoderConfig:
    """The same config with a changed largest enlargement."""
    *smaller, largest = config.enlargements
    return replace(config, enlargements=(*smaller, replace(largest, **changes)))


def _lessons(config: TrainConfig, **changes: float) -> TrainConfig:
    """The same config with changed weights in all lessons."""
    return replace(config, lessons=tuple(replace(each, **changes) for each in config.lessons))  # type: ignore[arg-type]


SHAPES: dict[str, Callable[[DecoderConfig], DecoderConfig]] = {
    FIRST: lambda c: c,
    "enlarger of 4 and 8 blocks": lambda c: _blocks(c, 4, 8),
    "enlarger of 8 and 16 blocks": lambda c: _blocks(c, 8, 16),
    "enlarger of 14 blocks at 2 too": lambda c: _blocks(c, 14, 14),
    "no polish": lambda c: _largest(c, polish=0),
    "no finish, no polish": lambda c: _largest(c, finish=0, polish=0),
    "polish of 64 channels": lambda c: _largest(c, polish=64),
    "no attention": lambda c: replace(c, blocks=0),
    "2 blocks of attention": lambda c: replace(c, blocks=2),
    "detail of 4 channels": lambda c: replace(c, detail=4),
    "detail of 32 channels": lambda c: replace(c, detail=32),
    "tokens of 96 channels": lambda c: replace(c, width=96),
    "upsampler twice as wide": lambda c: replace(c, levels=tuple(Level(2 * n.width, n.blocks) for n in c.levels)),
}
"""Variants of the architecture that ships."""
TRAININGS: dict[str, Callable[[TrainConfig], TrainConfig]] = {
    "no LPIPS, no adversary": lambda c: _lessons(c, perceptual=0.0),
    "no adversary": lambda c: _lessons(c, adversarial=0.0),
    "photographs only": lambda c: replace(c, sharp=0.0),
    "sharp targets only": lambda c: replace(c, sharp=1.0),
}
"""Variants of the default training."""
VARIANTS = (*SHAPES, *TRAININGS)


def middles(files: Sequence[Path], folder: Path) -> list[Path]:
    """Writes the middle of each photograph into a folder. Only the middles are measured.

    Raises:
        InputError: A photograph is damaged.
    """
    for file in files:
        middle_of(open_photo(file), CROP).save(folder / f"{file.stem}.png")
    return [folder / f"{file.stem}.png" for file in files]


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """A table of each variant: thousand multiply-adds per pixel, and LPIPS / patch Frechet / PSNR, at each scale."""
    names = [f"{scale:g}" for scale in SCALES]
    heads = [f"thousand per pixel at {name}" for name in names]
    heads += [f"LPIPS / patch Frechet / PSNR at {name}" for name in names]
    lines = [head("variant", *heads)]
    for variant, found in results.items():
        cells = [f"{found['costs'][name]['pixel'] / 1e3:.1f}" for name in names]
        cells += ["{lpips:.3f} / {frechet:.0f} / {psnr:.2f}".format(**found["scales"][name]) for name in names]
        lines.append(row(variant, *cells))
    return "\n".join(lines)


def draw(results: Mapping[str, Mapping[str, Any]], file: Path) -> None:
    """Plots LPIPS against cost, with one panel per scale. Better is higher. Numbers stand for the variants."""
    figure, panels = plt.subplots(1, len(SCALES), figsize=(4 * len(SCALES) + 3, 4), layout="constrained")
    for panel, scale in zip(panels, SCALES, strict=True):
        for number, (variant, result) in enumerate(results.items(), start=1):
            place = (result["costs"][f"{scale:g}"]["pixel"] / 1e3, result["scales"][f"{scale:g}"]["lpips"])
            color = "tab:red" if variant == FIRST else "tab:blue"
            label = f"{number}  {variant}" if panel is panels[0] else None
            panel.plot(*place, "o", color=color, label=label)
            panel.annotate(str(number), place, xytext=(5, 3), textcoords="offset points")
        panel.set(title=f"scale {scale:g}", xlabel="thousand multiply-adds per pixel", ylabel="LPIPS")
        panel.margins(x=0.15)
        panel.invert_yaxis()
    figure.legend(loc="outside right center", handlelength=0, markerscale=0, frameon=False)
    figure.savefig(file, dpi=110)
    plt.close(figure)


@click.command(cls=options.Command)
@click.option("--shards", type=FOLDER, required=True, help="Folder of views, from infgen_training.views.")
@click.option(
    "--photos",
    type=FOLDER,
    required=True,
    help="Folder of photographs. Those that are left out of training are measured.",
)
@click.option("--teacher", type=FILE, required=True)
@click.option(
    "--enlarger", type=FILE, help="Python file with load_animevideo(), whose weights the enlarger starts from."
)
@click.option(
    "--vgg", type=FILE, help="Weights of LPIPS with VGG16. Without them, no variant has LPIPS or an adversary."
)
@click.option("--steps", default=300, show_default=True, help="Number of training steps of each variant.")
@click.option(
    "--cells", default=TrainConfig.cells, show_default=True, help="Side of the squares that are decoded, in cells."
)
@click.option(
    "--crop", default=TrainConfig.crop, show_default=True, help="Side of the crop that LPIPS sees, in pixels."
)
@click.option(
    "--only", multiple=True, type=click.Choice(VARIANTS), help="A variant to measure; repeatable.  [default: all]"
)
@device_option
@click.option(
    "-o",
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    help="Folder for the results. Variants that it has are not measured again.",
)
def main(
    shards: Path, photos: Path, teacher: Path, enlarger: Path | None, vgg: Path | None, steps: int, cells: int,
    crop: int, only: tuple[str, ...], device: str, output: Path,
) -> None:  # fmt: skip
    """Trains and measures every variant, and writes study.json, study.md and study.png."""
    (output / "photos").mkdir(parents=True, exist_ok=True)
    try:
        views, maker, eye = load_shards(shards), Teacher.load(teacher), Eye()
        measured = middles([file for file in photo_files(photos) if file.stem in HELD_OUT], output / "photos")
    except (InputError, FileNotFoundError) as error:
        raise click.ClickException(str(error)) from error
    saved, baseline = output / "study.json", None  # the other methods are measured once
    results: dict[str, Any] = json.loads(saved.read_text()) if saved.exists() else {}
    for name in (name for name in only or VARIANTS if name not in results):
        usual_training = TrainConfig(cells=cells, crop=crop)
        config = TRAININGS[name](usual_training) if name in TRAININGS else usual_training
        torch.manual_seed(config.seed)
        usual = PRESETS[config.preset](config.latent_space, config.latent_channels)
        shape = SHAPES[name](usual) if name in SHAPES else usual
        model = InfGen(shape)
        warm_start(model, teacher, enlarger, views)
        trainer = Trainer(config, model, Vgg(vgg) if vgg else None, torch.device(device))
        turns = Turns([Batches(views, config, shape.enlargements)], config)
        for step, batch in zip(range(steps), drawn(turns, 0), strict=False):
            trainer.train_step(batch, step / steps)
        folder = output / name.replace(" ", "-").replace(",", "")
        save_checkpoint(folder, trainer.average, torch.float16)
        baseline, _ = evaluate(load_checkpoint(folder), maker, measured, SCALES, eye=eye, places={}, baseline=baseline)
        results[name] = {"costs": decoder_cost(folder), "scales": {k: v[OURS] for k, v in baseline["scales"].items()}}
        saved.write_text(json.dumps(results, indent=2) + "\n")
        click.echo(f"{table(results)}\n")
    (output / "study.md").write_text(table(results) + "\n")
    draw(results, output / "study.png")


if __name__ == "__main__":
    main()
