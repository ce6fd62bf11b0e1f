"""Keeps what a decoder computes before the part of it that is trained.

A run with ``part="largest"`` trains only what the largest enlargement alone uses. All that comes before it never
changes, so it is computed once per view. A view of 32x32 cells then takes 15 MB of memory.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from infgen_model import Grid, InfGen
from infgen_rt.errors import InputError
from infgen_training.batches import Batch
from infgen_training.config import FACTOR, PATCH
from infgen_training.views import View


@dataclass(frozen=True)
class Begun:
    """What a decoder computed for a view before the part that is trained. All are float16.

    Attributes:
        features: The enlarger's features [F, 8n, 8n] after the convolutions that a smaller enlargement uses too.
        picture: The trunk's picture [3, 8n, 8n].
        correction: What the tokens add to the enlarged picture, [3, 32n, 32n].
    """

    features: Tensor
    picture: Tensor
    correction: Tensor


class Largest:
    """Decodes squares of views at the scale of a model's largest enlargement.

    Args:
        model: The model. Nothing that it computes before its largest enlargement's own part may change afterwards.
        device: The device of the model.

    Raises:
        InputError: The model's largest enlargement is not by the factor of training, which is 4.
    """

    def __init__(self, model: InfGen, device: torch.device) -> None:
        enlargements = model.config.enlargements
        if not enlargements or enlargements[-1].factor != FACTOR:
            raise InputError(f"the part largest needs a model with an enlargement by {FACTOR}: train another part")
        self._model, self._device, self._enlargement = model, device, enlargements[-1]
        self._blocks = model.config.shared_blocks
        self._begun: dict[int, Begun] = {}

    def picture(self, batch: Batch) -> Tensor:
        """Decodes a batch's squares, [B, 3, side, side]. Only the largest enlargement's part has gradients."""
        assert self._model.refine is not None
        begun = [self._of(view) for view in batch.views]
        features, picture, correction = (
            self._cut([getattr(each, name) for each in begun], batch, factor)
            for name, factor in (("features", 1), ("picture", 1), ("correction", FACTOR))
        )
        enlarged = self._model.refine.enlarger.end(features, picture, self._enlargement, self._blocks)
        return enlarged + correction

    def _cut(self, wholes: list[Tensor], batch: Batch, factor: int) -> Tensor:
        side = PATCH * factor
        parts = [
            each[:, side * row : side * (row + batch.cells), side * column : side * (column + batch.cells)]
            for each, (row, column) in zip(wholes, batch.corners, strict=True)
        ]
        # Autocast on a CPU cannot stack float16.
        with torch.autocast(self._device.type, enabled=False):
            return torch.stack(parts).to(self._device).float().contiguous(memory_format=torch.channels_last)

    def _of(self, view: View) -> Begun:
        # The run holds all views to its end, so their identities stay theirs.
        if id(view) not in self._begun:
            self._begun[id(view)] = self._begin(view)
        return self._begun[id(view)]

    @torch.no_grad()
    def _begin(self, view: View) -> Begun:
        model, cells, side = self._model, view.cells, PATCH * FACTOR * view.cells
        assert model.refine is not None
        # It is kept in float16, so it is computed in float32. It stays on the device, which has more than enough memory
        # for it if it is a GPU.
        with torch.autocast(self._device.type, enabled=False):
            features = model.prefill(view.latent[None].float().to(self._device))
            fine = model.refine.grown(features)
            begun = model.refine.enlarger.begin(fine[:, :-3], fine[:, -3:], self._blocks)
            # At the largest enlargement's own scale, the tokens add the same to any enlarged picture.
            black = features.new_zeros(1, 3 * (side // cells) ** 2, cells, cells)
            grid = Grid.whole((cells, cells), (side, side)).to(self._device)
            correction = model.decode(model.refine.with_picture(features, fine, black), grid, self._enlargement)
            return Begun(*(each[0].half() for each in (begun, fine[:, -3:], correction[:, :, :side, :side])))
