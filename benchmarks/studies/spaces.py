"""Measures latents of the known spaces, and how reliably they distinguish spaces with the same number of channels.

``python -m benchmarks.studies.spaces --photos PHOTOS --teachers TEACHERS -o FOLDER``

The teachers' encoders make latents of photographs. The photographs in the folder ``train`` give statistics, which are
written to ``statistics.json`` in the form of ``infgen_rt/data/latent_spaces.json``. The photographs in the folder
``val`` show how often ``likely_space`` and ``normalisation_of`` are right, for their middles and for parts of these.

The encoders run in bfloat16. Compared with float32, latents differ by about a fiftieth of their standard deviation.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from PIL import Image

from benchmarks import options, table
from infgen_rt.common.pixels import FloatArray
from infgen_rt.latent.distribution import Cells
from infgen_rt.latent.evidence import moments, normalisation_of
from infgen_rt.latent.likeness import detail_covariance, likely_space
from infgen_rt.latent.spaces import LatentSpace, latent_space, latent_spaces
from infgen_training.options import FOLDER
from infgen_training.photos import middle_of, open_photo, photo_files
from infgen_training.teacher import Teacher

SPACES = ("sd15", "sdxl", "sd3", "flux1")
SIDE = 256
"""Side of the square of a training photograph that is encoded, in pixels."""
EVERY = 2
"""One of this many training photographs is encoded."""
MIDDLE = (1024, 768)
"""Size of the middle of a held-out photograph that is encoded, in pixels."""
PARTS = (64, 32)
"""Sides of the parts of a photograph's latent, in cells."""
SMALL = 16
"""Side, in cells, of the parts of training latents that give the usual deviations and means."""
EDGES, MARGIN, MEAN_MARGIN = (0.5, 99.5), 1.1, 1.5
"""Percentiles that bound the usual range, and factors that widen the ranges of deviations and of means.

The factor for means is larger, because pictures of one colour have unusual means."""
VERDICTS = ("space", "normalisation")


def squares(files: Sequence[Path]) -> Iterator[FloatArray]:
    """The middle square of each photograph. Every second photograph is first reduced to the side of the square."""
    for index, file in enumerate(files):
        photo = open_photo(file)
        if index % 2:
            factor = SIDE / min(photo.size)
            photo = photo.resize((round(factor * photo.width), round(factor * photo.height)), Image.Resampling.LANCZOS)
        yield pixels_of(middle_of(photo, SIDE))


def middles(files: Sequence[Path]) -> Iterator[FloatArray]:
    """The middle of each photograph."""
    for file in files:
        yield pixels_of(middle_of(open_photo(file), MIDDLE))


def pixels_of(photo: Image.Image) -> FloatArray:
    """The pixels of a picture in RGB, float32 [3, H, W] in [0, 1]."""
    return np.asarray(np.asarray(photo, np.float32).transpose(2, 0, 1) / np.float32(255), np.float32)


def encode(pictures: Iterator[FloatArray], teacher: Teacher) -> Iterator[FloatArray]:
    """The latent [C, h, w] of each picture [3, H, W] in [0, 1]."""
    teacher.encoder.to(torch.bfloat16)
    for picture in pictures:
        batch = torch.from_numpy(picture)[None].to(torch.bfloat16).to(memory_format=torch.channels_last)
        yield teacher.encode(batch)[0].float().numpy()


def latents(space: str, part: str, photos: Path, teachers: Path, output: Path) -> list[FloatArray]:
    """The latents of a folder of photographs. They are kept in a file for later runs."""
    saved = output / f"{part}-{space}.npz"
    if not saved.exists():
        files, teacher = photo_files(photos / part), Teacher.load(teachers / f"{space}_autoencoder.py")
        made = list(encode(squares(files[::EVERY]) if part == "train" else middles(files), teacher))
        np.savez(saved, *(latent.astype(np.float16) for latent in made))
    with np.load(saved) as archive:
        return [archive[name].astype(np.float32) for name in archive.files]


def parts(latent: FloatArray, rows: int, columns: int) -> Iterator[FloatArray]:
    """Cuts a latent into parts of one size, and leaves out what remains at its right and bottom edges."""
    _, height, width = latent.shape
    for top in range(0, height - rows + 1, rows):
        for left in range(0, width - columns + 1, columns):
            yield latent[:, top : top + rows, left : left + columns]


def statistics(made: Sequence[FloatArray]) -> dict[str, Any]:
    """Computes the statistics of a space's latents that its entry in the table of spaces has."""
    cells = [Cells.of(latent) for latent in made]
    mean = np.mean([each.mean for each in cells], axis=0)
    covariance = np.mean([each.covariance + np.outer(each.mean - mean, each.mean - mean) for each in cells], axis=0)
    deviation = np.sqrt(np.diag(covariance))
    upper = np.triu_indices(len(mean), 1)
    correlations = (covariance / np.outer(deviation, deviation))[upper]
    detail = np.mean([detail_covariance(latent) for latent in made], axis=0)
    finest = np.sqrt(np.diag(detail))
    small = [moments(part) for latent in made for part in parts(latent, SMALL, SMALL)]
    means, deviations = np.abs([each[0] for each in small]), np.array([each[1] for each in small])
    low, high = np.percentile(deviations, EDGES)
    return {
        "usual_std": [round(float(low) / MARGIN, 2), round(float(high) * MARGIN, 2)],
        "usual_mean": round(float(np.percentile(means, EDGES[1])) * MEAN_MARGIN, 2),
        "channel_mean": mean.round(3).tolist(),
        "channel_std": deviation.round(3).tolist(),
        "correlations": correlations.round(2).tolist(),
        "detail_std": finest.round(3).tolist(),
        "detail_correlations": (detail / np.outer(finest, finest))[upper].round(3).tolist(),
    }


@dataclass
class Score:
    """How often a verdict was right, wrong, or not given."""

    right: int = 0
    wrong: int = 0
    none: int = 0

    def add(self, verdict: str | None, truth: str) -> None:
        """Counts a verdict. ``None`` means that none was given."""
        self.none += verdict is None
        self.right += verdict == truth
        self.wrong += verdict not in (None, truth)

    def cells(self) -> list[str]:
        """Table cells: the shares in percent of right, missing and wrong verdicts, and the number of verdicts."""
        count = self.right + self.wrong + self.none
        shares = (f"{100 * each / count:.1f} %" for each in (self.right, self.none, self.wrong))
        return [*shares, str(count)]


def verdicts(latents: Sequence[FloatArray], space: LatentSpace) -> tuple[Score, Score]:
    """Counts how often the space and the normalisation are found, for each latent in both normalisations."""
    spaces = list(latent_spaces().values())
    told, normalised = Score(), Score()
    for latent in latents:
        for given, normalisation in ((latent, "model"), (space.denormalise(latent), "vae")):
            likely = likely_space(given, spaces)
            told.add(likely.name if likely else None, space.name)
            normalised.add(normalisation_of(given, space), normalisation)
    return told, normalised


def report(held_out: Mapping[str, Sequence[FloatArray]]) -> str:
    """A table of the verdicts on held-out photographs, whole and in parts."""
    heads = ("latents of", "cells", "verdict", "right", "not told", "wrong", "of")
    lines = [table.head(*heads)]
    for name, made in held_out.items():
        for side in (None, *PARTS):
            cut = list(made) if side is None else [part for latent in made for part in parts(latent, side, side)]
            cells = "x".join(map(str, cut[0].shape[:0:-1]))
            for verdict, score in zip(VERDICTS, verdicts(cut, latent_space(name)), strict=True):
                lines.append(table.row(name, cells, verdict, *score.cells()))
    return "\n".join(lines)


@click.command(cls=options.Command)
@click.option("--photos", type=FOLDER, required=True, help="Folder with the folders train and val.")
@click.option(
    "--teachers",
    type=FOLDER,
    required=True,
    help="Folder with a SPACE_autoencoder.py for each space, as --teacher takes them.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    help="Folder for the results. Latents in it are used again.",
)
def main(photos: Path, teachers: Path, output: Path) -> None:
    """Writes statistics.json, and prints how reliably the statistics determine spaces and normalisations."""
    output.mkdir(parents=True, exist_ok=True)
    found = {name: statistics(latents(name, "train", photos, teachers, output)) for name in SPACES}
    (output / "statistics.json").write_text(json.dumps(found, indent=2) + "\n")
    click.echo(report({name: latents(name, "val", photos, teachers, output) for name in SPACES}))


if __name__ == "__main__":
    main()
