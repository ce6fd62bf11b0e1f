"""Keeps the trunk of a finished run as a small checkpoint beside that of the model that it belongs to."""

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
    """Writes what belongs to the latent space of CHECKPOINT, in float16. The rest is read from the base."""
    try:
        save_checkpoint(output, load_checkpoint(checkpoint), torch.float16, base)
    except InputError as error:
        raise click.ClickException(str(error)) from None


if __name__ == "__main__":
    main()
