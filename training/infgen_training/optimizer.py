"""The optimiser of a run, and its learning rate at every step."""

from __future__ import annotations

import math

import torch
from pytorch_optimizer import Muon
from torch import nn

from infgen_training.config import TrainConfig

# Layers at either end map between spaces of fixed meaning; orthogonalised updates are for what lies between.
_ENDS = ("prefill.trunk.0.", "inpe.mlp.0.", "upsampler.to_pixels.", "encode.layers.1.", "mask_token")


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Groups the parameters and makes the optimiser; each group knows its highest rate as ``peak``."""
    hidden, ends, vectors = [], [], []
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2:
            vectors.append(parameter)
        elif any(end in name for end in _ENDS):
            ends.append(parameter)
        else:
            hidden.append(parameter)
    if config.optimizer == "adamw":
        return torch.optim.AdamW(
            [
                {"params": hidden + ends, "weight_decay": config.weight_decay, "peak": config.lr},
                {"params": vectors, "weight_decay": 0.0, "peak": config.lr},
            ],
            betas=(0.9, 0.99),
        )
    return Muon(
        [
            {"params": hidden, "use_muon": True, "peak": config.muon_lr},
            {"params": ends + vectors, "use_muon": False, "peak": config.lr, "betas": (0.9, 0.99), "eps": 1e-8},
        ]
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, config: TrainConfig, step: int) -> None:
    """Linear warm-up, then a cosine from each group's peak to its ``final`` share."""
    if step < config.warmup:
        share = (step + 1) / config.warmup
    else:
        done = min(1.0, (step - config.warmup) / max(1, config.steps - config.warmup))
        share = config.final + (1 - config.final) * (1 + math.cos(math.pi * done)) / 2
    for group in optimizer.param_groups:
        group["lr"] = share * group["peak"]
