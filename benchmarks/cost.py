"""Parameters and multiply-adds of a checkpoint, counted: ``python -m benchmarks.cost CHECKPOINT``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click
import torch
from torch.utils.flop_counter import FlopCounterMode

from infgen_export.checkpoint import load_checkpoint
from infgen_export.model import Grid
from infgen_training.teacher import Teacher

CELLS = 32


def multiply_adds(run: Callable[[], object]) -> float:
    """Multiply-adds of the matrix products and convolutions of a call; element-wise work is not counted."""
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        run()
    return float(counter.get_total_flops()) / 2


def decoder_cost(checkpoint: Path) -> dict[str, float]:
    """Multiply-adds of the context a cell, of decode a pixel at scale 4, and the largest scale that is decoded."""
    model = load_checkpoint(checkpoint)
    latent = torch.zeros(1, model.config.latent_channels, CELLS, CELLS)
    with torch.inference_mode():
        context = model.context(latent)
    side = 32 * CELLS
    grid = Grid.whole((CELLS, CELLS), (side, side))
    return {
        "context": multiply_adds(lambda: model.context(latent)) / CELLS**2,
        "decode": multiply_adds(lambda: model.decode(context, grid)) / side**2,
        "largest scale": model.config.scale_range[1],
    }


@click.command()
@click.argument("checkpoint", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--teacher",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Python file with load_encoder() and load_decoder(), to count beside it.",
)
def main(checkpoint: Path, teacher: Path | None) -> None:
    """Prints what CHECKPOINT costs: once a latent cell, once an output pixel."""
    model = load_checkpoint(checkpoint)
    for name, part in model.named_children():
        parameters = sum(p.numel() for p in part.parameters())
        click.echo(f"{name}: {parameters / 1e6:.2f} M parameters")
    latent = torch.zeros(1, model.config.latent_channels, CELLS, CELLS)
    with torch.inference_mode():
        context = model.context(latent)
    click.echo(f"context: {multiply_adds(lambda: model.context(latent)) / CELLS**2 / 1e6:.2f} M multiply-adds a cell")
    for scale in (1, 2, 4):
        side = 8 * CELLS * scale
        grid = Grid.whole((CELLS, CELLS), (side, side))
        cost = multiply_adds(lambda grid=grid: model.decode(context, grid)) / side**2  # type: ignore[misc]
        click.echo(f"decode at scale {scale}: {cost / 1e3:.1f} thousand multiply-adds a pixel")
    image = torch.zeros(1, 3, 8 * CELLS, 8 * CELLS)
    cost = multiply_adds(lambda: model.encode(image)) / (8 * CELLS) ** 2
    click.echo(f"encode: {cost / 1e3:.1f} thousand multiply-adds a pixel")
    if teacher:
        pair = Teacher.load(teacher)
        for name, run in (("decoder", lambda: pair.decode(latent)), ("encoder", lambda: pair.encode(image))):
            cost = multiply_adds(run) / (8 * CELLS) ** 2
            click.echo(f"teacher's {name}: {cost / 1e3:.1f} thousand multiply-adds a pixel")


if __name__ == "__main__":
    main()
