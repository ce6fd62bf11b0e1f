"""Command-line options that several commands share, and types of such options."""

from __future__ import annotations

from math import isfinite
from pathlib import Path
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


FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
"""A file that exists."""
FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
"""A folder that exists."""
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
device_option = click.option(
    "--device", type=DEVICE, default="cuda" if torch.cuda.is_available() else "cpu", show_default=True
)
"""The option for the device to compute on, which is CUDA by default where PyTorch can use it."""
