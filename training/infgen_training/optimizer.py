"""The optimiser of a run, and its learning rate at every step."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from pytorch_optimizer import Muon
from torch import nn

from infgen_training.config import TrainConfig

# Layers at either end map between spaces of fixed meaning; orthogonalised updates are for what lies between.
_ENDS = (
    *("prefill.enter.", "inpe.mlp.0.", "upsampler.to_pixels.", "mask_token"),
    *("encode.enter.", "encode.leave."),
)
TRUNK = ("prefill.enter.", "prefill.blocks.", "refine.grow.", "refine.levels.")
"""The trunk's parameters."""
_COPIED = (*TRUNK, "encode.levels.", "encode.shrink.", "encode.leave.")
"""What a warm start copies (see ``warmstart``)."""


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Groups the parameters and makes the optimiser; each group knows its highest rate as ``peak``."""
    groups: list[dict[str, Any]] = []
    for share, parameters in _shares(model, config):
        hidden, ends, vectors = [], [], []
        for name, parameter in parameters:
            if parameter.ndim < 2:
                vectors.append(parameter)
            elif any(end in name for end in _ENDS):
                ends.append(parameter)
            else:
                hidden.append(parameter)
        lr, muon_lr = share * config.lr, share * config.muon_lr
        if config.optimizer == "adamw":
            groups.append({"params": hidden + ends, "weight_decay": config.weight_decay, "peak": lr})
            groups.append({"params": vectors, "weight_decay": 0.0, "peak": lr})
        else:
            adamw = {"use_muon": False, "betas": (0.9, 0.99), "eps": 1e-8}
            groups.append({"params": hidden, "use_muon": True, "peak": muon_lr})
            groups.append({"params": ends + vectors, "peak": lr, **adamw})
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, betas=(0.9, 0.99))
    return Muon(groups)


def _shares(model: nn.Module, config: TrainConfig) -> Iterator[tuple[float, list[tuple[str, nn.Parameter]]]]:
    """Parts of the model, each with its share of the learning rates."""
    named = list(model.named_parameters())
    yield 1.0, [(name, parameter) for name, parameter in named if not name.startswith(_COPIED)]
    if copied := [(name, parameter) for name, parameter in named if name.startswith(_COPIED)]:
        yield config.copied_share, copied


def set_learning_rate(optimizer: torch.optim.Optimizer, config: TrainConfig, step: int) -> None:
    """Linear warm-up, then a cosine from each group's peak to its ``final`` share."""
    if step < config.warmup:
        share = (step + 1) / config.warmup
    else:
        done = min(1.0, (step - config.warmup) / max(1, config.steps - config.warmup))
        share = config.final + (1 - config.final) * (1 + math.cos(math.pi * done)) / 2
    for group in optimizer.param_groups:
        group["lr"] = share * group["peak"]
