"""Reads what the evaluation is given as text or as JSON files."""

from __future__ import annotations

import json
from math import isfinite
from pathlib import Path
from typing import Any

from infgen_rt.errors import InputError, one_line


def parse_scales(text: str) -> list[float]:
    """Parses scales, such as ``1,2,4``.

    Raises:
        InputError: They are not numbers above 0.
    """
    try:
        values = [float(scale) for scale in text.split(",")]
    except ValueError:
        values = []
    if not values or not all(isfinite(scale) and scale > 0 for scale in values):
        raise InputError(f"scales {text!r} are not understood: expected numbers above 0, as 1,2,4")
    return values


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{file} is not a JSON file ({one_line(error)})") from error


def read_places(file: Path) -> dict[str, tuple[float, float]]:
    """Reads the centres of crops, by name of photograph.

    Raises:
        InputError: The file is damaged or has something else.
    """
    try:
        return {name: (float(across), float(down)) for name, (across, down) in _json(file).items()}
    except (AttributeError, TypeError, ValueError):
        raise InputError(f'{file} is not a table of places: expected {{"name": [across, down]}}, from 0 to 1') from None


def read_baseline(file: Path) -> dict[str, Any]:
    """Reads an earlier report.

    Raises:
        InputError: The file is damaged or has something else.
    """
    report = _json(file)
    try:
        methods = [means for by_method in report["scales"].values() for means in by_method.values()]
        values = [value for means in methods for value in means.values()]
        if not isinstance(report["pictures"], int) or not all(isinstance(each, float | int | None) for each in values):
            raise TypeError
    except (AttributeError, KeyError, TypeError):
        raise InputError(f"{file} is not a report of this command: pass a report.json that it has written") from None
    return dict(report)
