"""Makes batches from views. A batch consists of random squares of several views, all at the same scale."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from infgen_model import Enlargement
from infgen_rt.errors import InputError
from infgen_training.config import FACTOR, PATCH, Lesson, TrainConfig
from infgen_training.views import Pixels, View


@dataclass(frozen=True)
class Batch:
    """The data of one training step.

    Attributes:
        lesson: The lesson from the config.
        scale: Number of output pixels per cell, divided by 8. It is the same along both axes.
        latents: The whole latent of each view, float32 [C, n, n]. It is kept whole because global statistics are
            computed over all of it.
        corners: For each view, the row and column of the top left cell of the square that is decoded.
        cells: Side of the squares in cells.
        small: The squares of the pictures that were encoded, uint8 [B, 3, 8 * cells, 8 * cells].
        sharp: The squares of the sharp pictures, uint8 [B, 3, 32 * cells, 32 * cells]. None if the step does not learn
            from them.
        photo: The squares of the photographs, uint8 of the same shape. None if a view has no photograph, or if the step
            does not use photographs.
        guides: When a trunk is trained, the whole latent of each view in the finished model's space, float32 [G, n, n].
            Otherwise empty.
        model: Index of the model that learns from this batch, in the list of the run's models.
        views: The views that the squares are from.
    """

    lesson: Lesson
    scale: float
    latents: tuple[Tensor, ...]
    corners: tuple[tuple[int, int], ...]
    cells: int
    small: Tensor
    sharp: Tensor | None
    photo: Tensor | None
    guides: tuple[Tensor, ...] = ()
    model: int = 0
    views: tuple[View, ...] = ()

    @property
    def side(self) -> int:
        """Side of the decoded squares in pixels."""
        return round(PATCH * self.cells * self.scale)

    @property
    def is_native(self) -> bool:
        """Whether the batch is at scale 1, where the target is the picture that was encoded."""
        return self.sharp is None and self.photo is None

    def encoded(self, device: torch.device) -> Tensor:
        """The pictures that were encoded, float32 [B, 3, 8 * cells, 8 * cells] in [0, 1] on a device."""
        return self.small.to(device, non_blocking=True).float() / 255

    def target(self, device: torch.device) -> Tensor:
        """The target of the pixel losses, float32 [B, 3, side, side] in [0, 1] on a device."""
        return self._sized(self.sharp if self.sharp is not None else self.photo, device)

    def real(self, device: torch.device) -> Tensor:
        """The pictures that LPIPS and the adversary compare with: the photographs if the batch has them.

        They have the same form as the target.
        """
        return self._sized(self.photo if self.photo is not None else self.sharp, device)

    def _sized(self, pixels: Tensor | None, device: torch.device) -> Tensor:
        if pixels is None:
            return self.encoded(device)
        image = pixels.to(device, non_blocking=True).float() / 255
        if image.shape[-1] == self.side:
            return image
        return F.interpolate(image, size=(self.side, self.side), mode="bicubic", antialias=True).clamp(0, 1)


class Batches:
    """Draws a batch for each step number. With the same seed and views, the same step always gets the same batch.

    Args:
        views: The views to learn from. Views with fewer than ``config.cells`` cells per side are not used.
        config: Config of the run.
        enlargements: Enlargements of the model. Empty for a model that decodes all scales without enlargements.

    Raises:
        InputError: No view is large enough, or no view has the pictures that a lesson needs.
    """

    def __init__(self, views: Sequence[View], config: TrainConfig, enlargements: Sequence[Enlargement]) -> None:
        self.config = config
        self.views = [view for view in views if view.cells >= config.cells]
        if not self.views:
            most = max((view.cells for view in views), default=0)
            raise InputError(
                f"none of {len(views)} views has {config.cells} cells per side: make some of larger photographs with "
                f"infgen_training.views, or learn from smaller squares with --set cells={most}"
            )
        self.sharp = [view for view in self.views if view.sharp is not None]
        self.photographs = [view for view in self.views if view.photo is not None]
        enlarging = any(lesson.factor > 1 and lesson.share for lesson in config.lessons)
        if enlarging and not self.photographs and (config.sharp < 1 or not self.sharp):
            other = ", or learn from sharp pictures alone with --set sharp=1" if self.sharp else ""
            raise InputError(
                "none of the views has the photograph at its own size, which a lesson above scale 1 learns from: "
                f"make some with infgen_training.views, without an enlarger{other}"
            )
        self.below = {each.factor: before.factor for before, each in zip(enlargements, enlargements[1:], strict=False)}

    def draw(self, step: int) -> Batch:
        """The batch of a step."""
        config, rng = self.config, np.random.default_rng((self.config.seed, step))
        shares = np.array([lesson.share for lesson in config.lessons], float)
        lesson = config.lessons[int(rng.choice(len(shares), p=shares / shares.sum()))]
        scale = float(lesson.factor)
        if lesson.factor > 1 and rng.random() < config.between:
            scale = rng.uniform(self.below.get(lesson.factor, lesson.factor / 2) + 0.1, lesson.factor)
        sharp = lesson.factor > 1 and bool(self.sharp) and (not self.photographs or rng.random() < config.sharp)
        pool = self.views if lesson.factor == 1 else self.sharp if sharp else self.photographs
        chosen = [pool[i] for i in rng.choice(len(pool), lesson.batch, replace=lesson.batch > len(pool))]
        corners = tuple(
            (int(rng.integers(view.cells - config.cells + 1)), int(rng.integers(view.cells - config.cells + 1)))
            for view in chosen
        )
        # For an encoder, the latents are targets and not inputs. For the largest enlargement, what was computed from
        # them is kept. Neither gets noise.
        noise = config.noise if config.part not in ("encoder", "largest") else 0.0
        latents = tuple(_noisy(view.latent, noise, rng) for view in chosen)
        small = self._cut([view.small for view in chosen], corners, 1)
        clean = sharp and rng.random() < lesson.clean
        pictures: list[Tensor | None] = []
        for name in ("sharp", "photo"):
            found = [each for view in chosen if (each := getattr(view, name)) is not None]
            wanted = lesson.factor > 1 and len(found) == len(chosen) and (not clean if name == "photo" else sharp)
            pictures.append(self._cut(found, corners, FACTOR) if wanted else None)
        guides = tuple(view.guide.float() for view in chosen if view.guide is not None)
        sharpened, photographed = pictures
        return Batch(
            *(lesson, scale, latents, corners, config.cells, small, sharpened, photographed, guides),
            views=tuple(chosen),
        )

    def _cut(self, pictures: Sequence[Pixels], corners: Sequence[tuple[int, int]], factor: int) -> Tensor:
        """Cuts the squares, uint8 [B, 3, h, w], from pictures ``factor`` times as large as those that were encoded."""
        side, parts = PATCH * factor, []
        for pixels, (row, column) in zip(pictures, corners, strict=True):
            rows, columns = (slice(side * first, side * (first + self.config.cells)) for first in (row, column))
            parts.append(pixels[rows, columns])
        return torch.from_numpy(np.stack(parts)).permute(0, 3, 1, 2).contiguous()


class Turns:
    """Chooses the model that learns in each step, and draws its batch.

    Each model has its own batches, because each has its own latent space.

    Args:
        batches: The batches of each model. The first model is the run's own.
        config: Config of the run. ``config.others`` is the share of the steps for all other models together.
    """

    def __init__(self, batches: Sequence[Batches], config: TrainConfig) -> None:
        self._batches, self._config = batches, config

    def draw(self, step: int) -> Batch:
        """The batch of a step."""
        rng = np.random.default_rng((self._config.seed, step, 1))
        others = len(self._batches) - 1
        index = 1 + int(rng.integers(others)) if others and rng.random() < self._config.others else 0
        return replace(self._batches[index].draw(step), model=index)


def _noisy(latent: Tensor, most: float, rng: np.random.Generator) -> Tensor:
    noise = rng.normal(0, rng.uniform(0, most), latent.shape)
    return latent.float() + torch.from_numpy(noise.astype(np.float32))
