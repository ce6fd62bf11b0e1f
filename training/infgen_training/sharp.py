"""Adds sharp pictures to shards of views.

Usage: ``python -m infgen_training.sharp SHARDS --teacher FILE --enlarger FILE -o OUT``.

A sharp picture follows from the view's latent, so no photograph is needed. Shards can therefore be made from
photographs on one machine, and get their sharp pictures on another, which has a GPU.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import click
import torch
from torch import nn
from tqdm import tqdm

from infgen_rt.errors import InputError
from infgen_training.options import FILE, FOLDER, MINUTES, device_option
from infgen_training.teacher import AUTOENCODER, AUTOENCODER_HELP, Teacher, load_function
from infgen_training.views import FILE_MEGABYTES, View, load_shards, save_shards, sharp_picture, to_tensor, within


@torch.inference_mode()
def with_sharp_pictures(
    views: list[View], teacher: Teacher, enlarge: nn.Module, device: torch.device, photographs: bool = True
) -> Iterator[View]:
    """Adds a sharp picture to each view.

    Args:
        views: The views.
        teacher: The autoencoder, on the device.
        enlarge: A network on the device that enlarges pictures [B, 3, H, W] in [0, 1] four times.
        device: Device to compute on.
        photographs: Whether the results keep their photographs.
    """
    for view in views:
        latent, truth = view.latent[None].float().to(device), to_tensor(view.small)[None].to(device)
        sharp = sharp_picture(latent, truth, teacher, enlarge, device)
        yield dataclasses.replace(view, sharp=sharp, photo=view.photo if photographs else None)


@click.command()
@click.argument("shards", type=FOLDER)
@click.option("--teacher", type=AUTOENCODER, required=True, help=AUTOENCODER_HELP)
@click.option("--enlarger", type=FILE, required=True, help="Python file that loads a network which enlarges 4 times.")
@click.option("--function", default="load_x4plus", show_default=True, help="Name of the function in that file.")
@click.option("--photographs/--no-photographs", default=True, show_default=True, help="Whether views keep theirs.")
@click.option("--minutes", type=MINUTES, help="Stops after this time, and keeps the views made so far.")
@FILE_MEGABYTES
@device_option
@click.option("-o", "--output", type=click.Path(file_okay=False, path_type=Path), required=True)
def main(
    shards: Path, teacher: Path, enlarger: Path, function: str, photographs: bool, minutes: float | None,
    megabytes: float, device: str, output: Path,
) -> None:  # fmt: skip
    """Adds sharp pictures to the views in SHARDS that have none, and packs these views into new shards."""
    where, again = torch.device(device), within(minutes)
    try:
        if any(output.glob("sharp-*.safetensors")):
            raise InputError(f"{output} has shards named sharp-*: choose another --output, or remove them")
        views = [view for view in load_shards(shards) if view.sharp is None]
        if not views:
            raise InputError(f"all views in {shards} have sharp pictures: pass shards of photographs")
        enlarge = load_function(enlarger, function)().to(where).to(memory_format=torch.channels_last)
        made = with_sharp_pictures(views, Teacher.load(teacher).to(where), enlarge, where, photographs)
        known = tqdm(made, total=len(views), desc="sharp views")
        done = save_shards(output, known, "sharp", again, megabytes)
    except (InputError, FileNotFoundError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"{done} views in {output}")


if __name__ == "__main__":
    main()
