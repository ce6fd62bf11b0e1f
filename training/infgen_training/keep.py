"""Saves the trunk of a finished run as a small checkpoint, which refers to the model that the trunk was trained for."""

from __future__ import annotations

from pathlib import Path

import click
import torch

from infgen_model.checkpoint import load_checkpoint, save_checkpoint
from infgen_rt.errors import InputError

_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)


@click.command()
@click.argument("checkpoint", type=_FOLDER)
@click.option("--base", type=_FOLDER, required=True, help="The checkpoint that the trunk was trained for.")
@click.option("-o", "--output", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder to make.")
def main(checkpoint: Path, base: Path, output: Path) -> None:
    """Writes the weights of CHECKPOINT that belong to its latent space, in float16.

    All other weights are read from the base whenever the new checkpoint is loaded.
    """
    try:
        save_checkpoint(output, load_checkpoint(checkpoint), torch.float16, base)
    except InputError as error:
        raise click.ClickException(str(error)) from None


if __name__ == "__main__":
    main()
