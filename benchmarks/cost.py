"""Counts the parameters and multiply-adds of a checkpoint: ``python -m benchmarks.cost CHECKPOINT``."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import click
import torch

from benchmarks import options
from infgen_export.work import context_work, multiply_adds
from infgen_model import Grid
from infgen_model.checkpoint import load_checkpoint
from infgen_training.options import FILE, FOLDER
from infgen_training.teacher import Teacher

CELLS = 32
"""Side of the latent whose cost is counted."""
SCALES = (1, 2, 4)


def decoder_cost(checkpoint: Path) -> dict[str, dict[str, float]]:
    """Counts the multiply-adds of a checkpoint's decoder.

    Returns:
        By scale: those of ``context`` per cell, those of ``decode`` per pixel, and those of both per ``pixel``.
    """
    model, costs = load_checkpoint(checkpoint), {}
    latent = torch.zeros(1, model.config.latent_channels, CELLS, CELLS)
    for scale in SCALES:
        enlargement = model.config.enlargement_for((scale, scale))
        with torch.inference_mode():
            context = model.context(latent, enlargement)
        side = model.config.PATCH * CELLS * scale
        grid = Grid.whole((CELLS, CELLS), (side, side))
        made = context_work(model, enlargement)
        decode = multiply_adds(partial(model.decode, context, grid, enlargement)) / side**2
        costs[str(scale)] = {"context": made, "decode": decode, "pixel": made * CELLS**2 / side**2 + decode}
    return costs


@click.command(cls=options.Command)
@click.argument("checkpoint", type=FOLDER)
@click.option(
    "--teacher",
    type=FILE,
    help="Python file with load_encoder() and load_decoder(), which is counted too.",
)
def main(checkpoint: Path, teacher: Path | None) -> None:
    """Prints the cost of CHECKPOINT per latent cell and per output pixel."""
    model = load_checkpoint(checkpoint)
    for name, part in model.named_children():
        parameters = sum(p.numel() for p in part.parameters())
        click.echo(f"{name}: {parameters / 1e6:.2f} M parameters")
    for scale, cost in decoder_cost(checkpoint).items():
        click.echo(
            f"scale {scale}: {cost['pixel'] / 1e3:.1f} thousand multiply-adds per pixel: the context "
            f"{cost['context'] / 1e6:.2f} M per cell, decode {cost['decode'] / 1e3:.1f} thousand per pixel"
        )
    latent = torch.zeros(1, model.config.latent_channels, CELLS, CELLS)
    image = torch.zeros(1, 3, 8 * CELLS, 8 * CELLS)
    encode = multiply_adds(lambda: model.encode(image)) / (8 * CELLS) ** 2
    click.echo(f"encode: {encode / 1e3:.1f} thousand multiply-adds per pixel")
    if teacher:
        pair = Teacher.load(teacher)
        for name, run in (("decoder", lambda: pair.decode(latent)), ("encoder", lambda: pair.encode(image))):
            work = multiply_adds(run) / (8 * CELLS) ** 2
            click.echo(f"teacher's {name}: {work / 1e3:.1f} thousand multiply-adds per pixel")


if __name__ == "__main__":
    main()
