"""Measures how reliably the normalisation of FLUX.2 latents is told from their numbers.

``python -m benchmarks.studies.normalisation --photos PHOTOS --teacher FILE -o FOLDER``

The teacher's encoder makes latents of photographs, as they are and with less contrast, and of drawn pictures that show
little: one colour, gradients, text, lines, discs and stars. Those of the folder ``train`` give ``level_weights`` and
``usual_level`` of ``infgen_rt/data/latent_spaces.json``, which ``level.json`` holds. The table shows for parts of all
latents, in several sizes and in both normalisations, how often ``normalisation_of`` infers the normalisation.

The encoder runs in bfloat16, and for a quarter of the training photographs also in float32. The latents are kept in
float16.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import click
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter

from benchmarks import options, table
from benchmarks.studies.spaces import middles, parts, pixels_of
from infgen_rt.common.pixels import FloatArray
from infgen_rt.latent.evidence import normalisation_of
from infgen_rt.latent.spaces import LatentSpace, latent_space
from infgen_training.options import FOLDER
from infgen_training.photos import middle_of, open_photo, photo_files
from infgen_training.teacher import Teacher

SIDE = 512
"""Side of the training photographs' middle squares and of the drawn pictures, in pixels."""
EVERY = 3
"""Of how many training photographs one is encoded."""
CONTRASTS, HELD_OUT_CONTRAST = (0.2, 0.35, 0.5), 0.35
"""Contrasts, relative to that of the photograph. The training photographs have them in turns."""
SHAPES = ((96, 128), (64, 64), (32, 32), (16, 16), (8, 8))
"""Rows and columns of the parts, in cells."""
MOST = 500
"""The largest number of parts of each kind and size, drawn at random."""
RIDGE = 0.3
"""How far the channels' covariance is drawn to a multiple of the identity, which keeps the weights small."""
COLOURS = ((0, 0, 0), (255, 255, 255), (128, 128, 128), (20, 30, 60), (240, 230, 210), (200, 30, 40))


def photographs(folder: Path, teacher: Teacher) -> Iterator[tuple[str, FloatArray]]:
    """The latents of photographs with their kinds and data types."""
    exact, fast = torch.float32, torch.bfloat16
    for pixels in middles(photo_files(folder / "val")):
        yield "held out, as they are", _encoded(pixels, teacher, fast)
        yield "held out, less contrast", _encoded(with_contrast(pixels, HELD_OUT_CONTRAST), teacher, fast)
    for index, file in enumerate(photo_files(folder / "train")[::EVERY]):
        photo = open_photo(file)
        if index % 2:
            factor = SIDE / min(photo.size)
            photo = photo.resize([max(SIDE, round(factor * side)) for side in photo.size], Image.Resampling.LANCZOS)
        pixels = pixels_of(middle_of(photo, SIDE))
        yield "training, as they are", _encoded(pixels, teacher, fast)
        yield "training, less contrast", _encoded(with_contrast(pixels, CONTRASTS[index % 3]), teacher, fast)
        if index % 4 == 0:
            yield "training, as they are, float32", _encoded(pixels, teacher, exact)


def drawn(teacher: Teacher, seed: int = 0) -> Iterator[tuple[str, FloatArray]]:
    """The latents of drawn pictures that show little, with their kinds."""
    random = np.random.default_rng(seed)
    for colour in COLOURS:
        picture = Image.new("RGB", (SIDE, SIDE), colour)
        yield "one colour", _encoded(pixels_of(picture), teacher, torch.bfloat16)
        for draw in (_gradient, _text, _lines, _discs, _stars):
            yield "drawn", _encoded(pixels_of(draw(random)), teacher, torch.bfloat16)


def with_contrast(pixels: FloatArray, contrast: float) -> FloatArray:
    """A picture [3, H, W] with another contrast, around its mean colour."""
    mean = pixels.mean(axis=(1, 2), keepdims=True)
    return np.asarray((mean + (pixels - mean) * np.float32(contrast)).clip(0, 1), np.float32)


def _gradient(random: np.random.Generator) -> Image.Image:
    first, last = random.integers(0, 256, (2, 3))
    ramp = np.linspace(0, 1, SIDE)[:, None, None] * np.ones((1, SIDE, 1))
    return Image.fromarray((first * (1 - ramp) + last * ramp).astype(np.uint8))


def _text(random: np.random.Generator) -> Image.Image:
    picture = Image.new("RGB", (SIDE, SIDE), "white")
    for row in range(int(random.integers(3, 24))):
        text = "".join(chr(97 + letter) for letter in random.integers(0, 26, 40))
        ImageDraw.Draw(picture).text((30, 20 + row * 20), text, fill="black")
    return picture


def _lines(random: np.random.Generator) -> Image.Image:
    picture = Image.new("RGB", (SIDE, SIDE), "white")
    for width in range(1, 7):
        ImageDraw.Draw(picture).line([*map(int, random.integers(0, SIDE, 8))], fill="black", width=width)
    return picture


def _discs(random: np.random.Generator) -> Image.Image:
    colours = [tuple(map(int, colour)) for colour in random.integers(0, 256, (4, 3))]
    picture = Image.new("RGB", (SIDE, SIDE), colours[0])
    for colour in colours[1:]:
        x, y = map(int, random.integers(0, SIDE - 100, 2))
        ImageDraw.Draw(picture).ellipse([x, y, x + 100, y + 90], fill=colour)
    return picture


def _stars(random: np.random.Generator) -> Image.Image:
    sky = np.zeros((SIDE, SIDE, 3), np.uint8) + random.integers(0, 20, 3).astype(np.uint8)
    sky[tuple(random.integers(0, SIDE, (2, 150)))] = 255
    return Image.fromarray(sky).filter(ImageFilter.GaussianBlur(1))


def weights(latents: Sequence[FloatArray]) -> tuple[list[float], float]:
    """The weights, 1 in sum, for which the level of latents differs least, and its average."""
    levels = np.array([np.log(np.square(latent, dtype=np.float64).mean(axis=(1, 2))) / 2 for latent in latents])
    covariance = np.cov(levels.T)
    covariance += RIDGE * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
    found = np.linalg.solve(covariance, np.ones(len(covariance)))
    found = (found / found.sum()).round(3)
    found[found.argmax()] += 1 - found.sum()
    return found.round(3).tolist(), round(float((levels @ found).mean()), 2)


def report(kinds: Mapping[str, Sequence[FloatArray]], space: LatentSpace) -> str:
    """A table of the verdicts for parts of latents, in both normalisations."""
    heads = ("pictures", "cells", "parts", "model's: asked", "model's: wrong", "VAE's: asked", "VAE's: silently wrong")
    lines = [table.head(*heads)]
    random = np.random.default_rng(0)
    for kind, latents in kinds.items():
        for rows, columns in SHAPES:
            cut = [part for latent in latents for part in parts(latent, rows, columns)]
            chosen = [cut[index] for index in random.permutation(len(cut))[:MOST]]
            if not chosen:
                continue
            model = [normalisation_of(part, space) for part in chosen]
            # Programs keep latents in float16 or bfloat16.
            rounded = [space.denormalise(part).astype(np.float16).astype(np.float32) for part in chosen]
            vae = [normalisation_of(part, space) for part in rounded]
            counts = (model.count(None), model.count("vae"), vae.count(None), vae.count("model"))
            shares = (f"{100 * count / len(chosen):.1f} %" for count in counts)
            lines.append(table.row(kind, f"{columns}x{rows}", len(chosen), *shares))
    return "\n".join(lines)


def _encoded(pixels: FloatArray, teacher: Teacher, dtype: torch.dtype) -> FloatArray:
    teacher.encoder.to(dtype)
    batch = torch.from_numpy(pixels)[None].to(dtype).to(memory_format=torch.channels_last)
    return np.asarray(teacher.encode(batch)[0].float().numpy(), np.float32)


def _kept(file: Path, make: Iterator[tuple[str, FloatArray]]) -> dict[str, list[FloatArray]]:
    """The latents by their kinds, which are kept in a file from run to run."""
    if not file.exists():
        made = {f"{index:04}:{kind}": latent.astype(np.float16) for index, (kind, latent) in enumerate(make)}
        np.savez(file, **made)  # type: ignore[arg-type]
    kinds: dict[str, list[FloatArray]] = {}
    with np.load(file) as archive:
        for name in archive.files:
            kinds.setdefault(name.partition(":")[2], []).append(archive[name].astype(np.float32))
    return kinds


@click.command(cls=options.Command)
@click.option("--photos", type=FOLDER, required=True, help="Folder with the folders train and val.")
@click.option("--teacher", type=click.Path(exists=True, path_type=Path), required=True, help="FLUX.2's autoencoder.")
@click.option("-o", "--output", type=click.Path(file_okay=False, path_type=Path), required=True, help="Continued.")
def main(photos: Path, teacher: Path, output: Path) -> None:
    """Writes level.json, and prints how reliably the normalisation is inferred."""
    output.mkdir(parents=True, exist_ok=True)
    maker = Teacher.load(teacher)
    kinds = _kept(output / "photographs.npz", photographs(photos, maker))
    training = [latent for kind, latents in kinds.items() if kind.startswith("training") for latent in latents]
    squares = [part for latent in training for side in (64, 32, 16) for part in parts(latent, side, side)]
    found, usual = weights(squares)
    (output / "level.json").write_text(json.dumps({"level_weights": found, "usual_level": usual}, indent=2) + "\n")
    click.echo(report(kinds | _kept(output / "drawn.npz", drawn(maker)), latent_space("flux2")))


if __name__ == "__main__":
    main()
