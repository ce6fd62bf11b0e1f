"""Makes images for a blind comparison: ``python -m benchmarks.studies.chooser``.

For each place in a photograph, there is one image at 100 %. It has the true picture on the left. To the right are two
pictures, A and B, both from the latent of the reduced photograph. In random order, one is the model's, and the other is
that of TAEF2 and Real-ESRGAN. Write down for each place which one is better, and only then open ``key.json``.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import nn

from benchmarks import options
from infgen_model import InfGen
from infgen_model.checkpoint import load_checkpoint
from infgen_rt.common.schema import parse
from infgen_rt.errors import InputError
from infgen_training.config import PATCH
from infgen_training.evaluate import ENLARGER, OURS, TEACHER, Task, methods
from infgen_training.options import FILE, FOLDER
from infgen_training.photos import open_photo, photo_files
from infgen_training.teacher import Teacher, load_function
from infgen_training.views import Pixels

CROP = 320
"""Side in pixels of the crop that is shown."""
MARGIN = 64
"""Smallest margin around the crop, in pixels at the latent's own size. It is larger than the reach of the methods."""
SCALES = (2, 4)
RIVALS = (OURS, f"{TEACHER} + {ENLARGER}")
"""The methods to choose from, by the evaluation's names."""
GAP, BAND = 8, 24
"""Pixels between the pictures, and height of the band above them with their names."""


@dataclass(frozen=True)
class Place:
    """A place in a photograph.

    Attributes:
        photo: Stem of the photograph.
        x: Middle of the crop, as a share of the photograph's width.
        y: Middle of the crop, as a share of the photograph's height.
        scale: Factor by which the photograph is reduced and then enlarged again.
        name: Name of the image that is written.
    """

    photo: str
    x: float
    y: float
    scale: int
    name: str

    def __post_init__(self) -> None:
        if not (0 <= self.x <= 1 and 0 <= self.y <= 1):
            raise ValueError(f"{self.name}: x and y are shares from 0 to 1, not {self.x:g} and {self.y:g}")
        if self.scale not in SCALES:
            raise ValueError(f"{self.name}: scale must be one of {', '.join(map(str, SCALES))}, not {self.scale}")
        if not self.name or Path(self.name).name != self.name:
            raise ValueError(f"{self.name!r} cannot be the name of a file")


def read_places(file: Path) -> list[Place]:
    """Reads a JSON list of places.

    Raises:
        InputError: The file is not such a list, or two places have the same name.
    """
    try:
        places = [
            parse(Place, value, f"place {number}") for number, value in enumerate(json.loads(file.read_text()), 1)
        ]
    except (TypeError, ValueError) as error:
        raise InputError(f"{file} is not a list of places: {error}") from error
    if twice := [name for name, count in Counter(place.name for place in places).items() if count > 1]:
        raise InputError(f"{file} has several places with the name {twice[0]!r}: give each its own")
    return places


def cut(photo: Image.Image, place: Place) -> tuple[Image.Image, tuple[int, int, int, int]]:
    """Cuts out the part of a photograph that is encoded for a place.

    The part consists of whole cells of the whole photograph's latent.

    Returns:
        The part of the photograph, and the crop of it that is shown: left, top, width, height.
    """
    cell = PATCH * place.scale
    part, shown = [], []
    for share, length in zip((place.x, place.y), photo.size, strict=True):
        whole = length // cell * cell
        side = min(CROP, whole)
        start = round(min(max(0.0, share * length - side / 2), whole - side))
        first = max(0, start - MARGIN * place.scale) // cell * cell
        last = min(whole, -(-(start + side + MARGIN * place.scale) // cell) * cell)
        part.append((first, last))
        shown.append((start - first, side))
    (left, right), (top, bottom) = part
    (x, width), (y, height) = shown
    return photo.crop((left, top, right, bottom)), (x, y, width, height)


def pictures_of(
    photo: Image.Image, place: Place, model: InfGen, teacher: Teacher, enlarge: nn.Module
) -> dict[str, Pixels]:
    """Makes the pictures that are shown for a place: the ``truth``, and one per method."""
    part, (x, y, width, height) = cut(photo, place)
    task = Task.of(part, float(place.scale), teacher)
    made = methods(task, model, teacher, enlarge, ours=False)
    found = {"truth": task.truth} | {name: made[name] for name in RIVALS}
    return {name: pixels[y : y + height, x : x + width] for name, pixels in found.items()}


def sheet(pictures: Mapping[str, Pixels]) -> Image.Image:
    """Draws pictures of the same size side by side, with their names above."""
    height, width = next(iter(pictures.values())).shape[:2]
    image = Image.new("RGB", ((width + GAP) * len(pictures) - GAP, height + BAND), "white")
    draw = ImageDraw.Draw(image)
    for index, (name, pixels) in enumerate(pictures.items()):
        left = index * (width + GAP)
        draw.text((left + width // 2, BAND // 2), name, "black", anchor="mm", font_size=16)
        image.paste(Image.fromarray(pixels), (left, BAND))
    return image


def lay_out(
    places: Sequence[Place], files: Mapping[str, Path], model: InfGen, teacher: Teacher, enlarge: nn.Module,
    seed: int, output: Path,
) -> dict[str, dict[str, str]]:  # fmt: skip
    """Writes one image per place.

    Returns:
        The key: the methods of A and B, by place.
    """
    rng = np.random.default_rng(seed)
    key = {}
    for place in places:
        order = dict(zip("AB", (RIVALS[index] for index in rng.permutation(len(RIVALS))), strict=True))
        found = pictures_of(open_photo(files[place.photo]), place, model, teacher, enlarge)
        shown = {"truth": found["truth"]} | {letter: found[name] for letter, name in order.items()}
        sheet(shown).save(output / f"{place.name}.png")
        key[place.name] = order
    return key


@click.command(cls=options.Command)
@click.argument("checkpoint", type=FOLDER)
@click.option("--photos", type=FOLDER, required=True, help="Folder of photographs that were not used for training.")
@click.option("--teacher", type=FILE, required=True)
@click.option("--enlarger", type=FILE, required=True, help="Python file with a network that enlarges 4 times.")
@click.option(
    "--function", default="load_x4plus", show_default=True, help="Name of the function in the enlarger's file."
)
@click.option("--places", type=FILE, required=True, help='JSON: [{"photo": STEM, "x", "y", "scale", "name"}, ...].')
@click.option("--seed", default=0, show_default=True, help="Seed of the random order.")
@click.option("-o", "--output", type=click.Path(file_okay=False, path_type=Path), required=True)
def main(
    checkpoint: Path, photos: Path, teacher: Path, enlarger: Path, function: str, places: Path, seed: int, output: Path
) -> None:
    """Writes an image for each place, and key.json."""
    try:
        wanted = read_places(places)
        files = {file.stem: file for file in photo_files(photos)}
        if missing := sorted({place.photo for place in wanted} - files.keys()):
            raise InputError(f"{photos} has no photograph {missing[0]!r}")
        model, maker = load_checkpoint(checkpoint), Teacher.load(teacher)
        enlarge = load_function(enlarger, function)()
    except (InputError, FileNotFoundError) as error:
        raise click.ClickException(str(error)) from error
    output.mkdir(parents=True, exist_ok=True)
    key = lay_out(wanted, files, model, maker, enlarge.to(memory_format=torch.channels_last), seed, output)
    told: dict[str, Any] = {"seed": seed, "checkpoint": str(checkpoint), "places": [asdict(place) for place in wanted]}
    (output / "key.json").write_text(json.dumps({"key": key, **told}, indent=2) + "\n")
    click.echo(f"{len(key)} images in {output}: write down which is better, A or B, before you open key.json")


if __name__ == "__main__":
    main()
