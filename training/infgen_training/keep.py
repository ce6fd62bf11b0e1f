"""Saves a finished model as a small checkpoint, in float16 and without weights that another checkpoint has."""

from __future__ import annotations

from pathlib import Path

import click
import torch
from torch import nn

from infgen_model import InfGen
from infgen_model.checkpoint import load_checkpoint, save_checkpoint
from infgen_rt.errors import InputError
from infgen_training.teacher import AUTOENCODER, AUTOENCODER_HELP, Teacher
from infgen_training.warmstart import copy_encoder, encoder_config

_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)


def with_encoder(model: InfGen, encoder: nn.Module) -> InfGen:
    """Makes a model that has the encoder of a tiny autoencoder, unchanged, and everything else of a model.

    Args:
        model: The model. It is not changed.
        encoder: The encoder of a tiny autoencoder of the model's latent space.

    Raises:
        InputError: The encoder is not that of a tiny autoencoder, or its latents have another number of channels.
    """
    config = encoder_config(encoder, model.config)
    if config is None:
        raise InputError("only the encoder of a tiny autoencoder of TAESD's family can be copied into a model")
    made = InfGen(config).eval()
    others = {name: value for name, value in model.state_dict().items() if not name.startswith("encode.")}
    made.load_state_dict(made.state_dict() | others)
    copy_encoder(encoder, made)
    return made


@click.command()
@click.argument("checkpoint", type=_FOLDER)
@click.option("--base", type=_FOLDER, help="The checkpoint that the trunk was trained for, if it is a trunk's run.")
@click.option("--encoder", type=AUTOENCODER, help=f"Take its encoder. {AUTOENCODER_HELP}")
@click.option("-o", "--output", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder to make.")
def main(checkpoint: Path, base: Path | None, encoder: Path | None, output: Path) -> None:
    """Writes CHECKPOINT in float16.

    With a base, only the weights that belong to the latent space are written. All other weights are then read from the
    base whenever the new checkpoint is loaded.
    """
    try:
        model = load_checkpoint(checkpoint)
        if encoder is not None:
            model = with_encoder(model, Teacher.load(encoder).encoder)
        save_checkpoint(output, model, torch.float16, base)
    except (FileNotFoundError, InputError) as error:
        raise click.ClickException(str(error)) from None


if __name__ == "__main__":
    main()
