"""Trains a model: ``python -m infgen_training.train --photos DIR --teacher FILE -o RUN``.

A run is a folder: ``checkpoint/`` (averaged weights, what is exported), ``state.safetensors`` (all that resuming
needs), ``latents.safetensors`` (the cache), ``train.json`` (the config) and ``log.csv``. Running the command again
continues it.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

from infgen_export.checkpoint import load_checkpoint, save_checkpoint
from infgen_export.model import PRESETS, InfGen
from infgen_rt.errors import InputError
from infgen_rt.schema import parse
from infgen_training.config import TrainConfig
from infgen_training.data import Batch, LatentCache, Sampler, load_photos
from infgen_training.losses import Adversary, perceptual_distance
from infgen_training.optimizer import make_optimizer, set_learning_rate
from infgen_training.teacher import Teacher
from infgen_training.warmstart import copy_trunk

_LOSSES = ("l1", "perceptual", "adversarial", "encoder", "round_trip")
"""Columns of the log, after the step."""
_FIXED = (
    *("preset", "latent_space", "latent_channels", "trunk_from_teacher", "optimizer", "adversarial_weight"),
    *("seed", "shapes", "views", "max_reduction", "exclude"),
)
"""Fields that a run keeps: its cache and its state were made for them."""


class Trainer:
    """A model, its average, an optimiser and the step they have reached.

    Args:
        config: Of the run.
        model: Trained in place.
        device: Where it is trained.
        encoder: The teacher's, for the perceptual distance of its features.

    Raises:
        InputError: The perceptual distance needs something that is not at hand.
    """

    def __init__(
        self, config: TrainConfig, model: InfGen, device: torch.device, encoder: nn.Module | None = None
    ) -> None:
        self.config = config
        self.device = device
        self.step = 0
        # Convolutions in reduced precision are about a third faster in this layout (measured on a CPU).
        self.model = model.to(device).to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        self.average = AveragedModel(self.model, avg_fn=partial(_average, config.ema), use_buffers=True)
        self.optimizer = make_optimizer(self.model, config)
        if config.part == "encoder":
            # Its round trip leads through the decoder, which stays what it is.
            self.model.prefill.requires_grad_(False)
            self.model.decode.requires_grad_(False)
        self.perceptual = perceptual_distance(config.perceptual, encoder, device) if config.perceptual_weight else None
        self.adversary = Adversary(device, config.adversary_lr) if config.adversarial_weight else None

    def train_step(self, batch: Batch | None, native: Batch | None) -> dict[str, float]:
        """One step of the optimiser.

        Args:
            batch: What the decoder learns from, unless the encoder learns alone.
            native: Whole pictures at scale 1 for the encoder, on its turns.

        Returns:
            The losses, by name.
        """
        set_learning_rate(self.optimizer, self.config, self.step)
        if self.model.prefill.trunk is not None and batch is not None:
            self.model.prefill.trunk.requires_grad_(self.step >= self.config.trunk_rest)
        losses, weights = {}, {}
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.bfloat16):
            if batch is not None:
                batch = self._to_device(batch)
                image = self.model.decode(self.model.prefill(batch.latent), batch.grid)
                losses["l1"] = F.l1_loss(image.float(), batch.target)
                if self.perceptual is not None:
                    losses["perceptual"] = self.perceptual(image.float(), batch.target)
                    weights["perceptual"] = self.config.perceptual_weight
                if self.adversary is not None:
                    losses["adversarial"] = self.adversary(image, batch.target)
                    weights["adversarial"] = self.config.adversarial_weight
            if native is not None:
                native = self._to_device(native)
                latent = self.model.encode(native.target)
                losses["encoder"] = F.l1_loss(latent.float(), native.latent)
                if self.config.round_trip_weight:
                    image = self.model.decode(self.model.prefill(latent), native.grid)
                    losses["round_trip"] = F.l1_loss(image.float(), native.target)
                    weights["round_trip"] = self.config.round_trip_weight
        torch.stack([weights.get(name, 1.0) * loss for name, loss in losses.items()]).sum().backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.average.update_parameters(self.model)
        self.step += 1
        return {name: loss.item() for name, loss in losses.items()}

    def _to_device(self, batch: Batch) -> Batch:
        latent = batch.latent.to(self.device, memory_format=torch.channels_last)
        return Batch(latent, batch.grid.to(self.device), batch.target.to(self.device))

    @property
    def averaged(self) -> InfGen:
        """The model to evaluate and ship."""
        module: Any = self.average.module
        assert isinstance(module, InfGen)
        return module

    def _modules(self) -> dict[str, nn.Module]:
        """Every network that resuming needs."""
        modules: dict[str, nn.Module] = {"model": self.model, "average": self.averaged}
        return modules | ({"discriminator": self.adversary.discriminator} if self.adversary else {})

    def _optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """Every optimiser that resuming needs."""
        return {"optimizer": self.optimizer} | ({"adversary": self.adversary.optimizer} if self.adversary else {})

    def save(self, run: Path) -> None:
        """Writes checkpoint and state; each file appears whole or not at all."""
        save_checkpoint(run / "checkpoint", self.averaged)
        tensors: dict[str, Tensor] = {}
        for prefix, module in self._modules().items():
            tensors |= {f"{prefix}/{name}": value for name, value in module.state_dict().items()}
        for prefix, optimizer in self._optimizers().items():
            for index, state in optimizer.state_dict()["state"].items():
                tensors |= {f"{prefix}/{index}/{name}": value for name, value in state.items()}
        tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        partial = run / "state.safetensors.partial"
        save_file(tensors, partial, {"step": str(self.step)})
        os.replace(partial, run / "state.safetensors")

    def load(self, run: Path) -> None:
        """Reads what ``save`` wrote, exactly."""
        stored: dict[str, dict[str, Tensor]] = {}
        with safe_open(run / "state.safetensors", "pt") as file:
            self.step = int(file.metadata()["step"])
            for key in file.keys():  # noqa: SIM118 - not a dict
                prefix, name = key.split("/", 1)
                stored.setdefault(prefix, {})[name] = file.get_tensor(key)
        for prefix, module in self._modules().items():
            module.load_state_dict(stored[prefix])
        self.average.n_averaged.fill_(self.step)
        for prefix, optimizer in self._optimizers().items():
            state: dict[int, dict[str, Tensor]] = {}
            for name, value in stored[prefix].items():
                index, slot = name.split("/")
                state.setdefault(int(index), {})[slot] = value
            optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
        for group in self.optimizer.param_groups:
            group["step"] = self.step  # Muon counts by group, for the bias correction of its AdamW part


def _average(decay: float, mean: Tensor, value: Tensor, count: Tensor | int) -> Tensor:
    """Exponential moving average that forgets the first, untrained weights quickly."""
    return mean.lerp(value, max(1 - decay, 10 / (10 + int(count))))


def _batches(sampler: Sampler, config: TrainConfig, first: int) -> Iterator[tuple[Batch | None, Batch | None]]:
    """Batches from step ``first`` on, made ahead in threads (resampling releases the GIL)."""

    def make(step: int) -> tuple[Batch | None, Batch | None]:
        alone = config.part == "encoder"
        turn = alone or (config.part == "all" and step % config.encoder_every == 0)
        return None if alone else sampler.batch(step), sampler.native(step) if turn else None

    with ThreadPoolExecutor(2) as pool:
        ahead = [pool.submit(make, step) for step in range(first, min(first + 3, config.steps))]
        for step in range(first, config.steps):
            yield ahead.pop(0).result()
            if step + 3 < config.steps:
                ahead.append(pool.submit(make, step + 3))


def train(
    config: TrainConfig, photos: Path, teacher: Path, run: Path, device: torch.device, start: Path | None
) -> Trainer:
    """Runs, or continues, a training run to its last step.

    Raises:
        InputError: The run was made with settings that the config contradicts, or ``start`` is unusable.
        FileNotFoundError: There are no photographs, or no teacher.
    """
    run.mkdir(parents=True, exist_ok=True)
    _check_same_run(config, run / "train.json")
    (run / "train.json").write_text(json.dumps(dataclasses.asdict(config), indent=2) + "\n")
    pictures = load_photos(photos, config.exclude)
    cache_file = run / "latents.safetensors"
    if cache_file.exists():
        cache = LatentCache.load(cache_file)
    else:
        cache = LatentCache.build(
            pictures, Teacher.load(teacher), config.shapes, config.views, config.max_reduction, config.seed, device
        )
        cache.save(cache_file)
    torch.manual_seed(config.seed)
    preset = PRESETS[config.preset](config.latent_space, config.latent_channels)
    model = load_checkpoint(start) if start else InfGen(preset)
    resume = (run / "state.safetensors").exists()
    if config.trunk_from_teacher and not start and not resume:
        copy_trunk(Teacher.load(teacher).decoder, model)
    # Only a distance of the teacher's features needs the teacher when latents are cached.
    watches = config.perceptual_weight > 0 and config.perceptual == "teacher"
    trainer = Trainer(config, model, device, Teacher.load(teacher).encoder if watches else None)
    if resume:
        trainer.load(run)
    sampler = Sampler(
        pictures,
        cache,
        config.seed,
        config.scales,
        config.tile,
        config.cells,
        config.native_share,
        config.latent_noise,
    )
    _cut_log(run / "log.csv", trainer.step)
    progress = tqdm(_batches(sampler, config, trainer.step), initial=trainer.step, total=config.steps, desc="train")
    mean: dict[str, float] = {}
    with (run / "log.csv").open("a") as log:
        for batch, native in progress:
            losses = trainer.train_step(batch, native)
            for name, loss in losses.items():
                mean[name] = 0.98 * mean.get(name, loss) + 0.02 * loss
            log.write(",".join([str(trainer.step), *(f"{losses.get(name, math.nan):.5f}" for name in _LOSSES)]) + "\n")
            progress.set_postfix({name: f"{value:.4f}" for name, value in mean.items()})
            if trainer.step % config.save_every == 0 or trainer.step == config.steps:
                log.flush()
                trainer.save(run)
    return trainer


def _cut_log(file: Path, step: int) -> None:
    """Drops what was logged after the last save, which is about to be done again."""
    if file.exists():
        lines = file.read_text().splitlines(keepends=True)
        file.write_text("".join(line for line in lines if int(line.split(",")[0]) <= step))


def _check_same_run(config: TrainConfig, file: Path) -> None:
    if not file.exists():
        return
    before = parse(TrainConfig, json.loads(file.read_text()), file.name)
    for name in _FIXED:
        old, new = getattr(before, name), getattr(config, name)
        if old != new:
            raise InputError(f"{file.parent} was made with {name} {old}, not {new}: use another folder for a new run")


@click.command()
@click.option(
    "--photos",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    required=True,
    help="Folder of photographs.",
)
@click.option(
    "--teacher",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    required=True,
    help="Python file with load_encoder() and load_decoder().",
)
@click.option(
    "-o",
    "--run",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    help="Folder of the run; continued if it exists.",
)
@click.option(
    "--start",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Checkpoint whose weights a new run starts from.",
)
@click.option(
    "--set", "settings", multiple=True, metavar="NAME=VALUE", help="Any field of TrainConfig, as JSON; repeatable."
)
@click.option("--device", default="cuda" if torch.cuda.is_available() else "cpu", show_default=True)
def main(photos: Path, teacher: Path, run: Path, start: Path | None, settings: tuple[str, ...], device: str) -> None:
    """Trains an InfGen decoder and its encoder, or continues a run."""
    names = {field.name for field in dataclasses.fields(TrainConfig)}
    values: dict[str, Any] = {}
    for setting in settings:
        name, _, text = setting.partition("=")
        if name not in names:
            raise click.BadParameter(f"unknown field {name!r}; known: {', '.join(sorted(names))}", param_hint="--set")
        try:
            values[name] = json.loads(text)
        except json.JSONDecodeError:
            values[name] = text
    try:
        config = parse(TrainConfig, values, "config")
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--set") from error
    try:
        train(config, photos, teacher, run, torch.device(device), start)
    except (InputError, FileNotFoundError) as error:
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main()
