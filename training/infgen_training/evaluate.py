"""Measures a checkpoint on photographs: ``python -m infgen_training.evaluate CHECKPOINT --photos DIR --teacher FILE``.

For a scale s the true picture is the photograph; the latent is made from its copy reduced s times, so every method has
to bring back what the reduction took. Below 1 the latent is made from the photograph and the truth is reduced.
"""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from infgen_export.checkpoint import load_checkpoint
from infgen_export.model import InfGen
from infgen_rt.pixels import to_bytes
from infgen_training.data import PATCH, to_tensor
from infgen_training.metrics import METRICS, compare, mean, psnr
from infgen_training.teacher import Teacher

Pixels = NDArray[np.uint8]
BICUBIC, LANCZOS = Image.Resampling.BICUBIC, Image.Resampling.LANCZOS
OURS = "infgen"
CROP = 320


@dataclass(frozen=True)
class Task:
    """One photograph at one scale.

    Attributes:
        truth: The picture to reach, [H, W, 3].
        small: What the latent is made of; 1/scale of the truth's size.
        latent: [1, C, h, w].
    """

    truth: Pixels
    small: Pixels
    latent: Tensor

    @classmethod
    def of(cls, photo: Image.Image, scale: float, teacher: Teacher) -> Task:
        """Cuts the photograph to whole cells, reduces it and encodes it."""
        shrink = max(1.0, 1 / scale)
        cells = [int(side / (PATCH * scale * shrink)) for side in photo.size]
        width, height = (round(PATCH * n * scale) for n in cells)
        cut = photo.crop((0, 0, round(width * shrink), round(height * shrink)))
        truth = np.asarray(cut.resize((width, height), BICUBIC))
        small = np.asarray(cut.resize((PATCH * cells[0], PATCH * cells[1]), BICUBIC))
        return cls(truth, small, teacher.encode(to_tensor(small)[None]))

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the truth."""
        return self.truth.shape[0], self.truth.shape[1]


def to_pixels(image: Tensor) -> Pixels:
    """[1, 3, H, W] to bytes [H, W, 3], rounded as the runtime does."""
    return to_bytes(image[0].float().numpy())


def resize(pixels: Pixels, size: tuple[int, int], resample: Image.Resampling) -> Pixels:
    """Resamples to (height, width)."""
    return np.asarray(Image.fromarray(pixels).resize((size[1], size[0]), resample))


def decode(model: InfGen, task: Task) -> Pixels:
    """Our picture as the runtime makes it: outside the trained scales at the nearest of them, and resampled."""
    small = (task.small.shape[0], task.small.shape[1])
    wanted = task.size[0] / small[0]
    low, high = model.config.scale_range
    trained = min(max(wanted, low), high)
    size = task.size if trained == wanted else (round(small[0] * trained), round(small[1] * trained))
    return resize(to_pixels(model(task.latent, size)), task.size, LANCZOS)


@torch.inference_mode()
def methods(task: Task, model: InfGen, teacher: Teacher) -> dict[str, Pixels]:
    """What each way of making the picture gives; at scale 1 there is nothing to enlarge.

    The last one bounds what a better enlargement could win: the truth, with no error but those of our picture at 1x.
    """
    ours, baseline = decode(model, task), to_pixels(teacher.decode(task.latent))
    small = (task.small.shape[0], task.small.shape[1])
    if task.small.shape == task.truth.shape:
        return {OURS: ours, "teacher": baseline}
    enlarged = resize(to_pixels(model(task.latent, small)), task.size, BICUBIC)
    true = resize(task.small, task.size, BICUBIC)
    perfect = task.truth.astype(np.int16) + enlarged - true
    return {
        OURS: ours,
        OURS + " at 1x + bicubic": enlarged,
        "teacher + bicubic": resize(baseline, task.size, BICUBIC),
        "teacher + lanczos": resize(baseline, task.size, LANCZOS),
        "true small image + bicubic": true,
        OURS + " at 1x + perfect enlargement": perfect.clip(0, 255).astype(np.uint8),
    }


@torch.inference_mode()
def extras(photo: Image.Image, model: InfGen, teacher: Teacher) -> dict[str, float]:
    """Consistency across scales and the encoder's round trip, in decibels.

    ``consistency``: the 4x picture reduced to 1x against the 1x picture of the same latent. ``round_trip``: a
    photograph encoded and decoded again by the model, and by the teacher.
    """
    task = Task.of(photo, 4.0, teacher)
    small = (task.small.shape[0], task.small.shape[1])
    reduced = resize(to_pixels(model(task.latent, task.size)), small, BICUBIC)
    image = to_tensor(task.small)[None]
    return {
        "consistency": psnr(reduced, to_pixels(model(task.latent, small))),
        "round_trip": psnr(to_pixels(model(model.encode(image), small)), task.small),
        "round_trip_teacher": psnr(to_pixels(teacher.decode(teacher.encode(image))), task.small),
    }


def contact_sheet(rows: Sequence[Mapping[str, Pixels]]) -> Image.Image:
    """Crops at 100 %, a row each: the middle of every picture."""
    sheet = Image.new("RGB", (CROP * max(len(row) for row in rows), CROP * len(rows)))
    for y, row in enumerate(rows):
        for x, pixels in enumerate(row.values()):
            top, left = (max(0, (side - CROP) // 2) for side in pixels.shape[:2])
            sheet.paste(Image.fromarray(pixels[top : top + CROP, left : left + CROP]), (x * CROP, y * CROP))
    return sheet


def evaluate(
    model: InfGen,
    teacher: Teacher,
    photos: Sequence[Path],
    scales: Sequence[float],
    sheet: int = 4,
    baseline: Mapping[str, Any] | None = None,
) -> tuple[dict[str, Any], Image.Image]:
    """Measures every method on every photograph at every scale.

    Args:
        model: In evaluation mode.
        teacher: Makes the latents and is the baseline.
        photos: Files.
        scales: Output pixels a cell / 8.
        sheet: Photographs shown on the contact sheet.
        baseline: An earlier result for the same photographs and teacher, whose figures are taken for all that does not
            depend on the model.

    Returns:
        Means, as ``{"scales": {scale: {method: {metric: mean}}}, "extras": {name: mean}, "pictures": count}``, with
        ``None`` for what no picture has, and the contact sheet: truth, then each method in order.
    """
    results: dict[float, dict[str, list[dict[str, float]]]] = {scale: {} for scale in scales}
    more: list[dict[str, float]] = []
    rows: list[dict[str, Pixels]] = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # the metrics are NumPy code of one thread each
        for index, file in enumerate(tqdm(photos, desc="evaluate")):
            photo = Image.open(file).convert("RGB")
            for scale in scales:
                task = Task.of(photo, scale, teacher)
                pictures = methods(task, model, teacher)
                measured = [name for name in pictures if baseline is None or name.startswith(OURS)]
                scores = pool.map(partial(compare, truth=task.truth), [pictures[name] for name in measured])
                for name, score in zip(measured, scores, strict=True):
                    results[scale].setdefault(name, []).append(score)
                if index < sheet:
                    rows.append({"truth": task.truth, **pictures})
            more.append(extras(photo, model, teacher))
    means = {
        f"{scale:g}": {
            name: {metric: mean([entry[metric] for entry in entries]) for metric in METRICS}
            for name, entries in by_method.items()
        }
        for scale, by_method in results.items()
    }
    if baseline is not None:
        means = {scale: {**baseline["scales"][scale], **by_method} for scale, by_method in means.items()}
    summary = {name: statistics.fmean(entry[name] for entry in more) for name in more[0]}
    return {"pictures": len(photos), "scales": means, "extras": summary}, contact_sheet(rows)


def table(report: Mapping[str, Any]) -> str:
    """The report as a Markdown table."""
    lines = [
        "| scale | method | PSNR | SSIM | MS-SSIM | SSIMULACRA2 | flat | vivid |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for scale, by_method in report["scales"].items():
        for name, means in by_method.items():
            values = [f"{means['psnr']:.2f}", f"{means['ssim']:.4f}", f"{means['ms_ssim']:.4f}"]
            values.append(f"{means['ssimulacra2']:.1f}")
            values += ["" if means[kind] is None else f"{means[kind]:.2f}" for kind in ("flat", "vivid")]
            lines.append(f"| {scale} | {name} | {' | '.join(values)} |")
    extra = report["extras"]
    lines += [
        "",
        f"Consistency, 4x reduced against 1x: {extra['consistency']:.2f} dB. Encoder round trip: "
        f"{extra['round_trip']:.2f} dB (teacher {extra['round_trip_teacher']:.2f} dB). "
        f"Means over {report['pictures']} pictures.",
    ]
    return "\n".join(lines)


_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)


@click.command()
@click.argument("checkpoint", type=_FOLDER)
@click.option("--photos", type=_FOLDER, required=True, help="Folder of photographs, not trained on.")
@click.option("--teacher", type=click.Path(exists=True, dir_okay=False, path_type=Path), required=True)
@click.option("--scales", default="0.5,1,1.5,2,3,4,6", show_default=True, help="Comma-separated.")
@click.option("--limit", type=int, help="Only the first photographs.")
@click.option(
    "--baseline",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="report.json of the same photographs and teacher: measures only what depends on the model, half of the work.",
)
@click.option("-o", "--output", type=click.Path(file_okay=False, path_type=Path), help="Folder for report and sheet.")
def main(
    checkpoint: Path,
    photos: Path,
    teacher: Path,
    scales: str,
    limit: int | None,
    baseline: Path | None,
    output: Path | None,
) -> None:
    """Prints a table of CHECKPOINT against the teacher; writes report.json, report.md and sheet.png with -o."""
    files = sorted(file for file in photos.iterdir() if file.suffix in {".webp", ".png", ".jpg"})[:limit]
    values = [float(scale) for scale in scales.split(",")]
    earlier = json.loads(baseline.read_text()) if baseline else None
    if earlier is not None:
        missing = [f"{scale:g}" for scale in values if f"{scale:g}" not in earlier["scales"]]
        if missing or earlier["pictures"] != len(files):
            raise click.BadParameter(
                f"{baseline} is of {earlier['pictures']} photographs, not {len(files)}, or lacks scales {missing}: "
                "leave it out, and all is measured",
                param_hint="--baseline",
            )
    model = load_checkpoint(checkpoint)
    report, sheet = evaluate(model, Teacher.load(teacher), files, values, baseline=earlier)
    click.echo(table(report))
    if output:
        output.mkdir(parents=True, exist_ok=True)
        (output / "report.json").write_text(json.dumps(report, indent=2) + "\n")
        (output / "report.md").write_text(table(report) + "\n")
        sheet.save(output / "sheet.png")


if __name__ == "__main__":
    main()
