"""Core ML's types, and functions that read an operation's parameters, which are tensors too."""

from __future__ import annotations

import torch
from coremltools.converters.mil.mil import types
from torch import Tensor

DTYPES = {
    types.fp16: torch.float16,
    types.fp32: torch.float32,
    types.int8: torch.int8,
    types.uint8: torch.uint8,
    types.int16: torch.int16,
    types.uint16: torch.uint16,
    types.int32: torch.int32,
    types.bool: torch.bool,
}
"""Core ML's types and the torch types that they correspond to."""


def ints(value: Tensor) -> list[int]:
    """A parameter as integers."""
    return [int(part) for part in value.flatten()]


def bools(value: Tensor | None, count: int) -> list[bool]:
    """A parameter as truth values. All are false if it is absent."""
    return [False] * count if value is None else [bool(part) for part in value.flatten()]


def axes_of(value: Tensor | None, rank: int) -> list[int]:
    """A parameter as axes of a tensor of some rank. If it is absent, it means all axes."""
    return list(range(rank)) if value is None else ints(value)
