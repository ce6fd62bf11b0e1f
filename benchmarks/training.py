"""What a training run makes of a machine: ``python -m benchmarks.training [--device cuda]``.

Photographs and latents are made up, everything else is the real thing, for the same steps each time: the loader alone,
the steps alone with lessons made before, and both together as in a run. Lessons from threads come in bunches: there the
mean counts, not the median.

Multiply-adds of a step are counted by ``torch.utils.flop_counter``: matrix products, convolutions and attention,
forward and backward, whatever precision autocast gives them; element-wise work is not counted. Muon's Newton-Schulz
products are, and are given on their own too. The machine's peak is measured with one large matrix product in the same
precision, so the fraction of it says how far from the arithmetic limit training is.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import statistics
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import click
import numpy as np
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from infgen_export.model import PRESETS, InfGen
from infgen_training.config import PARTS, TrainConfig
from infgen_training.data import LatentCache, Sampler, random_view
from infgen_training.train import Lesson, Trainer, lesson, lessons, make_sampler

PHOTOS, VIEWS = 4, 400
PHOTO_SIZE = (1536, 1024)
PRODUCT = {"cuda": 4096, "cpu": 1024}
"""Rows and columns of the matrix product that the peak is measured with."""


@dataclass(frozen=True)
class Times:
    """Seconds of each of some steps.

    Attributes:
        seconds: A step each; on a GPU of a run together, from one step's launch to the next one's.
        total: Seconds of all of them until the last was done.
    """

    seconds: list[float]
    total: float

    @property
    def median(self) -> float:
        """Of a step."""
        return statistics.median(self.seconds)

    @property
    def mean(self) -> float:
        """Of a step."""
        return self.total / len(self.seconds)


def make_photos(count: int, size: tuple[int, int]) -> list[Image.Image]:
    """Photographs of nothing: noise, enlarged."""
    rng = np.random.default_rng(0)
    small = (max(1, size[1] // 8), max(1, size[0] // 8), 3)
    pictures = (Image.fromarray(rng.integers(0, 256, small, dtype=np.uint8)) for _ in range(count))
    return [picture.resize(size, Image.Resampling.BICUBIC) for picture in pictures]


def make_views(config: TrainConfig, photos: list[Image.Image]) -> LatentCache:
    """A cache of random views with random latents."""
    rng = np.random.default_rng(config.seed)
    shapes = itertools.islice(itertools.cycle(config.shapes), config.views)
    views = [random_view(rng, photos, shape, config.max_reduction) for shape in shapes]
    generator = torch.Generator().manual_seed(config.seed)
    latents = [torch.randn(config.latent_channels, *view.cells, generator=generator).half() for view in views]
    return LatentCache(views, latents)


def make_trainer(config: TrainConfig, device: torch.device) -> Trainer:
    """A trainer of a new model, the same for the same config."""
    torch.manual_seed(config.seed)
    model = InfGen(PRESETS[config.preset](config.latent_space, config.latent_channels))
    return Trainer(config, model, device)


def finish(device: torch.device) -> None:
    """Waits until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def intervals(work: Iterable[object], device: torch.device, warmup: int) -> Times:
    """Times each item that ``work`` yields, after the first few."""
    seconds: list[float] = []
    begin = last = time.perf_counter()
    for index, _ in enumerate(work):
        if index < warmup:
            finish(device)
            begin = last = time.perf_counter()
            continue
        now = time.perf_counter()
        seconds.append(now - last)
        last = now
    finish(device)
    return Times(seconds, time.perf_counter() - begin)


def alternate(trainers: list[Trainer], prepared: list[Lesson], device: torch.device, warmup: int) -> list[Times]:
    """Steps of several trainers on the same lessons, in turns, so that a busy machine slows all of them alike."""
    samples: list[list[float]] = [[] for _ in trainers]
    for index, (batch, native) in enumerate(prepared):
        for trainer, seconds in zip(trainers, samples, strict=True):
            begin = time.perf_counter()
            trainer.train_step(batch, native)
            finish(device)
            if index >= warmup:
                seconds.append(time.perf_counter() - begin)
    return [Times(seconds, sum(seconds)) for seconds in samples]


def multiply_adds(trainer: Trainer, prepared: list[Lesson]) -> tuple[float, float]:
    """Multiply-adds of all steps on some lessons, and those of the optimiser among them."""
    with FlopCounterMode(display=False) as all_of_it:
        for batch, native in prepared:
            trainer.train_step(batch, native)
    for group in trainer.optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    with FlopCounterMode(display=False) as optimizer:
        trainer.optimizer.step()
    return all_of_it.get_total_flops() / 2, len(prepared) * optimizer.get_total_flops() / 2


def peak(device: torch.device, dtype: torch.dtype, repeat: int = 20) -> float:
    """Multiply-adds a second of one large matrix product."""
    side = PRODUCT.get(device.type, PRODUCT["cpu"])
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))

    def products() -> Iterator[None]:
        for _ in range(repeat + 5):
            torch.mm(left, right)
            finish(device)
            yield

    return side**3 / intervals(products(), device, warmup=5).median


def pictures(prepared: list[Lesson]) -> tuple[int, float]:
    """Tiles of some lessons, and their pixels in millions."""
    targets = [batch.target for pair in prepared for batch in pair if batch is not None]
    return sum(len(target) for target in targets), sum(t.shape[0] * t.shape[2] * t.shape[3] for t in targets) / 1e6


def run_together(trainer: Trainer, sampler: Sampler, config: TrainConfig, warmup: int) -> Times:
    """Steps as a run does them: lessons made ahead in threads, losses looked at later."""

    def steps() -> Iterator[None]:
        for batch, native in lessons(sampler, config, 0, pin=trainer.device.type == "cuda"):
            trainer.train_step(batch, native)
            yield

    return intervals(steps(), trainer.device, warmup)


def line(name: str, times: Times) -> None:
    """One line of the table."""
    figures = (1e3 * times.median, 1e3 * times.mean, 1 / times.mean)
    click.echo(f"| {name} | " + " | ".join(f"{figure:.1f}" for figure in figures) + " |")


@click.command()
@click.option("--device", "name", default="cuda" if torch.cuda.is_available() else "cpu", show_default=True)
@click.option("--preset", type=click.Choice(list(PRESETS)), default="edge", show_default=True)
@click.option("--part", type=click.Choice(PARTS), default="all", show_default=True)
@click.option("--cells", default=TrainConfig.cells, show_default=True, help="Latent cells a batch.")
@click.option("--largest", default=128, show_default=True, help="Leaves out views of more cells a side than this.")
@click.option("--steps", default=20, show_default=True, help="Steps to time.")
@click.option("--warmup", default=3, show_default=True, help="Steps before them.")
@click.option("--loaders", default=os.cpu_count() or 1, show_default=True, help="Threads that make batches.")
@click.option("--compile", "compiled", is_flag=True, help="Also steps of a compiled model, in turns with the other.")
def main(
    name: str,
    preset: str,
    part: str,
    cells: int,
    largest: int,
    steps: int,
    warmup: int,
    loaders: int,
    compiled: bool,
) -> None:
    """Times the loader, training steps and both together, and compares them with the machine's peak."""
    device = torch.device(name)
    shapes = tuple(shape for shape in TrainConfig.shapes if max(shape) <= largest) or ((largest, largest),)
    config = TrainConfig(
        preset=preset,
        part=part,
        cells=cells,
        steps=warmup + steps,
        loaders=loaders,
        shapes=shapes,
        views=VIEWS,
        trunk_rest=0,
    )
    photos = make_photos(PHOTOS, PHOTO_SIZE)
    sampler = make_sampler(config, photos, make_views(config, photos))
    host, pin = torch.device("cpu"), device.type == "cuda"

    click.echo("| | median ms | mean ms | a second |\n|---|---|---|---|")
    prepared: list[Lesson] = []

    def one_by_one() -> Iterator[None]:
        for step in range(config.steps):
            prepared.append(lesson(sampler, config, step, pin))
            yield

    line("loader, no threads", intervals(one_by_one(), host, warmup))
    for threads in sorted({1, loaders}):
        # Timed from the start: threads that had a few batches ready would look faster than they are.
        ahead = lessons(sampler, dataclasses.replace(config, loaders=threads), 0, pin)
        line(f"loader, {threads} thread{'s' * (threads > 1)}", intervals(ahead, host, warmup=0))

    trainers = [make_trainer(config, device)]
    if compiled:
        trainers.append(make_trainer(dataclasses.replace(config, compile=True), device))
        # Some lessons' shapes make it compile again: all of them come once before they are timed.
        (first,) = alternate(trainers[1:], prepared, device, warmup=0)
    alone = alternate(trainers, prepared, device, warmup)
    for kind, times in zip(("", ", compiled"), alone, strict=False):
        line(f"step alone{kind}", times)
    together = run_together(trainers[-1], sampler, config, warmup)
    line("step and loader together", together)

    if compiled:
        ratio = statistics.median(b / a for a, b in zip(alone[0].seconds, alone[1].seconds, strict=True))
        click.echo(f"compiled: {ratio:.2f} of the seconds a step, after {first.total:.0f} s for the first ones")
    report(config, device, trainers[0], prepared[warmup:], together)


def report(config: TrainConfig, device: torch.device, trainer: Trainer, prepared: list[Lesson], times: Times) -> None:
    """Says what the steps were worth.

    Args:
        config: Of the run.
        device: Where it was.
        trainer: Not compiled: what it does is counted, on the same lessons again.
        prepared: What was learnt from.
        times: Of the run.
    """
    count, pixels = pictures(prepared)
    click.echo(f"{count / times.total:.1f} pictures a second, {pixels / times.total:.2f} megapixels a second")
    products, optimizer = multiply_adds(trainer, prepared)
    click.echo(
        f"{products / len(prepared) / 1e9:.1f} G multiply-adds a step, {100 * optimizer / products:.1f} % of them the "
        f"optimiser's"
    )
    dtype = torch.bfloat16 if config.bfloat16 else torch.float32
    limit, rate = peak(device, dtype), products / times.total
    click.echo(
        f"peak of a matrix product in {str(dtype).removeprefix('torch.')}: {limit / 1e9:.1f} G multiply-adds a second; "
        f"training: {rate / 1e9:.1f}, {100 * rate / limit:.1f} %"
    )


if __name__ == "__main__":
    main()
