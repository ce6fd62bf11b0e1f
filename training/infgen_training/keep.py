"""Saves a finished model as a small checkpoint, in float16 and without weights that another checkpoint has.

On the way, the weights can be averaged with those of another checkpoint, or of the tiny decoder that the trunk started
from. Between two models of one training, the average often is better than both (Wortsman et al. 2022, "Model soups").
"""

from __future__ import annotations

import copy
import dataclasses
import os
from pathlib import Path

import click
import torch
from torch import Tensor, nn

from infgen_model import InfGen
from infgen_model.checkpoint import CONFIG, load_checkpoint, save_checkpoint
from infgen_rt.errors import InputError
from infgen_training.options import FOLDER
from infgen_training.slopes import with_even_slopes, with_small_slopes
from infgen_training.teacher import AUTOENCODER, AUTOENCODER_HELP, Teacher
from infgen_training.warmstart import copy_encoder, copy_trunk, encoder_config

_NEAR = 0.1
"""How much the product of a slope and its inverse may differ from 1, after some training."""


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


def averaged(model: InfGen, other: InfGen, share: float) -> InfGen:
    """Makes a model with the averages of the weights of two models of the same architecture.

    Args:
        model: The one model. It is not changed.
        other: The other model.
        share: Share of the other model, in [0, 1].

    Raises:
        InputError: The models have different weights, or the share is outside its range.
    """
    if not 0 <= share <= 1:
        raise InputError(f"a share of a model's weights is in [0, 1], not {share:g}")
    ours, theirs = model.state_dict(), other.state_dict()
    if {name: value.shape for name, value in ours.items()} != {name: value.shape for name, value in theirs.items()}:
        raise InputError("only models of the same architecture can be averaged: their weights differ in name or shape")
    if _turned(ours, theirs):
        raise InputError("only one of the models has small slopes (--small-slopes): average them before that step")
    made = copy.deepcopy(model)
    floats = {name: value.lerp(theirs[name], share) for name, value in ours.items() if value.is_floating_point()}
    made.load_state_dict(ours | floats)
    return made


def _turned(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    """Whether one of two models has a channel whose sign and slope ``with_small_slopes`` has changed."""
    for name, slopes in ours.items():
        before = name.replace(".1.weight", ".0.bias")
        if name.startswith("refine.enlarger.blocks.") and before != name:
            inverse = (slopes * theirs[name] - 1).abs() < _NEAR
            if (inverse & (ours[before] * theirs[before] < 0)).any():
                return True
    return False


def with_trunk(model: InfGen, decoder: nn.Module, share: float) -> InfGen:
    """Makes a model whose trunk is averaged with the decoder of a tiny autoencoder that it started from.

    Args:
        model: The model. It is not changed.
        decoder: The decoder of the tiny autoencoder.
        share: Share of the decoder, in [0, 1].

    Raises:
        InputError: The decoder has another structure, or the share is outside its range.
    """
    other = copy.deepcopy(model)
    copy_trunk(decoder, other)
    return averaged(model, other, share)


def with_polish(model: InfGen, channels: int) -> InfGen:
    """Makes a model whose largest enlargement has a polish, which adds nothing until it is trained.

    Args:
        model: The model. It is not changed.
        channels: Hidden channels of the polish.

    Raises:
        InputError: The largest enlargement has no finish, or has a polish already.
    """
    config = model.config
    if not config.enlargements or not config.enlargements[-1].finish or config.enlargements[-1].polish:
        raise InputError("only a model whose largest enlargement has a finish, and no polish yet, can be given one")
    largest = dataclasses.replace(config.enlargements[-1], polish=channels)
    made = InfGen(dataclasses.replace(config, enlargements=(*config.enlargements[:-1], largest))).eval()
    made.load_state_dict(made.state_dict() | model.state_dict())
    return made


@click.command()
@click.argument("checkpoint", type=FOLDER)
@click.option("--base", type=FOLDER, help="The checkpoint that the trunk was trained for, if it is a trunk's run.")
@click.option("--encoder", type=AUTOENCODER, help=f"Take its encoder. {AUTOENCODER_HELP}")
@click.option("--mix", type=(FOLDER, float), help="Average with this checkpoint, of which this share is taken.")
@click.option(
    "--trunk", type=(AUTOENCODER, float), help="Average the trunk with its decoder, of which this share is taken."
)
@click.option(
    "--polish", type=click.IntRange(1, 4096), help="Give its largest enlargement a polish of this many channels."
)
@click.option(
    "--small-slopes",
    is_flag=True,
    help="As the last step, make its slopes at most 1, and equal if they hardly differ, for faster graphs.",
)
@click.option("--force", is_flag=True, help="Replace a checkpoint.")
@click.option("-o", "--output", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder to make.")
def main(
    checkpoint: Path, base: Path | None, encoder: Path | None, mix: tuple[Path, float] | None,
    trunk: tuple[Path, float] | None, polish: int | None, small_slopes: bool, force: bool, output: Path,
) -> None:  # fmt: skip
    """Writes CHECKPOINT in float16.

    With a base, only the weights that belong to the latent space are written. All other weights are then read from the
    base whenever the new checkpoint is loaded.
    """
    try:
        if os.path.exists(output / CONFIG) and not force:
            raise InputError(f"{output} is a checkpoint, and may be the base of others: use --force to replace it")
        model = load_checkpoint(checkpoint)
        if mix is not None:
            model = averaged(model, load_checkpoint(mix[0]), mix[1])
        if trunk is not None:
            model = with_trunk(model, Teacher.load(trunk[0]).decoder, trunk[1])
        if encoder is not None:
            model = with_encoder(model, Teacher.load(encoder).encoder)
        if polish is not None:
            model = with_polish(model, polish)
        if small_slopes:
            model = with_even_slopes(with_small_slopes(model))
        save_checkpoint(output, model, torch.float16, base)
    except (FileNotFoundError, InputError) as error:
        raise click.ClickException(str(error)) from None


if __name__ == "__main__":
    main()
