"""Trains a model: ``python -m infgen_training.train --shards DIR --teacher FILE --vgg FILE -o RUN``.

A run is a folder: ``checkpoint/`` (averaged weights in float16, what is exported), ``adversary.safetensors``,
``train.json`` (the config), ``progress.json`` and ``log.jsonl``. Running the command again continues it from its
averaged weights, with a short warm-up and a new optimiser state, where its schedule stood: nothing else has to be kept,
and no file is larger than the weights.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from infgen_model import PRESETS, DecoderConfig, Enlargement, Grid, InfGen
from infgen_model.checkpoint import load_checkpoint, save_checkpoint
from infgen_rt.common.schema import parse
from infgen_rt.errors import InputError
from infgen_training.batches import Batch, Batches
from infgen_training.config import PATCH, TrainConfig
from infgen_training.losses import Adversary, Vgg, gradient_distance, grid_distance
from infgen_training.precision import mixed
from infgen_training.views import View, load_shards
from infgen_training.warmstart import COPIED, warm_start

_FIXED = ("preset", "part", "latent_space", "latent_channels")
"""Fields that a run keeps."""
_SAY_EVERY = 50
"""Steps between lines of the log."""
_AHEAD = 3
"""Batches that are made ahead."""
_BALANCE_EVERY = 25
"""Steps between looks at how the adversary's gradient compares with that of LPIPS."""
_PAUSE = 5.0
"""Seconds that a step counts at most: a process that was stopped did not train meanwhile."""
_BAD_STEPS = 10
"""Steps in a row whose gradient is not finite that are left out; after more, the run has diverged."""
_LEARNS_BEFORE = 0.08
"""Share of the run that the adversary learns before it is listened to, and over which it is listened to more."""


class Diverged(RuntimeError):
    """Gradients are no longer finite numbers."""


class Trainer:
    """A model, its average and what teaches them.

    Args:
        config: Of the run.
        model: Trained in place.
        vgg: For LPIPS and the adversary; None leaves both out.
        device: Where it is trained.
        step: That it has reached.
    """

    def __init__(
        self, config: TrainConfig, model: InfGen, vgg: Vgg | None, device: torch.device, step: int = 0
    ) -> None:
        self.config, self.device, self.step = config, device, step
        # Convolutions in reduced precision are about a third faster in this layout (measured on a CPU).
        self.model = model.to(device).to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        self.average = copy.deepcopy(self.model).requires_grad_(False)
        self.vgg = vgg.to(device).to(memory_format=torch.channels_last) if vgg else None  # type: ignore[call-overload]
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(config.teaches(name))
        self.optimizer = make_optimizer(self.model, config)
        self.adversary = Adversary(device, config.adversary_lr)
        self.balance: float | None = None
        self._began = step
        self._bad = 0
        if config.compile:
            for part in _compiled(self.model):
                part.compile(dynamic=True)

    def train_step(self, batch: Batch, done: float) -> dict[str, Tensor]:
        """One step of the optimiser.

        Args:
            batch: What is learnt from.
            done: Share of the run, in [0, 1].

        Returns:
            The losses, by name.
        """
        warm = min(1.0, (self.step - self._began + 1) / max(1, self.config.warmup))
        share = warm * max(self.config.final, (1 + math.cos(math.pi * min(1.0, done))) / 2)
        for group in self.optimizer.param_groups:
            group["lr"] = share * group["peak"]
        losses = self._decoder(batch, done) if self.config.part == "decoder" else self._encoder(batch)
        total = torch.stack(list(losses.values())).sum()
        total.backward()
        learning = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        norm = torch.nn.utils.clip_grad_norm_(learning, self.config.clip)
        self._bad = 0 if torch.isfinite(norm) else self._bad + 1
        if self._bad > _BAD_STEPS:
            raise Diverged(f"at step {self.step} the loss is {total.item()}, and no gradient was finite for a while")
        if not self._bad:
            self.optimizer.step()
            self._update_average()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return {name: loss.detach() for name, loss in losses.items()}

    def enlargement(self, batch: Batch) -> Enlargement | None:
        """Of a batch."""
        config: DecoderConfig = self.model.config
        return config.enlargement_for((batch.scale, batch.scale))

    def _decoder(self, batch: Batch, done: float) -> dict[str, Tensor]:
        config, enlargement, cells, side = self.config, self.enlargement(batch), batch.cells, batch.side
        with mixed(self.device, config.bfloat16):
            # Statistics are those of the whole latent, of which a square is decoded as if it were one.
            whole = (self.model.prefill(latent[None].to(self.device)) for latent in batch.latents)
            parts = [
                each[:, :, row : row + cells, column : column + cells]
                for each, (row, column) in zip(whole, batch.corners, strict=True)
            ]
            features = torch.cat(parts).contiguous(memory_format=torch.channels_last)
            context = features if self.model.refine is None else self.model.refine(features, enlargement)
            grid = Grid.whole((cells, cells), (side, side)).to(self.device)
            image = self.model.decode(context, grid, enlargement)
        image = image.float()[:, :, :side, :side]
        edge = round(side / cells * config.margin)
        made, true = _inner(image, edge), _inner(batch.target(self.device), edge)
        certain = batch.sharp is not None or batch.is_native
        losses = {"pixels": (1.0 if certain else config.soft) * F.l1_loss(made, true)}
        if certain:
            losses["gradient"] = config.gradient * gradient_distance(made, true)
        if enlargement is not None and batch.scale == enlargement.factor > 1:
            losses["grid"] = config.grid * grid_distance(made, true, enlargement.factor)
        if not batch.is_native:
            encoded = batch.encoded(self.device)
            reduced, inner = F.interpolate(image, size=encoded.shape[-2:], mode="area"), PATCH * config.margin
            losses["reduced"] = config.reduced * F.l1_loss(_inner(reduced, inner), _inner(encoded, inner))
        if self.vgg is not None and batch.lesson.perceptual:
            losses |= self._seen(image, made, _inner(batch.real(self.device), edge), batch, done)
        return losses

    def _seen(self, image: Tensor, made: Tensor, real: Tensor, batch: Batch, done: float) -> dict[str, Tensor]:
        """LPIPS, and the adversary's verdict once it is listened to."""
        assert self.vgg is not None
        config, lesson = self.config, batch.lesson
        side = min(config.crop, made.shape[-1])
        top, left = (int(torch.randint(made.shape[-1] - side + 1, ())) for _ in range(2))
        crop = (..., slice(top, top + side), slice(left, left + side))
        with mixed(self.device, config.bfloat16):
            features = self.vgg(made[crop].clamp(-0.1, 1.1))
            with torch.no_grad():
                true = self.vgg(real[crop])
        seen = self.vgg.distance(features, true)
        losses = {"perceptual": lesson.perceptual * seen}
        begins = config.adversary_from - _LEARNS_BEFORE
        if not lesson.adversarial or done < begins:
            return losses
        if batch.photo is not None or batch.is_native:
            self.adversary.learn(features, true)
        heard = min(1.0, max(0.0, (done - config.adversary_from) / _LEARNS_BEFORE))
        if heard:
            verdict = self.adversary.verdict(features)
            if self.balance is None or self.step % _BALANCE_EVERY == 0:
                (of_verdict,) = torch.autograd.grad(verdict, image, retain_graph=True)
                (of_seen,) = torch.autograd.grad(seen, image, retain_graph=True)
                ratio = (of_seen.norm() / of_verdict.norm().clamp(min=1e-12)).item()
                self.balance = ratio if self.balance is None else 0.7 * self.balance + 0.3 * ratio
            weight = heard * lesson.adversarial * lesson.perceptual * self.balance
            losses["adversarial"] = weight * verdict
        return losses

    def _encoder(self, batch: Batch) -> dict[str, Tensor]:
        """The teacher's latents, and what the model's own decoder makes of those of the encoder."""
        config, cells = self.config, batch.cells
        image = batch.encoded(self.device)
        latents = [
            latent[:, row : row + cells, column : column + cells]
            for latent, (row, column) in zip(batch.latents, batch.corners, strict=True)
        ]
        enlargement = self.model.config.enlargement_for((1.0, 1.0))
        with mixed(self.device, config.bfloat16):
            made = self.model.encode(image)
            grid = Grid.whole((cells, cells), (image.shape[-2], image.shape[-1])).to(self.device)
            again = self.model.decode(self.model.context(made, enlargement), grid, enlargement).float()
        edge = PATCH * config.margin
        inner = slice(config.margin, cells - config.margin)
        truth = torch.stack(latents).to(self.device)
        losses = {
            "latent": F.l1_loss(made.float()[..., inner, inner], truth[..., inner, inner]),
            "pixels": config.round_trip * F.l1_loss(_inner(again, edge), _inner(image, edge)),
        }
        if self.vgg is not None:
            with mixed(self.device, config.bfloat16):
                features, true = (self.vgg(_inner(each, edge).clamp(-0.1, 1.1)) for each in (again, image))
            losses["perceptual"] = batch.lesson.perceptual * self.vgg.distance(features, true)
        return losses

    @torch.no_grad()
    def _update_average(self) -> None:
        """Exponential moving average that forgets the first weights quickly."""
        share = max(1 - self.config.ema, 10 / (10 + self.step))
        mean, values = ([*module.parameters(), *module.buffers()] for module in (self.average, self.model))
        torch._foreach_lerp_(mean, values, share)

    def save(self, run: Path, minutes: float) -> None:
        """Writes what a run is continued from; each file appears whole or not at all."""
        save_checkpoint(run / "checkpoint", self.average, torch.float16)
        partial = run / "adversary.safetensors.partial"
        state = {
            name: value.half() if name != "scales" else value for name, value in self.adversary.state_dict().items()
        }
        save_file({name: value.detach().cpu().contiguous() for name, value in state.items()}, partial)
        os.replace(partial, run / "adversary.safetensors")
        progress = {"step": self.step, "minutes": minutes, "balance": self.balance}
        partial = run / "progress.json.partial"
        partial.write_text(json.dumps(progress) + "\n")
        os.replace(partial, run / "progress.json")


def _inner(image: Tensor, edge: int) -> Tensor:
    """Without so many pixels at each side."""
    return image[..., edge : image.shape[-2] - edge, edge : image.shape[-1] - edge]


def _compiled(model: InfGen) -> Iterator[nn.Module]:
    """The larger parts, which are worth compiling.

    Not all of refine at once: PyTorch 2.13 cannot compile the gradient of replicating padding for channels-last.
    """
    yield from (model.prefill, *model.decode.blocks, model.encode)
    if model.refine is not None:
        yield from (*model.refine.levels, *model.refine.enlarger.blocks)


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW on what learns; each group knows its highest rate as ``peak``."""
    named = [(name, value) for name, value in model.named_parameters() if value.requires_grad]
    groups = [
        {"params": [value for name, value in named if not name.startswith(COPIED)], "peak": config.lr},
        {
            "params": [value for name, value in named if name.startswith(COPIED)],
            "peak": config.copied_share * config.lr,
        },
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], betas=(0.9, 0.98), weight_decay=0.0)


def drawn(batches: Batches, first: int) -> Iterator[Batch]:
    """Batches from a step on, made ahead in a thread."""
    with ThreadPoolExecutor(1) as pool:
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
) -> Trainer:
    """Runs, or continues, a training run.

    What is wrong with what is given is found before anything is written.

    Args:
        config: Of the run.
        shards: Folder of views.
        teacher: What a new model starts as, beside ``enlarger``; None for random weights.
        vgg: Weights for LPIPS and the adversary; None leaves both out.
        enlarger: Python file with ``load_animevideo()``, whose network a new model's enlarger starts as; what leaves
            the enlarger is fitted to the views.
        run: Folder; continued if it holds a run.
        device: Where to compute.
        start: Checkpoint to start a new run from.
        slice_minutes: Stops, saved, after so many, whatever is left of the run.

    Raises:
        InputError: The run was made with settings that the config contradicts, or something is unusable.
        FileNotFoundError: There are no shards, or no teacher.
        Diverged: Gradients are no longer finite; what was saved last is from before.
    """
    began = time.monotonic()
    _check_same_run(config, run / "train.json")
    torch.manual_seed(config.seed)
    views = load_shards(shards)
    origin = run / "checkpoint" if (run / "checkpoint").exists() else start
    model = _new(config, teacher, enlarger, views) if origin is None else load_checkpoint(origin)
    _check_latents(model, views)
    batches = Batches(views, config, model.config.enlargements)
    progress = _progress(run)
    trainer = Trainer(config, model, Vgg(vgg) if vgg else None, device, int(progress["step"] or 0))
    if (run / "adversary.safetensors").exists():
        judge = {name: value.float() for name, value in load_file(run / "adversary.safetensors").items()}
        trainer.adversary.load_state_dict(judge)
        trainer.balance = progress["balance"]
    run.mkdir(parents=True, exist_ok=True)
    (run / "train.json").write_text(json.dumps(dataclasses.asdict(config), indent=2) + "\n")
    log = _Log(run / "log.jsonl")
    spent, last, saved = 60 * (progress["minutes"] or 0.0), time.monotonic(), time.monotonic()
    for batch in drawn(batches, trainer.step):
        done = spent / (60 * config.minutes)
        if done >= 1 or (slice_minutes is not None and time.monotonic() - began >= 60 * slice_minutes):
            break
        log.add(trainer.step, batch, trainer.train_step(batch, done), spent)
        now = time.monotonic()
        spent, last = spent + min(now - last, _PAUSE), now
        if now - saved > 60 * config.save_every:
            trainer.save(run, spent / 60)
            saved = now
    trainer.save(run, spent / 60)
    return trainer


def _new(config: TrainConfig, teacher: Path | None, enlarger: Path | None, views: Sequence[View]) -> InfGen:
    model = InfGen(PRESETS[config.preset](config.latent_space, config.latent_channels))
    _check_latents(model, views)
    warm_start(model, teacher, enlarger, views)
    return model


def _check_latents(model: InfGen, views: Sequence[View]) -> None:
    for view in views:
        if view.latent.shape[0] != model.config.latent_channels:
            raise InputError(
                f"the views' latents have {view.latent.shape[0]} channels, those of the model "
                f"{model.config.latent_channels}: they are of another latent space"
            )


def _progress(run: Path) -> dict[str, float | None]:
    file = run / "progress.json"
    found: dict[str, float | None] = json.loads(file.read_text()) if file.exists() else {}
    return {"step": 0, "minutes": 0.0, "balance": None} | found


class _Log:
    """Means of the losses of some steps, by enlargement: printed, and a line of ``log.jsonl``."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._sums: dict[tuple[int, str], list[float]] = {}

    def add(self, step: int, batch: Batch, losses: dict[str, Tensor], seconds: float) -> None:
        """Takes the losses of a step."""
        for name, loss in losses.items():
            self._sums.setdefault((batch.lesson.factor, name), []).append(loss.item())
        if (step + 1) % _SAY_EVERY:
            return
        means = {f"{factor}x {name}": sum(each) / len(each) for (factor, name), each in sorted(self._sums.items())}
        click.echo(f"step {step + 1}, {seconds / 60:.1f} min: " + ", ".join(f"{k} {v:.4f}" for k, v in means.items()))
        with self._file.open("a") as file:
            file.write(json.dumps({"step": step + 1, "minutes": seconds / 60, **means}) + "\n")
        self._sums.clear()


def _check_same_run(config: TrainConfig, file: Path) -> None:
    if not file.exists():
        return
    before = parse(TrainConfig, json.loads(file.read_text()), file.name)
    for name in _FIXED:
        old, new = getattr(before, name), getattr(config, name)
        if old != new:
            raise InputError(f"{file.parent} was made with {name} {old}, not {new}: use another folder for a new run")


_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)


@click.command()
@click.option("--shards", type=_FOLDER, required=True, help="Folder of views, from infgen_training.views.")
@click.option(
    "--teacher", type=_FILE, help="Python file with load_encoder() and load_decoder(): where trunk and encoder start."
)
@click.option("--enlarger", type=_FILE, help="Python file with load_animevideo(): where the enlarger starts.")
@click.option("--vgg", type=_FILE, help="Weights of LPIPS with VGG16, for LPIPS and the adversary; without, neither.")
@click.option(
    "-o", "--run", type=click.Path(file_okay=False, path_type=Path), required=True, help="Continued if it exists."
)
@click.option("--start", type=_FOLDER, help="Checkpoint whose weights a new run starts from.")
@click.option("--minutes", "slice_minutes", type=float, help="Stops after so many, saved, whatever is left of the run.")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="NAME=VALUE",
    help="Any field of TrainConfig, as JSON; repeatable. What a run has already is its default.",
)
@click.option("--device", default="cuda" if torch.cuda.is_available() else "cpu", show_default=True)
def main(
    shards: Path, teacher: Path | None, enlarger: Path | None, vgg: Path | None, run: Path, start: Path | None,
    slice_minutes: float | None, settings: tuple[str, ...], device: str,
) -> None:  # fmt: skip
    """Trains an InfGen decoder or its encoder, or continues a run."""
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
        train(config, shards, teacher, vgg, enlarger, run, torch.device(device), start, slice_minutes)
    except (InputError, FileNotFoundError) as error:
        raise click.ClickException(str(error)) from error
    except Diverged as error:
        advice = f"{run} has what was saved before, from where the same command with a lower lr goes on"
        raise click.ClickException(f"{error}; {advice}") from error


if __name__ == "__main__":
    main()
