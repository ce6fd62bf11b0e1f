"""Counts multiply-adds. Plans estimate times from them, and the benchmarks report them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

from infgen_model import Enlargement, InfGen

_CELLS = 16


def multiply_adds(run: Callable[[], object]) -> float:
    """Multiply-adds of the matrix products and convolutions in a call. Element-wise operations are not counted.

    Args:
        run: The call.

    Examples:
        >>> layer = torch.nn.Linear(20, 30)
        >>> multiply_adds(lambda: layer(torch.zeros(7, 20)))
        4200.0
    """
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        run()
    return float(counter.get_total_flops()) / 2


def context_work(model: InfGen, enlargement: Enlargement | None = None) -> int:
    """Multiply-adds per cell for making a context.

    Args:
        model: The model.
        enlargement: The enlargement that the context is made for, if the model has any.
    """
    latent = torch.zeros(1, model.config.latent_channels, _CELLS, _CELLS)
    return round(multiply_adds(lambda: model.context(latent, enlargement)) / _CELLS**2)
