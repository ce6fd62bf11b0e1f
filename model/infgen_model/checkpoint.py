"""Checkpoints: a folder with ``config.json`` and ``model.safetensors``. Pickles are never read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from infgen_model import DecoderConfig, InfGen
from infgen_rt.common.files import whole
from infgen_rt.errors import InputError

CONFIG = "config.json"
WEIGHTS = "model.safetensors"

T = TypeVar("T")


class CheckpointError(InputError):
    """A checkpoint is missing, unreadable or does not fit its config."""


def save_checkpoint(folder: Path, model: InfGen, dtype: torch.dtype = torch.float32) -> None:
    """Writes a checkpoint. The file of weights is written atomically.

    Args:
        folder: Created if missing.
        model: The model to save.
        dtype: Type that the weights are stored in. float16 halves the file at no visible cost.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(model.config.to_json(), indent=2) + "\n")
    state = {name: value.detach().to("cpu", dtype).contiguous() for name, value in model.state_dict().items()}
    with whole(folder / WEIGHTS) as partial:
        save_file(state, partial)


def load_checkpoint(folder: str | Path) -> InfGen:
    """Reads a checkpoint as a float32 model in evaluation mode.

    Raises:
        CheckpointError: A file is missing or unreadable, or the tensors do not fit the config. The message lists the
            tensors that are missing, unknown, of the wrong shape or not finite.
    """
    folder = Path(folder)
    if not folder.is_dir():
        hint = " (pickles are refused: they can run code)" if folder.suffix in {".pt", ".pth", ".ckpt", ".bin"} else ""
        raise CheckpointError(f"{folder} is not a checkpoint folder with {CONFIG} and {WEIGHTS}{hint}")
    config = _read(folder / CONFIG, lambda file: DecoderConfig.from_json(json.loads(file.read_text())))
    state = _read(folder / WEIGHTS, load_file)
    # Without memory for its weights, which would be too much for a config that is wrong.
    with torch.device("meta"):
        expected = InfGen(config).state_dict()
    if problems := _problems(state, expected):
        raise CheckpointError(f"{folder / WEIGHTS} does not fit its config: " + "; ".join(problems))
    model = InfGen(config)
    model.load_state_dict(state)
    return model.eval()


def _read(file: Path, read: Callable[[Path], T]) -> T:
    if not file.exists():
        raise CheckpointError(f"{file.parent} lacks {file.name}")
    try:
        return read(file)
    except (OSError, ValueError, OverflowError, RecursionError, SafetensorError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from error


def _problems(state: dict[str, Tensor], expected: dict[str, Tensor]) -> list[str]:
    problems = []
    if missing := sorted(expected.keys() - state.keys()):
        problems.append(f"{len(missing)} tensors missing, first {missing[0]}")
    if extra := sorted(state.keys() - expected.keys()):
        problems.append(f"{len(extra)} tensors unknown, first {extra[0]}")
    for name in sorted(expected.keys() & state.keys()):
        if state[name].shape != expected[name].shape:
            problems.append(f"{name} has shape {list(state[name].shape)}, expected {list(expected[name].shape)}")
        elif not torch.isfinite(state[name]).all():
            problems.append(f"{name} holds NaN or infinity")
    return problems
