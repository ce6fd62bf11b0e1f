"""Trains a model step by step, with its losses, optimiser, adversary and averaged weights."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor, nn

from infgen_model import DecoderConfig, Enlargement, Grid, InfGen
from infgen_model.checkpoint import save_checkpoint
from infgen_model.sharing import tie
from infgen_rt.common.files import whole
from infgen_training.batches import Batch
from infgen_training.config import FACTOR, PATCH, TrainConfig
from infgen_training.largest import Largest
from infgen_training.losses import (
    Adversary,
    Vgg,
    crisp,
    feature_distance,
    gradient_distance,
    grid_distance,
    sharpened,
    step_distance,
)
from infgen_training.precision import mixed
from infgen_training.warmstart import COPIED

CHECKPOINT = "checkpoint"
"""Name of the folder, in a run's folder, with the averaged weights.

For a model of another latent space, a hyphen and the name of the space are appended.
"""
_BALANCE_EVERY = 25
"""Number of steps between comparisons of the gradient norms of the adversarial loss and LPIPS."""
_BAD_STEPS = 10
"""Number of consecutive steps without a finite gradient that are skipped. After one more, the run has diverged."""
_LEARNS_BEFORE = 0.08
"""Share of the run in which the adversary learns before it is used.

The weight of the adversarial loss then rises to its full value over the same share of the run.
"""


class Diverged(RuntimeError):
    """The gradients of too many consecutive steps were infinite or NaN."""


class Trainer:
    """Trains a model step by step.

    Args:
        config: Config of the run.
        model: The run's own model, which is trained in place.
        vgg: VGG16 for LPIPS and the adversary. None to train without both.
        device: Device to train on.
        step: Number of the step to continue from.
        guide: For a trunk, the finished model whose trunk it learns from. For a run with ``config.sharpen``, the model
            whose pictures are sharpened.
        others: Models of other latent spaces, which are trained together with the run's own. From now on, they share
            with it all parameters that do not belong to a latent space.

    Attributes:
        step: Number of the next step.
        models: The models that are trained. The first is the run's own.
        averages: The same models with averaged weights.
        adversary: The adversary.
        balance: Norm of the LPIPS gradient divided by that of the adversarial gradient, averaged over time. None until
            the adversary is used.
        bad: Number of consecutive steps without a finite gradient, counted back from the last step.
    """

    def __init__(
        self,
        config: TrainConfig,
        model: InfGen,
        vgg: Vgg | None,
        device: torch.device,
        step: int = 0,
        guide: InfGen | None = None,
        others: Sequence[InfGen] = (),
    ) -> None:
        self.config, self.device, self.step = config, device, step
        self.models = [model, *others]
        for each in self.models:
            # On a CPU, convolutions in reduced precision were measured to be about a third faster in this layout.
            each.to(device).to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        for other in others:
            tie(model, other)
        # All models are copied in one call, so that the copies share the same parameters as the models do.
        self.averages = [each.requires_grad_(False) for each in copy.deepcopy(self.models)]
        self.guide = guide
        if guide is not None:
            guide.to(device).to(memory_format=torch.channels_last).requires_grad_(False)  # type: ignore[call-overload]
        self.vgg = vgg.to(device).to(memory_format=torch.channels_last) if vgg else None  # type: ignore[call-overload]
        for each in self.models:
            for name, parameter in each.named_parameters():
                parameter.requires_grad_(config.teaches(name, each.config))
        self.largest = Largest(model, device) if config.part == "largest" else None
        self.optimizer = make_optimizer(self.models, config)
        self.adversary = Adversary(device, config.adversary_lr)
        self.balance: float | None = None
        self._began = step
        self.bad = 0
        if config.compile:
            for each in self.models:
                for part in _compiled(each):
                    part.compile(dynamic=True)

    @property
    def model(self) -> InfGen:
        """The run's own model."""
        return self.models[0]

    @property
    def average(self) -> InfGen:
        """The run's own model with averaged weights."""
        return self.averages[0]

    def train_step(self, batch: Batch, done: float) -> dict[str, Tensor]:
        """Does one training step.

        Args:
            batch: The batch of the step.
            done: Share of the run that is finished, in [0, 1].

        Returns:
            The weighted losses by name, each a scalar without a gradient.

        Raises:
            Diverged: The gradients of more than ten consecutive steps were not finite.
        """
        warm = min(1.0, (self.step - self._began + 1) / max(1, self.config.warmup))
        share = warm * max(self.config.final, (1 + math.cos(math.pi * min(1.0, done))) / 2)
        for group in self.optimizer.param_groups:
            group["lr"] = share * group["peak"]
        losses = self._losses(batch, done)
        total = torch.stack(list(losses.values())).sum()
        total.backward()
        learning = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        norm = torch.nn.utils.clip_grad_norm_(learning, self.config.clip)
        self.bad = 0 if torch.isfinite(norm) else self.bad + 1
        if self.bad > _BAD_STEPS:
            raise Diverged(f"at step {self.step} the loss is {total.item()}, and no gradient was finite for a while")
        if not self.bad:
            self.optimizer.step()
            self._update_average()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return {name: loss.detach() for name, loss in losses.items()}

    def enlargement(self, batch: Batch) -> Enlargement | None:
        """The enlargement that the run's own model uses at a batch's scale. None if it has no enlargements."""
        config: DecoderConfig = self.model.config
        return config.enlargement_for((batch.scale, batch.scale))

    def _losses(self, batch: Batch, done: float) -> dict[str, Tensor]:
        if self.config.part == "encoder":
            return self._encoder(batch)
        if self.config.part == "trunk" and done < self.config.features:
            return self._features(batch)
        return self._decoder(batch, done)

    def _squares(self, model: InfGen, latents: Sequence[Tensor], batch: Batch) -> Tensor:
        """Cuts a batch's squares from the output of ``prefill`` for the whole latents, whose statistics it needs."""
        whole = (model.prefill(latent[None].to(self.device)) for latent in latents)
        parts = [
            each[:, :, row : row + batch.cells, column : column + batch.cells]
            for each, (row, column) in zip(whole, batch.corners, strict=True)
        ]
        return torch.cat(parts).contiguous(memory_format=torch.channels_last)

    def _features(self, batch: Batch) -> dict[str, Tensor]:
        """Distances between the features of a trunk and those of the guide's trunk.

        They are compared after ``prefill`` and after the last level, because the other parts of the model read these
        two.
        """
        model = self.models[batch.model]
        refine = model.refine
        assert self.guide is not None and self.guide.refine is not None and refine is not None
        with mixed(self.device, self.config.bfloat16):
            with torch.no_grad():
                coarse = self._squares(self.guide, batch.guides, batch)
                fine = self.guide.refine.grown(coarse)
            made = self._squares(model, batch.latents, batch)
            # The last three channels are a picture, which is learned from pictures later.
            pairs = {"coarse": (made, coarse), "fine": (refine.grown(made)[:, :-3], fine[:, :-3])}
        return {name: feature_distance(made.float(), true.float()) for name, (made, true) in pairs.items()}

    def _decoder(self, batch: Batch, done: float) -> dict[str, Tensor]:
        config, enlargement = self.config, self.enlargement(batch)
        image = self._picture(self.models[batch.model], batch) if self.largest is None else self._largest(batch)
        edge = round(batch.side / batch.cells * config.margin)
        if config.sharpen:
            return self._sharper(image, batch, edge)
        made = _inner(image, edge)
        true, real = (_inner(each(self.device), edge) for each in (batch.target, batch.real))
        if config.crisp and batch.sharp is not None:
            true = crisp(true, config.crisp)
            real = true if batch.photo is None else real
        certain = batch.sharp is not None or batch.is_native
        losses = {"pixels": (1.0 if certain else config.soft) * F.l1_loss(made, true)}
        if certain:
            losses["gradient"] = config.gradient * gradient_distance(made, true)
        if enlargement is not None and batch.scale == enlargement.factor > 1:
            losses["grid"] = config.grid * grid_distance(made, true, enlargement.factor)
            if config.steps:
                losses["steps"] = config.steps * step_distance(made, true, enlargement.factor)
        if not batch.is_native:
            encoded = batch.encoded(self.device)
            reduced, inner = F.interpolate(image, size=encoded.shape[-2:], mode="area"), PATCH * config.margin
            losses["reduced"] = config.reduced * F.l1_loss(_inner(reduced, inner), _inner(encoded, inner))
        if self.vgg is not None and batch.lesson.perceptual:
            losses |= self._seen(image, made, real, batch, done)
        return losses

    def _picture(self, model: InfGen, batch: Batch) -> Tensor:
        """Decodes a batch's squares, float32 [B, 3, side, side]."""
        enlargement, cells, side = self.enlargement(batch), batch.cells, batch.side
        with mixed(self.device, self.config.bfloat16):
            # From here on, each square is decoded as if it were a whole latent.
            features = self._squares(model, batch.latents, batch)
            context = features if model.refine is None else model.refine(features, enlargement)
            grid = Grid.whole((cells, cells), (side, side)).to(self.device)
            image: Tensor = model.decode(context, grid, enlargement)
        return image.float()[:, :, :side, :side]

    def _largest(self, batch: Batch) -> Tensor:
        """Decodes a batch's squares as ``_picture`` does, from what is kept of the views."""
        assert self.largest is not None
        with mixed(self.device, self.config.bfloat16):
            return self.largest.picture(batch).float()

    def _sharper(self, image: Tensor, batch: Batch, edge: int) -> dict[str, Tensor]:
        """Distances from the sharpened pictures of the model that the run started from."""
        assert self.guide is not None
        with torch.no_grad():
            amount = self.config.sharpen * (batch.scale - 1) / (FACTOR - 1)
            wanted = sharpened(self._picture(self.guide, batch), amount, batch.scale)
        made, true = _inner(image, edge), _inner(wanted, edge)
        return {
            "pixels": F.l1_loss(made, true),
            "gradient": self.config.gradient * gradient_distance(made, true),
        }

    def _seen(self, image: Tensor, made: Tensor, real: Tensor, batch: Batch, done: float) -> dict[str, Tensor]:
        """The loss of LPIPS and, once the adversary is used, the adversarial loss."""
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
        if batch.photo is not None or batch.is_native or lesson.clean:
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
        """Losses of the encoder.

        They compare its latents with the teacher's, and the pictures that its latents decode to with the originals.
        """
        config, cells, model = self.config, batch.cells, self.models[batch.model]
        image = batch.encoded(self.device)
        latents = [
            latent[:, row : row + cells, column : column + cells]
            for latent, (row, column) in zip(batch.latents, batch.corners, strict=True)
        ]
        enlargement = model.config.enlargement_for((1.0, 1.0))
        with mixed(self.device, config.bfloat16):
            made = model.encode(image)
            grid = Grid.whole((cells, cells), (image.shape[-2], image.shape[-1])).to(self.device)
            again = model.decode(model.context(made, enlargement), grid, enlargement).float()
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
        """Updates the exponential moving average. Its decay is lower at first, to forget the initial weights."""
        share = max(1 - self.config.ema, 10 / (10 + self.step))
        mean, values = (
            [*modules.parameters(), *modules.buffers()]
            for modules in (nn.ModuleList(self.averages), nn.ModuleList(self.models))
        )
        torch._foreach_lerp_(mean, values, share)

    def save(self, run: Path, minutes: float) -> None:
        """Writes the files from which a run can be continued. Each file is written atomically.

        Args:
            run: Folder of the run.
            minutes: Training time of the run so far, in minutes.
        """
        save_checkpoint(run / CHECKPOINT, self.average, torch.float16)
        for other in self.averages[1:]:
            space = other.config.latent_space
            save_checkpoint(run / f"{CHECKPOINT}-{space}", other, torch.float16, run / CHECKPOINT)
        state = {
            name: value.half() if name != "scales" else value for name, value in self.adversary.state_dict().items()
        }
        with whole(run / "adversary.safetensors") as partial:
            partial.write_bytes(save({name: value.detach().cpu().contiguous() for name, value in state.items()}))
        progress = {"step": self.step, "minutes": minutes, "balance": self.balance}
        with whole(run / "progress.json") as partial:
            partial.write_text(json.dumps(progress) + "\n")


def _inner(image: Tensor, edge: int) -> Tensor:
    """Removes ``edge`` pixels at each side of an image [..., H, W]."""
    return image[..., edge : image.shape[-2] - edge, edge : image.shape[-1] - edge]


def _compiled(model: InfGen) -> Iterator[nn.Module]:
    """The larger parts of a model, which are worth compiling.

    ``refine`` is not compiled as a whole, because PyTorch 2.13 cannot compile the gradient of replication padding in
    the channels-last layout.
    """
    yield from (model.prefill, *model.decode.blocks, model.encode)
    if model.refine is not None:
        yield from (*model.refine.levels, *model.refine.enlarger.blocks)


def make_optimizer(models: Sequence[nn.Module], config: TrainConfig) -> torch.optim.Optimizer:
    """Makes an AdamW optimiser for those parameters of the models that are trained.

    There are two groups of parameters, and the entry ``peak`` of each is its highest learning rate. The slower group
    holds the parameters of the first model that were copied from a tiny autoencoder. The trunks of other latent spaces
    are in the faster group, because they have more to learn.

    Args:
        models: The models. The first is the run's own.
        config: Config of the run.
    """
    groups: list[dict[str, Any]] = [
        {"params": [], "peak": config.lr},
        {"params": [], "peak": config.copied_share * config.lr},
    ]
    seen = set[nn.Parameter]()
    for index, model in enumerate(models):
        copied = () if index or config.part == "trunk" else COPIED
        for name, value in model.named_parameters():
            if value.requires_grad and value not in seen:
                groups[name.startswith(copied)]["params"].append(value)
                seen.add(value)
    return torch.optim.AdamW([group for group in groups if group["params"]], betas=(0.9, 0.98), weight_decay=0.0)
