"""Trains a model: ``python -m infgen_training.train --photos DIR --teacher FILE -o RUN``.

A run is a folder: ``checkpoint/`` (averaged weights, what is exported), ``state.safetensors`` (what else resuming
needs), ``latents.safetensors`` (the cache), ``train.json`` (the config) and ``log.csv``. Running the command again
continues it with its own config, and what ``--set`` changes.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TextIO

import click
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from infgen_export.checkpoint import load_checkpoint, save_checkpoint
from infgen_export.model import PRESETS, InfGen
from infgen_rt.errors import InputError
from infgen_rt.schema import parse
from infgen_training.config import TrainConfig
from infgen_training.data import Batch, LatentCache, Sampler, load_photos
from infgen_training.drawn import draw_pictures
from infgen_training.losses import Adversary, perceptual_distance, pyramid_distance
from infgen_training.optimizer import TRUNK, make_optimizer, set_learning_rate
from infgen_training.precision import mixed
from infgen_training.teacher import Teacher
from infgen_training.warmstart import copy_encoder, copy_trunk

_LOSSES = ("l1", "perceptual", "pyramid", "adversarial", "encoder", "round_trip")
"""Columns of the log, after the step."""
_FIXED = (
    *("preset", "part", "learns", "latent_space", "latent_channels", "warm_start", "optimizer", "adversarial_weight"),
    *("seed", "shapes", "views", "max_reduction", "drawn", "recoloured", "exclude"),
)
"""Fields that a run keeps: its cache and its state were made for them."""
_MODELS = ("model", "average")
"""Networks whose checkpoint has all that does not learn."""
_LOG_EVERY = 10
"""Steps between looks at the losses: a look waits until the GPU has done all that it was given."""

Lesson = tuple[Batch | None, Batch | None]
"""What one step learns from, as ``Trainer.train_step`` takes it."""


class Diverged(RuntimeError):
    """A loss is no longer a finite number."""


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
        self.average = copy.deepcopy(self.model).requires_grad_(False)
        self.optimizer = make_optimizer(self.model, config)
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(config.teaches(name))
        named = self.model.named_parameters()
        self._resting = [value for name, value in named if name.startswith(TRUNK) and value.requires_grad]
        self.perceptual = perceptual_distance(config.perceptual, encoder, device) if config.perceptual_weight else None
        self.adversary = Adversary(device, config.adversary_lr) if config.adversarial_weight else None
        if config.compile:
            compile_parts(self.model)

    def train_step(self, batch: Batch | None, native: Batch | None) -> dict[str, Tensor]:
        """One step of the optimiser.

        Args:
            batch: What the decoder learns from, unless the encoder learns alone.
            native: Whole pictures at scale 1 for the encoder, on its turns.

        Returns:
            The losses, by name; on a GPU they may still be being computed.
        """
        set_learning_rate(self.optimizer, self.config, self.step)
        if batch is not None:
            for parameter in self._resting:
                parameter.requires_grad_(self.step >= self.config.trunk_rest)
        losses, weights = {}, {}
        with mixed(self.device, self.config.bfloat16):
            if batch is not None:
                batch = batch.to(self.device)
                image = self.model.decode(self.model.context(batch.latent), batch.grid)
                losses["l1"] = F.l1_loss(image.float(), batch.target)
                if self.perceptual is not None:
                    losses["perceptual"] = self.perceptual(image.float(), batch.target)
                    weights["perceptual"] = self.config.perceptual_weight
                if self.config.pyramid_weight:
                    losses["pyramid"] = pyramid_distance(image.float(), batch.target)
                    weights["pyramid"] = self.config.pyramid_weight
                if self.adversary is not None:
                    losses["adversarial"] = self.adversary(image, batch.target)
                    weights["adversarial"] = self.config.adversarial_weight
            if native is not None:
                native = native.to(self.device)
                latent = self.model.encode(native.target)
                losses["encoder"] = F.l1_loss(latent.float(), native.latent)
                if self.config.round_trip_weight:
                    image = self.model.decode(self.model.context(latent), native.grid)
                    losses["round_trip"] = F.l1_loss(image.float(), native.target)
                    weights["round_trip"] = self.config.round_trip_weight
        torch.stack([weights.get(name, 1.0) * loss for name, loss in losses.items()]).sum().backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._update_average()
        self.step += 1
        return {name: loss.detach() for name, loss in losses.items()}

    @torch.no_grad()
    def _update_average(self) -> None:
        """Exponential moving average that forgets the first, untrained weights quickly."""
        # Not torch's AveragedModel, which keeps its count as a tensor and waits for the GPU to read it.
        share = max(1 - self.config.ema, 10 / (10 + self.step))
        mean, values = ([*module.parameters(), *module.buffers()] for module in (self.average, self.model))
        torch._foreach_lerp_(mean, values, share)

    def _modules(self) -> dict[str, nn.Module]:
        """Every network that resuming needs."""
        modules: dict[str, nn.Module] = {"model": self.model, "average": self.average}
        return modules | ({"discriminator": self.adversary.discriminator} if self.adversary else {})

    def _optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """Every optimiser that resuming needs."""
        return {"optimizer": self.optimizer} | ({"adversary": self.adversary.optimizer} if self.adversary else {})

    def save(self, run: Path) -> None:
        """Writes checkpoint and state; each file appears whole or not at all.

        The state has what learns alone: the rest of the model is what the checkpoint has.
        """
        save_checkpoint(run / "checkpoint", self.average)
        tensors: dict[str, Tensor] = {}
        for prefix, module in self._modules().items():
            learning = {name for name, _ in module.named_parameters() if self.config.teaches(name)}
            values = module.state_dict().items()
            whole = prefix not in _MODELS
            tensors |= {f"{prefix}/{name}": value for name, value in values if whole or name in learning}
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
        rest = load_checkpoint(run / "checkpoint").state_dict()
        for prefix, module in self._modules().items():
            module.load_state_dict({**rest, **stored[prefix]} if prefix in _MODELS else stored[prefix])
        for prefix, optimizer in self._optimizers().items():
            state: dict[int, dict[str, Tensor]] = {}
            for name, value in stored[prefix].items():
                index, slot = name.split("/")
                state.setdefault(int(index), {})[slot] = value
            optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
        for group in self.optimizer.param_groups:
            group["step"] = self.step  # Muon counts by group, for the bias correction of its AdamW part


def compile_parts(model: InfGen) -> None:
    """Compiles a model's larger parts in place, for any shape; its state keeps its names and copies are not compiled.

    Not ``decode`` as a whole: its bilinear samples go from a product straight into a convolution, and Inductor (torch
    2.13) fails to order the symbolic strides of such a view (pytorch/pytorch#185510). Its own lines are few and small.
    """
    for part in (model.prefill, model.refine, model.encode, *model.decode.blocks, model.decode.upsampler):
        if part is not None:
            part.compile(dynamic=True)


def make_sampler(config: TrainConfig, photos: Sequence[Image.Image], cache: LatentCache) -> Sampler:
    """The sampler of a run."""
    return Sampler(
        photos,
        cache,
        config.seed,
        config.scales,
        config.tile,
        config.cells,
        config.native_share,
        config.latent_noise,
    )


def lesson(sampler: Sampler, config: TrainConfig, step: int, pin: bool = False) -> Lesson:
    """What a step of a run learns from, in page-locked memory if a GPU wants it there."""
    alone = config.part == "encoder"
    turn = alone or (config.part == "all" and step % config.encoder_every == 0)
    batch = None if alone else sampler.batch(step)
    native = sampler.native(step) if turn else None
    return (batch and batch.pin(), native and native.pin()) if pin else (batch, native)


def lessons(sampler: Sampler, config: TrainConfig, first: int, pin: bool = False) -> Iterator[Lesson]:
    """Lessons from step ``first`` on, in order, made ahead in threads (resampling releases the GIL).

    Args:
        sampler: Of the run.
        config: Its ``loaders`` threads have one lesson each in the making or ready, and there is one more.
        first: Step.
        pin: Makes them in page-locked memory, for a GPU.
    """
    with ThreadPoolExecutor(config.loaders) as pool:
        ahead: deque[Future[Lesson]] = deque()
        for step in range(first, config.steps):
            while len(ahead) <= config.loaders and step + len(ahead) < config.steps:
                ahead.append(pool.submit(lesson, sampler, config, step + len(ahead), pin))
            yield ahead.popleft().result()


class _Log:
    """Losses of every step, written a few steps late so that no step waits for those before it."""

    def __init__(self, file: TextIO, progress: tqdm[Any]) -> None:
        self.file, self.progress = file, progress
        self.mean: dict[str, float] = {}
        self.waiting: list[tuple[int, dict[str, Tensor]]] = []

    def add(self, step: int, losses: dict[str, Tensor]) -> None:
        """Takes the losses of a step."""
        self.waiting.append((step, losses))
        if len(self.waiting) >= _LOG_EVERY:
            self.write()

    def write(self) -> None:
        """Writes what waits."""
        for step, tensors in self.waiting:
            losses = {name: loss.item() for name, loss in tensors.items()}
            if not all(map(math.isfinite, losses.values())):
                raise Diverged(f"at step {step} a loss is no longer finite: {losses}")
            for name, loss in losses.items():
                self.mean[name] = 0.98 * self.mean.get(name, loss) + 0.02 * loss
            self.file.write(",".join([str(step), *(f"{losses.get(name, math.nan):.5f}" for name in _LOSSES)]) + "\n")
        self.waiting.clear()
        self.file.flush()
        self.progress.set_postfix({name: f"{value:.4f}" for name, value in self.mean.items()})


def train(
    config: TrainConfig, photos: Path, teacher: Path, run: Path, device: torch.device, start: Path | None
) -> Trainer:
    """Runs, or continues, a training run to its last step.

    Raises:
        InputError: The run was made with settings that the config contradicts, or ``start`` is unusable.
        FileNotFoundError: There are no photographs, or no teacher.
        Diverged: A loss is no longer finite; what was saved last is from before.
    """
    run.mkdir(parents=True, exist_ok=True)
    _check_same_run(config, run / "train.json")
    (run / "train.json").write_text(json.dumps(dataclasses.asdict(config), indent=2) + "\n")
    pictures = load_photos(photos, config.exclude)
    pictures += draw_pictures(config.drawn, config.seed, pictures)
    cache_file = run / "latents.safetensors"
    if cache_file.exists():
        cache = LatentCache.load(cache_file)
    else:
        cache = LatentCache.build(
            pictures, Teacher.load(teacher), config.shapes, config.views, config.max_reduction, config.recoloured,
            config.seed, device,
        )  # fmt: skip
        cache.save(cache_file)
    torch.manual_seed(config.seed)
    preset = PRESETS[config.preset](config.latent_space, config.latent_channels)
    resume = (run / "state.safetensors").exists()
    weights = run / "checkpoint" if resume else start
    model = load_checkpoint(weights) if weights else InfGen(preset)
    if config.warm_start and not weights:
        origin = Teacher.load(teacher)
        copy_trunk(origin.decoder, model)
        copy_encoder(origin.encoder, model)
    # Only a distance of the teacher's features needs the teacher when latents are cached.
    watches = config.perceptual_weight > 0 and config.perceptual == "teacher"
    trainer = Trainer(config, model, device, Teacher.load(teacher).encoder if watches else None)
    if resume:
        trainer.load(run)
    sampler = make_sampler(config, pictures, cache)
    _cut_log(run / "log.csv", trainer.step)
    ahead = lessons(sampler, config, trainer.step, pin=device.type == "cuda")
    progress = tqdm(ahead, initial=trainer.step, total=config.steps, desc="train")
    with (run / "log.csv").open("a") as file:
        log = _Log(file, progress)
        for batch, native in progress:
            log.add(trainer.step + 1, trainer.train_step(batch, native))
            if trainer.step % config.save_every == 0 or trainer.step == config.steps:
                log.write()
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
    "--set",
    "settings",
    multiple=True,
    metavar="NAME=VALUE",
    help="Any field of TrainConfig, as JSON; repeatable. What a run has already is its default.",
)
@click.option("--device", default="cuda" if torch.cuda.is_available() else "cpu", show_default=True)
def main(photos: Path, teacher: Path, run: Path, start: Path | None, settings: tuple[str, ...], device: str) -> None:
    """Trains an InfGen decoder and its encoder, or continues a run."""
    names = {field.name for field in dataclasses.fields(TrainConfig)}
    saved = run / "train.json"
    try:
        values: dict[str, Any] = json.loads(saved.read_text()) if saved.exists() else {}
    except ValueError as error:
        raise click.ClickException(f"{saved} does not hold the config of a run: {error}") from error
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
    except Diverged as error:
        advice = f"{run} has what was saved before, from where the same command with lower lr and muon_lr goes on"
        raise click.ClickException(f"{error}; {advice}") from error


if __name__ == "__main__":
    main()
