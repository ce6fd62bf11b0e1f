"""PyTorch: the checkpoint's own weights, a graph's part each, for the backend that runs the model's code."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from infgen_export.checkpoint import CONFIG, WEIGHTS
from infgen_export.graphs import Graph
from infgen_export.recipes import Recipe
from infgen_export.targets import Options
from infgen_rt.backends import Options as RunOptions
from infgen_rt.bundle import Recipe as BundleRecipe
from infgen_runtimes.torch import Backend, Pixels

SUFFIX = ""
"""A graph is a folder of two files."""
BACKEND = "torch"
NATIVE = True


def trace(graph: Graph, example: tuple[Tensor, ...], options: Options) -> dict[str, Tensor]:
    """The graph's weights; see ``Target``."""
    # Decode is wrapped, to take plain tensors; its weights are named as in a checkpoint.
    return {name.removeprefix("decode."): value.detach() for name, value in graph.module.state_dict().items()}


def convert(
    traced: dict[str, Tensor],
    graph: Graph,
    path: Path,
    metadata: Mapping[str, str],
    recipe: Recipe,
    options: Options,
) -> None:
    """Writes ``config.json`` and ``model.safetensors`` in a folder; see ``Target``."""
    path.mkdir()
    (path / CONFIG).write_text(json.dumps(graph.config.to_json(), indent=2) + "\n")
    dtype = torch.float16 if recipe.precision == "fp16" else torch.float32
    # Frequencies of the positional embedding stay float32, as everywhere.
    values = {name: value if "frequencies" in name else value.to(dtype) for name, value in traced.items()}
    save_file({name: value.contiguous() for name, value in values.items()}, path / WEIGHTS, dict(metadata))


def load(path: Path, precision: str | None = None) -> Session:
    """Loads a graph into the backend, in float32 or a native precision; see ``Target``."""
    return Session(path, precision or "fp32")


def native_precisions() -> tuple[str, ...]:
    """The low precision that PyTorch has on this CPU."""
    anything = BundleRecipe("", "torch", "fp32", {}, None)
    return tuple(Backend().arithmetics("cpu", anything))[1:]


class Session:
    """A graph in the runtime's own backend; see ``targets.Session``."""

    def __init__(self, path: Path, arithmetic: str) -> None:
        files = {file.name: file.read_bytes() for file in path.iterdir()}
        self._session = Backend().load(path.name, files, RunOptions(arithmetic=arithmetic))
        self.operations: Counter[str] = Counter()

    def __call__(self, inputs: dict[str, Tensor]) -> Tensor:
        """Runs it on named inputs."""
        (output,) = self._session.run({name: value.numpy() for name, value in inputs.items()}).values()
        return torch.as_tensor(output.fetch(np.float32) if isinstance(output, Pixels) else output).clone()
