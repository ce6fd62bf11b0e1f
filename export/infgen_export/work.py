"""Counts multiply-adds, from which plans estimate times and which the benchmarks report."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

from infgen_model import Enlargement, InfGen

_CELLS = 16


def multiply_adds(run: Callable[[], object]) -> float:
    """Multiply-adds of the matrix products and convolutions in a call. Element-wise operations are not counted."""
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        run()
    return float(counter.get_total_flops()) / 2


def context_work(model: InfGen, enlargement: Enlargement | None = None) -> int:
    """Multiply-adds per cell for making a context."""
    latent = torch.zeros(1, model.config.latent_channels, _CELLS, _CELLS)
    return round(multiply_adds(lambda: model.context(latent, enlargement)) / _CELLS**2)
