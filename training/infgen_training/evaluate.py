"""Measures a checkpoint on photographs: ``python -m infgen_training.evaluate CHECKPOINT --photos DIR --teacher FILE``.

At a scale s of 1 or more, the true picture is the photograph. The latent is made from the photograph reduced by s, so
every method has to restore the detail that the reduction removed. Below scale 1, the latent is made from the
photograph, and the true picture is the reduced photograph.
"""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from infgen_model import InfGen
from infgen_model.checkpoint import load_checkpoint
from infgen_rt.common.pixels import psnr
from infgen_rt.errors import InputError
from infgen_training.config import PATCH
from infgen_training.metrics import compare, mean
from infgen_training.options import FILE, FOLDER, MIDDLE
from infgen_training.perception import Eye, frechet_distance
from infgen_training.photos import middle_of, open_photo, photo_files
from infgen_training.requests import parse_scales, read_baseline, read_places
from infgen_training.teacher import AUTOENCODER, AUTOENCODER_HELP, Teacher, load_function
from infgen_training.views import Pixels, to_pixels, to_tensor

BICUBIC, LANCZOS = Image.Resampling.BICUBIC, Image.Resampling.LANCZOS
OURS, TEACHER, ENLARGER = "infgen", "teacher", "Real-ESRGAN"
CROP = 320
_COLUMNS = {
    "lpips": ("LPIPS", ".3f"),
    "frechet": ("patch Frechet", ".1f"),
    "psnr": ("PSNR", ".2f"),
    "ssim": ("SSIM", ".4f"),
    "ssimulacra2": ("SSIMULACRA2", ".1f"),
    "flat": ("flat", ".2f"),
    "vivid": ("vivid", ".2f"),
}
"""Column heading and number format of each metric in the table."""


@dataclass(frozen=True)
class Task:
    """One photograph at one scale.

    Attributes:
        truth: The true picture, uint8 [H, W, 3].
        small: The picture that was encoded, uint8 [8h, 8w, 3]. The true picture is ``scale`` times as large.
        latent: The latent of that picture, [1, C, h, w].
    """

    truth: Pixels
    small: Pixels
    latent: Tensor

    @classmethod
    def of(cls, photo: Image.Image, scale: float, teacher: Teacher) -> Task:
        """Crops an RGB photograph to whole cells, reduces it and encodes it. See ``evaluate`` for the scale.

        Raises:
            InputError: The photograph is smaller than a cell at this scale.
        """
        shrink = max(1.0, 1 / scale)
        cells = [int(side / (PATCH * scale * shrink)) for side in photo.size]
        width, height = (round(PATCH * n * scale) for n in cells)
        if min(*cells, width, height) < 1:
            raise InputError(f"a photograph of {photo.width}x{photo.height} pixels is too small for scale {scale:g}")
        cut = photo.crop((0, 0, round(width * shrink), round(height * shrink)))
        truth = np.asarray(cut.resize((width, height), BICUBIC))
        small = np.asarray(cut.resize((PATCH * cells[0], PATCH * cells[1]), BICUBIC))
        return cls(truth, small, teacher.encode(to_tensor(small)[None]))

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the true picture."""
        return self.truth.shape[0], self.truth.shape[1]


def check_space(model: InfGen, teacher: Teacher) -> None:
    """Checks that the latents of a teacher and of a model have the same number of channels.

    Raises:
        InputError: The numbers differ.
    """
    channels, expected = teacher.channels, model.config.latent_channels
    if channels != expected:
        raise InputError(
            f"the teacher's latents have {channels} channels, those of {model.config.name} {expected}: pass an "
            f"autoencoder of the latent space {model.config.latent_space}"
        )


def resize(pixels: Pixels, size: tuple[int, int], resample: Image.Resampling) -> Pixels:
    """Resamples a picture, uint8 [H, W, 3], to a size (height, width)."""
    return np.asarray(Image.fromarray(pixels).resize((size[1], size[0]), resample))


def decode(model: InfGen, task: Task) -> Pixels:
    """Decodes a latent as the runtime does: at the nearest trained scale, and then resampled to the wanted one."""
    small = (task.small.shape[0], task.small.shape[1])
    wanted = task.size[0] / small[0]
    low, high = model.config.scale_range
    trained = min(max(wanted, low), high)
    size = task.size if trained == wanted else (round(small[0] * trained), round(small[1] * trained))
    return resize(to_pixels(model(task.latent, size)), task.size, LANCZOS)


@torch.inference_mode()
def methods(task: Task, model: InfGen, teacher: Teacher, enlarge: nn.Module | None, ours: bool) -> dict[str, Pixels]:
    """Makes a picture with our model and with every other method. All results have the size of the true picture.

    Args:
        task: The photograph and the scale.
        model: Our model.
        teacher: The autoencoder whose decode the other methods enlarge.
        enlarge: A network that enlarges pictures [B, 3, H, W] in [0, 1] four times. It is used above scale 1 only.
        ours: Whether to use only our model.
    """
    found = {OURS: decode(model, task)}
    if ours:
        return found
    decoded = teacher.decode(task.latent)
    small = to_pixels(decoded)
    if small.shape == task.truth.shape:
        return found | {TEACHER: small}
    found[f"{TEACHER} + bicubic"] = resize(small, task.size, BICUBIC)
    if enlarge is not None and prod(task.size) > prod(small.shape[:2]):
        large = enlarge(decoded.contiguous(memory_format=torch.channels_last))
        found[f"{TEACHER} + {ENLARGER}"] = resize(to_pixels(large.clamp(0, 1)), task.size, LANCZOS)
    return found


@torch.inference_mode()
def extras(photo: Image.Image, model: InfGen, teacher: Teacher) -> dict[str, float]:
    """Measures the consistency across scales, and the loss of encoding and decoding.

    All results are PSNRs in decibels. ``consistency`` compares two decodes of a latent at scale 1: one is decoded at
    scale 4 and then reduced. ``round_trip`` compares a reduced photograph with the same picture after encoding and
    decoding by the model, and ``round_trip_teacher`` does the same for the teacher. ``re_encoded`` compares a picture
    that was decoded at scale 4 with the same picture after encoding and decoding at scale 1. Editing does this.
    """
    task = Task.of(photo, 4.0, teacher)
    small = (task.small.shape[0], task.small.shape[1])
    large = to_pixels(model(task.latent, task.size))
    image = to_tensor(task.small)[None]
    return {
        "consistency": psnr(resize(large, small, BICUBIC), to_pixels(model(task.latent, small)), 255),
        "round_trip": psnr(to_pixels(model(model.encode(image), small)), task.small, 255),
        "round_trip_teacher": psnr(to_pixels(teacher.decode(teacher.encode(image))), task.small, 255),
        "re_encoded": psnr(to_pixels(model(model.encode(to_tensor(large)[None]), task.size)), large, 255),
    }


def contact_sheet(rows: Sequence[Mapping[str, Pixels]], places: Sequence[tuple[float, float]]) -> Image.Image:
    """Draws crops of pictures at 100 %, with one row per photograph and scale.

    Args:
        rows: For each row, the pictures to crop, by name. They have the same size.
        places: For each row, the centre of the crops, as fractions of the width and the height, in [0, 1].
    """
    sheet = Image.new("RGB", (CROP * max(len(row) for row in rows), CROP * len(rows)))
    for y, (row, (across, down)) in enumerate(zip(rows, places, strict=True)):
        for x, pixels in enumerate(row.values()):
            top, left = (
                round(min(max(0.0, place * side - CROP / 2), max(0, side - CROP)))
                for place, side in zip((down, across), pixels.shape[:2], strict=True)
            )
            sheet.paste(Image.fromarray(pixels[top : top + CROP, left : left + CROP]), (x * CROP, y * CROP))
    return sheet


@dataclass
class Row:
    """The measurements of one method at one scale, with one entry per picture in each list."""

    scores: list[dict[str, float]] = field(default_factory=list)
    features: list[NDArray[np.float64]] = field(default_factory=list)

    def means(self, truth: Sequence[NDArray[np.float64]]) -> dict[str, float | None]:
        """The mean of each metric over all pictures, and the Frechet distance from the true pictures' features."""
        values = {name: mean([score[name] for score in self.scores]) for name in self.scores[0]}
        return values | ({"frechet": frechet_distance(self.features, truth)} if self.features else {})


def evaluate(
    model: InfGen,
    teacher: Teacher,
    photos: Sequence[Path],
    scales: Sequence[float],
    *,
    enlarge: nn.Module | None = None,
    eye: Eye | None = None,
    places: Mapping[str, tuple[float, float]] | None = None,
    baseline: Mapping[str, Any] | None = None,
    middle: int | None = None,
) -> tuple[dict[str, Any], Image.Image]:
    """Measures every method on every photograph at every scale.

    Args:
        model: The model, in evaluation mode.
        teacher: The autoencoder that encodes the photographs. Its decode is what the model is compared with.
        photos: Files of the photographs.
        scales: Scales to measure. A scale is the number of output pixels per cell, divided by 8.
        enlarge: As for ``methods``.
        eye: Measures LPIPS and patch Frechet distances. With None, these are left out.
        places: Centres of the contact sheet's crops, by the photograph's file name without its ending. They are
            fractions of the width and the height. With None, the sheet shows the middles of the first four photographs.
        baseline: An earlier report for the same photographs and teacher. The figures of all other methods are taken
            from it instead of being measured.
        middle: If given, only a square in the middle of each photograph is used, and this is its side in pixels.

    Returns:
        A report and a contact sheet. Each row of the sheet shows the true picture first, then each method. The report
        is ``{"scales": {scale: {method: {metric: mean}}}, "extras": {name: mean}, "pictures": count}``, with the names
        of the ``photographs`` and the ``middle``. A mean is ``None`` if no picture has a value for the metric.

    Raises:
        InputError: The teacher's latents have another number of channels than the model's, or a photograph is damaged
            or too small.
    """
    check_space(model, teacher)
    places = dict.fromkeys([file.stem for file in photos[:4]], (0.5, 0.5)) if places is None else places
    rows: dict[float, dict[str, Row]] = {scale: {} for scale in scales}
    truths: dict[float, list[NDArray[np.float64]]] = {scale: [] for scale in scales}
    shown: list[tuple[dict[str, Pixels], tuple[float, float]]] = []
    more: list[dict[str, float]] = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # each metric runs on one thread only
        for file in tqdm(photos, desc="evaluate", disable=None):
            photo = middle_of(open_photo(file), middle)
            for scale in scales:
                task = Task.of(photo, scale, teacher)
                pictures = methods(task, model, teacher, enlarge, ours=baseline is not None)
                scores = pool.map(partial(compare, truth=task.truth), pictures.values())
                if eye is not None:
                    truths[scale].append(eye.features.of(task.truth))
                for (name, picture), score in zip(pictures.items(), scores, strict=True):
                    row = rows[scale].setdefault(name, Row())
                    row.scores.append(score if eye is None else score | {"lpips": eye.lpips.of(picture, task.truth)})
                    if eye is not None:
                        row.features.append(eye.features.of(picture))
                if file.stem in places:
                    shown.append(({"truth": task.truth, **pictures}, places[file.stem]))
            more.append(extras(photo, model, teacher))
    means = {
        f"{scale:g}": {name: row.means(truths[scale]) for name, row in by_method.items()}
        for scale, by_method in rows.items()
    }
    if baseline is not None:
        means = {scale: {**baseline["scales"][scale], **by_method} for scale, by_method in means.items()}
    summary = {name: statistics.fmean(entry[name] for entry in more) for name in more[0]}
    sheet = contact_sheet(*zip(*shown, strict=True)) if shown else Image.new("RGB", (1, 1))
    measured = {"pictures": len(photos), "photographs": [file.stem for file in photos], "middle": middle}
    return {**measured, "scales": means, "extras": summary}, sheet


def table(report: Mapping[str, Any]) -> str:
    """Formats a report of ``evaluate`` as a Markdown table."""
    names = [*_COLUMNS]
    lines = [f"| scale | method | {' | '.join(_COLUMNS[name][0] for name in names)} |", "|---" * (2 + len(names)) + "|"]
    for scale, by_method in report["scales"].items():
        for method, means in by_method.items():
            values = (("" if means.get(name) is None else format(means[name], _COLUMNS[name][1])) for name in names)
            lines.append(f"| {scale} | {method} | {' | '.join(values)} |")
    extra = report["extras"]
    lines += [
        "",
        f"Consistency, 4x reduced against 1x: {extra['consistency']:.2f} dB. Encoder round trip: "
        f"{extra['round_trip']:.2f} dB (teacher {extra['round_trip_teacher']:.2f} dB), and "
        f"{extra['re_encoded']:.2f} dB for the picture at 4x. "
        f"Means over {report['pictures']} pictures.",
    ]
    return "\n".join(lines)


def _unlike(earlier: Mapping[str, Any], files: Sequence[Path], middle: int | None, scales: Sequence[float]) -> str:
    """Why an earlier report cannot be the baseline of an evaluation. Empty if it can."""
    if earlier.get("photographs") != [file.stem for file in files]:
        return "is not of the same photographs"
    if earlier.get("middle") != middle:
        return f"is of the middle {earlier.get('middle')}, not {middle}"
    missing = [f"{scale:g}" for scale in scales if f"{scale:g}" not in earlier["scales"]]
    return f"lacks scales {', '.join(missing)}" if missing else ""


@click.command()
@click.argument("checkpoint", type=FOLDER)
@click.option("--photos", type=FOLDER, required=True, help="Folder of photographs that were not trained on.")
@click.option("--teacher", type=AUTOENCODER, required=True, help=AUTOENCODER_HELP)
@click.option("--enlarger", type=FILE, help="Python file with a network that enlarges the teacher's decode 4 times.")
@click.option("--function", default="load_x4plus", show_default=True, help="Name of the function in that file.")
@click.option("--eye/--no-eye", default=True, show_default=True, help="Measure LPIPS and patch Frechet distances.")
@click.option("--scales", default="1,2,4", show_default=True, help="Scales, separated by commas.")
@click.option("--only", multiple=True, help="Name of a photograph, without its ending; repeatable. Default: all.")
@click.option("--middle", type=MIDDLE, help="Pixels per side of the middle square to use.")
@click.option("--places", type=FILE, help="JSON file with the crops of the contact sheet, by name of photograph.")
@click.option(
    "--baseline",
    type=FILE,
    help="report.json of the same photographs and teacher. Only the model is measured again.",
)
@click.option("-o", "--output", type=click.Path(file_okay=False, path_type=Path), help="Folder for report and sheet.")
def main(
    checkpoint: Path, photos: Path, teacher: Path, enlarger: Path | None, function: str, eye: bool, scales: str,
    only: tuple[str, ...], middle: int | None, places: Path | None, baseline: Path | None, output: Path | None,
) -> None:  # fmt: skip
    """Compares CHECKPOINT with the teacher in a table. With -o, also writes report.json, report.md and sheet.png."""
    try:
        values, spots = parse_scales(scales), read_places(places) if places else None
        earlier = read_baseline(baseline) if baseline else None
        files = [file for file in photo_files(photos) if not only or file.stem in only]
        if spots and (unknown := sorted(spots.keys() - {file.stem for file in files})):
            raise InputError(f"{places} names {' and '.join(unknown)}, which are no photographs of this evaluation")
        if unknown := sorted(set(only) - {file.stem for file in files}):
            raise InputError(f"no photograph in {photos} is named {' or '.join(unknown)}: give names without endings")
        if earlier is not None and (problem := _unlike(earlier, files, middle, values)):
            raise click.BadParameter(
                f"{baseline} {problem}: leave it out, and all is measured", param_hint="--baseline"
            )
        if output:  # before hours of work
            output.mkdir(parents=True, exist_ok=True)
        enlarge = load_function(enlarger, function)() if enlarger else None
        if enlarge is not None:
            enlarge = enlarge.to(memory_format=torch.channels_last)
        report, sheet = evaluate(
            load_checkpoint(checkpoint), Teacher.load(teacher), files, values, enlarge=enlarge,
            eye=Eye() if eye else None, places=spots, baseline=earlier, middle=middle,
        )  # fmt: skip
    except (InputError, OSError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(table(report))
    if output:
        (output / "report.json").write_text(json.dumps(report, indent=2) + "\n")
        (output / "report.md").write_text(table(report) + "\n")
        sheet.save(output / "sheet.png")


if __name__ == "__main__":
    main()
