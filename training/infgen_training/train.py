"""Trains a model: ``python -m infgen_training.train --shards DIR --teacher FILE --vgg FILE -o RUN``.

A run is a folder with ``checkpoint/`` (the averaged weights in float16, for export), ``adversary.safetensors``,
``train.json`` (the config), ``progress.json`` and ``log.jsonl``. Running the command again continues the run from the
averaged weights at the same point of the schedule, with a short warm-up and a new optimiser state. The state of the
optimiser is not saved, so no file is larger than the weights.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from infgen_model import PRESETS, InfGen
from infgen_model.checkpoint import load_checkpoint
from infgen_model.sharing import shares
from infgen_rt.common.schema import parse
from infgen_rt.errors import InputError, one_line
from infgen_training.batches import Batch, Batches, Turns
from infgen_training.config import TrainConfig
from infgen_training.losses import Vgg
from infgen_training.options import FILE, FOLDER, MINUTES, device_option
from infgen_training.teacher import AUTOENCODER, AUTOENCODER_HELP, Teacher
from infgen_training.trainer import CHECKPOINT, Diverged, Trainer
from infgen_training.trunk import LATENTS, in_space, new_trunk, save_latents
from infgen_training.views import View, load_shards
from infgen_training.warmstart import warm_start

_FIXED = ("preset", "part", "latent_space", "latent_channels")
"""Fields of the config that must not change when a run is continued."""
_SAY_EVERY = 50
"""Number of steps per line of the log."""
_DRAWERS = max(1, min(8, (os.cpu_count() or 1) - 1))
"""Number of threads that prepare batches."""
_AHEAD = 2 * _DRAWERS + 1
"""Number of batches that are prepared ahead."""
_PAUSE = 5.0
"""Maximum seconds that one step adds to the time of the run. Time in which the process was suspended does not count."""


def drawn(batches: Turns, first: int) -> Iterator[Batch]:
    """Yields the batches of all steps from ``first`` on. Background threads prepare them in advance."""
    with ThreadPoolExecutor(_DRAWERS) as pool:
        ahead: deque[Future[Batch]] = deque(pool.submit(batches.draw, first + index) for index in range(_AHEAD))
        try:
            for step in range(first + _AHEAD, 10**9):
                yield ahead.popleft().result()
                ahead.append(pool.submit(batches.draw, step))
        finally:
            for future in ahead:
                future.cancel()


def train(
    config: TrainConfig,
    shards: Path,
    teacher: Path | None,
    vgg: Path | None,
    enlarger: Path | None,
    run: Path,
    device: torch.device,
    start: Path | None = None,
    slice_minutes: float | None = None,
    others: Sequence[tuple[Path, Path]] = (),
) -> Trainer:
    """Starts or continues a training run.

    All arguments are checked before anything is written.

    Args:
        config: Config of the run.
        shards: Folder of shards with views.
        teacher: The autoencoder that a new model or a trunk starts from. With None, a new model starts from random
            weights. A trunk needs a teacher.
        vgg: Weights for LPIPS and the adversary. None to train without both.
        enlarger: Python file with ``load_animevideo()``. A new model's enlarger starts from the network that this
            function returns, and its last convolutions are fitted to the views.
        run: Folder of the run. If it holds a run, that run is continued.
        device: Device to train on.
        start: Checkpoint that a new run starts from. For a trunk, it is the finished model that the trunk learns from,
            or a model of the same space whose trunk is trained further. It is needed to continue the run, too.
        slice_minutes: Number of minutes after which the run is saved and stopped, even if it is not finished. With 0,
            no training step is done, and the run is saved as it starts.
        others: Models of other latent spaces that are trained together with a decoder or an encoder. Each is a
            checkpoint and the autoencoder of its space. It must share weights with the run's own model.

    Returns:
        The trainer after the last step.

    Raises:
        InputError: The config differs from that of the run in a field that must not change, or an argument cannot be
            used.
        FileNotFoundError: There are no shards, or a Python file does not exist.
        Diverged: The gradients stay infinite or NaN. The run's folder holds the weights from before that.
    """
    began = time.monotonic()
    _check_same_run(config, run / "train.json")
    torch.manual_seed(config.seed)
    views = load_shards(shards)
    if others and config.part in ("trunk", "largest"):
        raise InputError(
            f"other latent spaces are trained together with a decoder or an encoder, not with part={config.part}"
        )
    earlier = run / CHECKPOINT if (run / CHECKPOINT).exists() else None
    guide = None
    if config.part == "trunk":
        guide, model, views = _trunk(config, start, teacher, earlier, views, run / LATENTS, device)
    elif origin := earlier or start:
        model = load_checkpoint(origin)
        if config.sharpen and start is not None:
            guide = load_checkpoint(start)
    else:
        model = _new(config, teacher, enlarger, views)
    if config.sharpen and guide is None:
        raise InputError("sharpen needs --start, the checkpoint of the model whose pictures are sharpened")
    _check_latents(model, views)
    also = [_other(model, *each, views, run, device) for each in others]
    own = (views, *(of_space for _, of_space in also))
    turns = Turns([Batches(each, config, model.config.enlargements) for each in own], config)
    progress, judge = _progress(run), _judge(run)
    step, seen = int(progress["step"] or 0), Vgg(vgg) if vgg else None
    trainer = Trainer(config, model, seen, device, step, guide, [other for other, _ in also])
    if judge is not None:
        trainer.adversary.load_state_dict(judge)
        trainer.balance = progress["balance"]
    run.mkdir(parents=True, exist_ok=True)
    (run / "train.json").write_text(json.dumps(dataclasses.asdict(config), indent=2) + "\n")
    if config.part == "trunk":
        save_latents(run / LATENTS, views)
    for other, of_space in also:
        save_latents(_latents(run, other), of_space)
    log = _Log(run / "log.jsonl")
    spent, last, saved = 60 * (progress["minutes"] or 0.0), time.monotonic(), time.monotonic()
    first = trainer.step
    for batch in drawn(turns, first):
        done = spent / (60 * config.minutes)
        over = slice_minutes is not None and time.monotonic() - began >= 60 * slice_minutes
        # Each slice that has time does a step, however long loading took.
        if done >= 1 or (over and (trainer.step > first or slice_minutes == 0)):
            break
        log.add(trainer.step, batch, trainer.train_step(batch, done), spent)
        now = time.monotonic()
        spent, last = spent + min(now - last, _PAUSE), now
        if now - saved > 60 * config.save_every and not trainer.bad:
            trainer.save(run, spent / 60)
            saved = now
    trainer.save(run, spent / 60)
    return trainer


def _new(config: TrainConfig, teacher: Path | None, enlarger: Path | None, views: Sequence[View]) -> InfGen:
    model = InfGen(PRESETS[config.preset](config.latent_space, config.latent_channels))
    _check_latents(model, views)
    warm_start(model, teacher, enlarger, views)
    return model


def _trunk(
    config: TrainConfig,
    start: Path | None,
    teacher: Path | None,
    earlier: Path | None,
    views: Sequence[View],
    latents: Path,
    device: torch.device,
) -> tuple[InfGen, InfGen, list[View]]:
    """The model to start from, the model with the trunk to train, and the views with latents of both spaces.

    If the model to start from is of the new space already, its own trunk is trained further.
    """
    if start is None or teacher is None:
        raise InputError(
            "a trunk needs --start, the checkpoint of a finished model, and --teacher, the autoencoder of the new space"
        )
    guide, origin = load_checkpoint(start), Teacher.load(teacher)
    goes_on = guide.config.latent_space == config.latent_space
    if goes_on and config.features:
        raise InputError(f"features needs --start with a model of another latent space than {config.latent_space}")
    if not goes_on:
        _check_latents(guide, views)
    if (channels := origin.channels) != config.latent_channels:
        raise InputError(
            f"the teacher's latents have {channels} channels, not {config.latent_channels}: name its space with "
            f"--set latent_space=NAME --set latent_channels={channels}"
        )
    both = in_space(views, origin, latents, device)
    if earlier is None:
        return guide, copy.deepcopy(guide) if goes_on else new_trunk(config, guide, origin, both), both
    model = load_checkpoint(earlier)
    if not shares(guide, model):
        raise InputError(f"{earlier} shares nothing with {start}: continue with the --start that the run began with")
    return guide, model, both


def _other(
    model: InfGen, checkpoint: Path, teacher: Path, views: Sequence[View], run: Path, device: torch.device
) -> tuple[InfGen, list[View]]:
    """A model of another latent space that is trained together with ``model``, and the views in its space."""
    other, origin = load_checkpoint(checkpoint), Teacher.load(teacher)
    space = other.config.latent_space
    if (saved := run / f"{CHECKPOINT}-{space}").exists():
        other = load_checkpoint(saved)
    if not shares(model, other):
        raise InputError(f"{checkpoint} shares nothing with the model of this run: use one that was trained for it")
    both = in_space(views, origin, _latents(run, other), device)
    _check_latents(other, both)
    return other, both


def _latents(run: Path, other: InfGen) -> Path:
    """The file in a run's folder that holds the latents of the views in the space of another model."""
    return run / f"{Path(LATENTS).stem}-{other.config.latent_space}.safetensors"


def _check_latents(model: InfGen, views: Sequence[View]) -> None:
    for view in views:
        if view.latent.shape[0] != model.config.latent_channels:
            raise InputError(
                f"the views' latents have {view.latent.shape[0]} channels, those of the model "
                f"{model.config.latent_channels}: they are of another latent space"
            )


def _progress(run: Path) -> dict[str, float | None]:
    """Where a run stands.

    Raises:
        InputError: The file is damaged, or the run has weights without it.
    """
    file, progress = run / "progress.json", {"step": 0, "minutes": 0.0, "balance": None}
    if not file.exists():
        if (run / CHECKPOINT).exists():
            raise InputError(f"{run} lacks {file.name}, which tells where it stands: use --start {run / CHECKPOINT}")
        return progress
    found = _object(file)
    for name, value in found.items():
        if name in progress and not (value is None or (isinstance(value, int | float) and value >= 0)):
            raise InputError(f"{file} is damaged: {name} is {value!r}; use --start {run / CHECKPOINT}")
    return progress | found


def _judge(run: Path) -> dict[str, Tensor] | None:
    """The adversary of a run. None if it has none yet.

    Raises:
        InputError: The file is damaged.
    """
    file = run / "adversary.safetensors"
    if not file.exists():
        return None
    try:
        return {name: value.float() for name, value in load_file(file).items()}
    except (OSError, SafetensorError) as error:
        raise InputError(f"{file} is damaged ({one_line(error)}): remove it, and a new adversary learns") from error


def _object(file: Path) -> dict[str, Any]:
    """The JSON object in a file of a run.

    Raises:
        InputError: The file has something else.
    """
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{file} is damaged: {one_line(error)}") from error
    if not isinstance(found, dict):
        raise InputError(f"{file} is damaged: it has no JSON object")
    return found


class _Log:
    """Prints the mean losses of several steps for each enlargement, and appends them to ``log.jsonl``."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._sums: dict[tuple[int, str], list[Tensor]] = {}

    def add(self, step: int, batch: Batch, losses: dict[str, Tensor], seconds: float) -> None:
        """Adds the losses of a step. ``seconds`` is the time of the run so far."""
        for name, loss in losses.items():
            # They are not read before they are printed, because reading waits for the device.
            self._sums.setdefault((batch.lesson.factor, name), []).append(loss)
        if (step + 1) % _SAY_EVERY:
            return
        means = {
            f"{factor}x {name}": torch.stack(each).mean().item() for (factor, name), each in sorted(self._sums.items())
        }
        click.echo(f"step {step + 1}, {seconds / 60:.1f} min: " + ", ".join(f"{k} {v:.4f}" for k, v in means.items()))
        with self._file.open("a") as file:
            file.write(json.dumps({"step": step + 1, "minutes": seconds / 60, **means}) + "\n")
        self._sums.clear()


def config_of(run: Path, settings: Sequence[str]) -> TrainConfig:
    """The config of a run that is started or continued.

    Args:
        run: Folder of the run.
        settings: Values of fields as ``NAME=VALUE``, in place of those of the run.

    Raises:
        click.BadParameter: A setting is wrong.
        InputError: The run's own config is damaged.
    """
    names, saved = {field.name for field in dataclasses.fields(TrainConfig)}, run / "train.json"
    values = _object(saved) if saved.exists() else {}
    _config(values, str(saved))
    for setting in settings:
        name, _, text = setting.partition("=")
        if name not in names:
            raise click.BadParameter(f"unknown field {name!r}; known: {', '.join(sorted(names))}", param_hint="--set")
        try:
            values[name] = json.loads(text)
        except json.JSONDecodeError:
            values[name] = text
    try:
        return parse(TrainConfig, values, "config")
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--set") from error


def _config(values: dict[str, Any], file: str) -> TrainConfig:
    try:
        return parse(TrainConfig, values, "config")
    except ValueError as error:
        raise InputError(f"{file} is damaged: {error}") from error


def _check_same_run(config: TrainConfig, file: Path) -> None:
    if not file.exists():
        return
    before = _config(_object(file), str(file))
    for name in _FIXED:
        old, new = getattr(before, name), getattr(config, name)
        if old != new:
            raise InputError(f"{file.parent} was made with {name} {old}, not {new}: use another folder for a new run")


OTHERS = click.option(
    "--other",
    "others",
    type=(FOLDER, AUTOENCODER),
    multiple=True,
    metavar="CHECKPOINT AUTOENCODER",
    help="Model of another latent space, to train together with the one of --start; repeatable.",
)
"""The command-line option for models of other latent spaces that are trained together with the run's own."""


@click.command()
@click.option("--shards", type=FOLDER, required=True, help="Folder of shards from infgen_training.views.")
@click.option("--teacher", type=AUTOENCODER, help=f"What trunk and encoder start from. {AUTOENCODER_HELP}")
@click.option("--enlarger", type=FILE, help="Python file with load_animevideo(), for the enlarger to start from.")
@click.option("--vgg", type=FILE, help="Weights of LPIPS with VGG16. Needed for LPIPS and the adversary.")
@click.option(
    "-o", "--run", type=click.Path(file_okay=False, path_type=Path), required=True, help="Run to start or continue."
)
@click.option("--start", type=FOLDER, help="Checkpoint that a new run starts from. A trunk always needs it.")
@OTHERS
@click.option("--minutes", "slice_minutes", type=MINUTES, help="Saves and stops after this time, finished or not.")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="NAME=VALUE",
    help="Value of a field of TrainConfig, as JSON; repeatable. Otherwise, a run keeps its values.",
)
@device_option
def main(
    shards: Path, teacher: Path | None, enlarger: Path | None, vgg: Path | None, run: Path, start: Path | None,
    others: tuple[tuple[Path, Path], ...], slice_minutes: float | None, settings: tuple[str, ...], device: str,
) -> None:  # fmt: skip
    """Starts or continues a run that trains a decoder, its encoder, or a trunk of another latent space."""
    try:
        config = config_of(run, settings)
        train(config, shards, teacher, vgg, enlarger, run, torch.device(device), start, slice_minutes, others)
    except (InputError, FileNotFoundError) as error:
        raise click.ClickException(str(error)) from error
    except Diverged as error:
        advice = f"{run} has what was saved before, from where the same command with a lower lr goes on"
        raise click.ClickException(f"{error}; {advice}") from error


if __name__ == "__main__":
    main()
