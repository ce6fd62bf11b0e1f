"""Reads and writes checkpoints. A checkpoint is a folder with ``config.json`` and ``model.safetensors``.

A checkpoint may have only the weights that belong to its latent space. Its config then has the path of its base, which
is a complete checkpoint of another space. All other weights are read from the base. Pickles are never read.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from infgen_model import DecoderConfig, InfGen
from infgen_model.config import OF_SPACE
from infgen_model.sharing import shares
from infgen_rt.common.files import whole
from infgen_rt.errors import InputError

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
_BASE = "base"
"""Name in the config for the base's path, relative to the checkpoint's folder."""

T = TypeVar("T")


class CheckpointError(InputError):
    """A checkpoint is missing, unreadable or does not fit its config."""


def save_checkpoint(folder: Path, model: InfGen, dtype: torch.dtype = torch.float32, base: Path | None = None) -> None:
    """Writes a checkpoint. Nothing of an older one is lost if the new one cannot be written.

    Args:
        folder: Folder of the checkpoint. It is created if it does not exist.
        model: The model to save.
        dtype: Type in which the weights are stored. Compared with float32, float16 halves the file, and no difference
            is visible in pictures.
        base: A complete checkpoint that has the same weights, except for those that belong to its latent space. Only
            the weights that belong to the model's latent space are then written.

    Raises:
        CheckpointError: The base cannot be read, or other weights of it differ too, or the folder is the base's own, or
            a weight is not finite, or the folder cannot be written.

    Examples:
        >>> from infgen_model import edge
        >>> save_checkpoint(Path("checkpoint"), InfGen(edge()), torch.float16)
        >>> load_checkpoint("checkpoint").config.name
        'infgen-edge-flux2'
    """
    values, state = model.config.to_json(), model.state_dict()
    if base is not None:
        if folder.resolve() == base.resolve():
            raise CheckpointError(
                f"{folder} is the base itself, whose other weights would be lost: choose another folder"
            )
        if not shares(load_checkpoint(base), model):
            raise CheckpointError(
                f"{base} is no base of this model: they differ in weights that do not belong to a latent space"
            )
        values[_BASE] = Path(os.path.relpath(base, folder)).as_posix()
        state = {name: value for name, value in state.items() if name.startswith(OF_SPACE)}
    state = {name: value.detach().to("cpu", dtype).contiguous() for name, value in state.items()}
    if problem := _not_finite(state):
        raise CheckpointError(f"{folder} is not written: {problem}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with whole(folder / CONFIG) as config, whole(folder / WEIGHTS) as weights:
            config.write_text(json.dumps(values, indent=2) + "\n")
            # safetensors itself would write a file that only its owner may read.
            weights.write_bytes(save(state))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{folder} cannot be written: {error}") from error


def load_checkpoint(folder: str | Path) -> InfGen:
    """Reads a checkpoint as a float32 model in evaluation mode.

    Args:
        folder: Folder of the checkpoint.

    Raises:
        CheckpointError: A file is missing or unreadable, or the tensors do not fit the config. The message lists the
            tensors that are missing, unknown, of the wrong shape or not finite.
    """
    folder = Path(folder)
    if not os.path.isdir(folder):
        hint = " (pickles are refused: they can run code)" if folder.suffix in {".pt", ".pth", ".ckpt", ".bin"} else ""
        raise CheckpointError(f"{folder} is not a checkpoint folder with {CONFIG} and {WEIGHTS}{hint}")
    config, base = _read(folder / CONFIG, _described)
    state = _read(folder / WEIGHTS, load_file)
    if base is not None:
        state = _shared(folder / base) | state
    # This takes no memory for weights. If the config is wrong, there could be far too many of them.
    with torch.device("meta"):
        expected = InfGen(config).state_dict()
    if problems := _problems(state, expected):
        raise CheckpointError(f"{folder / WEIGHTS} does not fit its config: " + "; ".join(problems))
    model = InfGen(config)
    model.load_state_dict(state)
    return model.eval()


def _described(file: Path) -> tuple[DecoderConfig, str | None]:
    """The config in a file, and the path of the base if there is one.

    Raises:
        ValueError: The file is not the config of a checkpoint.
    """
    values = json.loads(file.read_text())
    base = values.pop(_BASE, None) if isinstance(values, dict) else None
    if not (base is None or isinstance(base, str)):
        raise ValueError(f"{_BASE} must be a path, not {base!r}")
    return DecoderConfig.from_json(values), base


def _shared(base: Path) -> dict[str, Any]:
    """The weights of a base that do not belong to its latent space.

    Raises:
        CheckpointError: The base cannot be read, or has a base itself.
    """
    if (base / CONFIG).exists() and _read(base / CONFIG, _described)[1] is not None:
        raise CheckpointError(f"{base} has a base itself: name the complete checkpoint that is the base of both")
    return {name: value for name, value in load_checkpoint(base).state_dict().items() if not name.startswith(OF_SPACE)}


def _read(file: Path, read: Callable[[Path], T]) -> T:
    """Reads a file with a function.

    Raises:
        CheckpointError: The file is missing or cannot be read.
    """
    if not file.exists():
        raise CheckpointError(f"{file.parent} lacks {file.name}")
    try:
        return read(file)
    except (OSError, ValueError, OverflowError, RecursionError, SafetensorError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from error


def _problems(state: dict[str, Tensor], expected: dict[str, Tensor]) -> list[str]:
    """The reasons why tensors do not fit a model, by the tensors that the model expects."""
    problems = []
    if missing := sorted(expected.keys() - state.keys()):
        problems.append(f"{len(missing)} tensors missing, first {missing[0]}")
    if extra := sorted(state.keys() - expected.keys()):
        problems.append(f"{len(extra)} tensors unknown, first {extra[0]}")
    both = sorted(expected.keys() & state.keys())
    problems += [
        f"{name} has shape {list(state[name].shape)}, expected {list(expected[name].shape)}"
        for name in both
        if state[name].shape != expected[name].shape
    ]
    if problem := _not_finite({name: state[name] for name in both}):
        problems.append(problem)
    return problems


def _not_finite(state: dict[str, Tensor]) -> str | None:
    """What is wrong if tensors are not finite."""
    names = [name for name, value in state.items() if not torch.isfinite(value).all()]
    return f"{len(names)} tensors hold NaN or infinity, first {names[0]}" if names else None
