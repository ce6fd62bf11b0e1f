"""Types of command-line options that several commands share."""

from __future__ import annotations

from math import isfinite
from typing import Any

import click
import torch

from infgen_training.config import FACTOR, PATCH


class _Device(click.ParamType[str]):
    name = "device"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            torch.empty(0, device=value)
        # PyTorch raises an AssertionError if it was built without CUDA.
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            self.fail(
                f"{value!r} cannot be used ({str(error).splitlines()[0]}): use cpu, or another device", param, ctx
            )
        return str(value)


class _Minutes(click.ParamType[float]):
    name = "float"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        minutes: float = click.FLOAT.convert(value, param, ctx)
        if not isfinite(minutes) or minutes < 0:
            self.fail(f"{value} is no time: expected a number of minutes, 0 or more", param, ctx)
        return minutes


DEVICE = _Device()
"""A device of PyTorch that works here."""
MINUTES = _Minutes()
"""A finite number of minutes, 0 or more."""
MIDDLE = click.IntRange(min=PATCH * FACTOR)
"""The side of the square of a photograph that is evaluated, in pixels. A cell at the largest scale is the least."""
COUNT = click.IntRange(min=1)
"""A number of things, of which there is at least one."""
SEED = click.IntRange(min=0)
"""The seed of a random generator."""
