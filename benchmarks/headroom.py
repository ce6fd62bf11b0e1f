"""What a better enlargement could win: ``python -m benchmarks.headroom CHECKPOINT --photos DIR --teacher FILE``.

A small residual network learns to enlarge, once our picture at 1x and once the true small image, on the same crops and
for the same steps. What it wins over bicubic on photographs that were kept out says what is left to be had behind the
picture at 1x, and the same of the true small image that the network and its training are not what limits it.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence
from pathlib import Path

import click
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from infgen_export.checkpoint import load_checkpoint
from infgen_export.model import InfGen
from infgen_export.model.layers import ResidualBlock
from infgen_training.config import TrainConfig
from infgen_training.data import to_tensor
from infgen_training.evaluate import Task
from infgen_training.teacher import Teacher

SCALE = 2
CROP, PATCH, BATCH = 512, 96, 8
SOURCES = ("our picture at 1x", "the true small image")
Example = dict[str, Tensor]
"""Images [3, h, w] of each of ``SOURCES``, and ``"truth"``, which is ``SCALE`` times as large."""


class Enlarger(nn.Module):
    """Bicubic enlargement and what six 3x3 convolutions add to it; at first, nothing."""

    def __init__(self, width: int = 48, blocks: int = 3) -> None:
        super().__init__()
        self.enter = nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.Sequential(*(ResidualBlock(width) for _ in range(blocks)))
        self.leave = nn.Conv2d(width, 3 * SCALE**2, 3, padding=1)
        for parameter in self.leave.parameters():
            nn.init.zeros_(parameter)

    def forward(self, image: Tensor) -> Tensor:
        """[B, 3, h, w] to [B, 3, SCALE h, SCALE w]."""
        added = F.pixel_shuffle(self.leave(self.blocks(self.enter(image - 0.5))), SCALE)
        return F.interpolate(image, scale_factor=SCALE, mode="bicubic") + added


@torch.inference_mode()
def example(photo: Image.Image, box: tuple[int, int, int, int], model: InfGen, teacher: Teacher) -> Example:
    """What is learnt from, or measured on, of a part of a photograph (left, top, right, bottom)."""
    task = Task.of(photo.crop(box), SCALE, teacher)
    decoded = model(task.latent, task.small.shape[:2])[0].clamp(0, 1)
    return {SOURCES[0]: decoded, SOURCES[1]: to_tensor(task.small), "truth": to_tensor(task.truth)}


def examples(
    photos: Sequence[Path], model: InfGen, teacher: Teacher, crops: int, kept_out: Sequence[str]
) -> tuple[list[Example], list[Example]]:
    """Random crops of the photographs to learn from, and the middle of those that are kept out."""
    generator = random.Random(0)
    learnt, measured = [], []
    for file in tqdm(photos, desc="pictures"):
        photo = Image.open(file).convert("RGB")
        if file.stem in kept_out:
            width, height = (min(side, most) for side, most in zip(photo.size, (1024, 768), strict=True))
            left, top = (photo.width - width) // 2, (photo.height - height) // 2
            measured.append(example(photo, (left, top, left + width, top + height), model, teacher))
            continue
        for _ in range(crops):
            left, top = (generator.randint(0, side - CROP) for side in photo.size)
            learnt.append(example(photo, (left, top, left + CROP, top + CROP), model, teacher))
    return learnt, measured


def train(source: str, learnt: Sequence[Example], steps: int) -> Enlarger:
    """An enlarger of one of ``SOURCES``."""
    torch.manual_seed(0)
    generator = random.Random(1)
    network = Enlarger()
    optimizer = torch.optim.Adam(network.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.5e-3, steps, pct_start=0.1)
    for _ in tqdm(range(steps), desc=source):
        pairs = []
        for chosen in generator.choices(learnt, k=BATCH):
            y, x = (generator.randint(0, side - PATCH) for side in chosen[source].shape[1:])
            image = chosen[source][:, y : y + PATCH, x : x + PATCH]
            truth = chosen["truth"][:, SCALE * y : SCALE * (y + PATCH), SCALE * x : SCALE * (x + PATCH)]
            pairs.append((image, truth))
        images, truths = (torch.stack(tensors) for tensors in zip(*pairs, strict=True))
        F.l1_loss(network(images), truths).backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return network.eval()


@torch.inference_mode()
def measure(network: Enlarger, source: str, measured: Sequence[Example]) -> float:
    """Mean PSNR of 8-bit pictures, in decibels."""
    errors = []
    for each in measured:
        image = network(each[source][None])[0].clamp(0, 1).mul(255).round() / 255
        errors.append(-10 * F.mse_loss(image, each["truth"]).log10().item())
    return statistics.fmean(errors)


_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)


@click.command()
@click.argument("checkpoint", type=_FOLDER)
@click.option("--photos", type=_FOLDER, required=True, help="Photographs, among them those kept out of training.")
@click.option("--teacher", type=click.Path(exists=True, dir_okay=False, path_type=Path), required=True)
@click.option("--steps", default=500, show_default=True)
@click.option("--crops", default=2, show_default=True, help="Of each photograph.")
def main(checkpoint: Path, photos: Path, teacher: Path, steps: int, crops: int) -> None:
    """Prints what a network that only enlarges wins over bicubic, behind CHECKPOINT's picture and the true one."""
    files = sorted(photos.iterdir())
    model, pair = load_checkpoint(checkpoint), Teacher.load(teacher)
    learnt, measured = examples(files, model, pair, crops, TrainConfig().exclude)
    click.echo("| enlarged twice | bicubic | network | won, dB |\n|---|---|---|---|")
    for source in SOURCES:
        before, after = (measure(network, source, measured) for network in (Enlarger(), train(source, learnt, steps)))
        click.echo(f"| {source} | {before:.2f} | {after:.2f} | {after - before:+.2f} |")


if __name__ == "__main__":
    main()
