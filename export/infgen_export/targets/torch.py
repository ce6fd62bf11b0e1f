"""The PyTorch target: a checkpoint's own weights, for the backend that runs the model's code."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file as load_numpy
from safetensors.torch import load as read
from safetensors.torch import save_file
from torch import Tensor

from infgen_export.pool import Array, Pool
from infgen_export.recipes import Recipe
from infgen_export.targets import Options
from infgen_model.checkpoint import CONFIG
from infgen_model.checkpoint import WEIGHTS as CHECKPOINT
from infgen_model.config import OF_SPACE
from infgen_model.graphs import Graph
from infgen_rt.backend.protocol import Options as RunOptions
from infgen_rt.bundle.graphs import WEIGHTS
from infgen_rt.bundle.manifest import Recipe as BundleRecipe
from infgen_runtimes.torch import Backend, Pixels

SUFFIX = ".json"
SHARED = True
POOLED = True
NAMED = True
BACKEND = "torch"
NATIVE = True


def trace(graph: Graph, example: tuple[Tensor, ...], options: Options) -> dict[str, Tensor]:
    """The graph's weights, named as in a checkpoint; see ``Target``."""
    part = graph.kind.part
    names = ((name, value) for name, value in graph.module.state_dict().items())
    # The modules of prefill and encode are parts of the model, so their weights lack the part's name. The others
    # contain a part.
    return {name if name.startswith(f"{part}.") else f"{part}.{name}": value.detach() for name, value in names}


def convert(
    traced: dict[str, Tensor],
    graph: Graph,
    path: Path,
    metadata: Mapping[str, str],
    recipe: Recipe,
    options: Options,
) -> None:
    """Writes ``config.json`` and ``model.safetensors`` in a folder, or adds to them; see ``Target``."""
    path.mkdir(exist_ok=True)
    (path / CONFIG).write_text(json.dumps(graph.config.to_json(), indent=2) + "\n")
    dtype = torch.float16 if recipe.precision == "fp16" else torch.float32
    # The frequencies of the positional embedding stay float32, as in all targets.
    values = {name: value if "frequencies" in name else value.to(dtype) for name, value in traced.items()}
    known = read((path / CHECKPOINT).read_bytes()) if (path / CHECKPOINT).exists() else {}
    # The file holds several graphs, so it does not have the name of one.
    about = {name: value for name, value in metadata.items() if name != "graph"}
    save_file(known | {name: value.contiguous() for name, value in values.items()}, path / CHECKPOINT, about)


def load(path: Path, graph: str, precision: str | None = None) -> Session:
    """Loads a graph into the backend, in float32 or in a native precision; see ``Target``."""
    return Session(path, graph, precision or "fp32")


def weights(path: Path) -> dict[str, Array]:
    """The tensors by their names in a checkpoint; see ``Target``.

    The name of a tensor that belongs to a latent space starts with the name of that space.
    """
    space = _described(path)["latent_space"]
    return {
        f"{space}/{name}" if name.startswith(OF_SPACE) else name: value
        for name, value in load_numpy(path / CHECKPOINT).items()
    }


def pack(path: Path, output: Path, pools: Sequence[Pool]) -> None:
    """Writes the config, and the name that each tensor of the checkpoint has in the pools; see ``Target``."""
    stored = {
        name: next(pool.name(value) for pool in pools if pool.has(value))
        for name, value in load_numpy(path / CHECKPOINT).items()
    }
    output.write_text(json.dumps({"config": _described(path), "weights": stored}, indent=1) + "\n")


def _described(path: Path) -> dict[str, Any]:
    described: dict[str, Any] = json.loads((path / CONFIG).read_text())
    return described


def native_precisions() -> tuple[str, ...]:
    """The low precision that PyTorch supports on this CPU, if there is one."""
    anything = BundleRecipe("", "torch", "fp32", {}, None)
    return tuple(Backend().arithmetics("cpu", anything))[1:]


class Session:
    """A graph in the runtime's own backend; see ``targets.Session``."""

    def __init__(self, path: Path, graph: str, arithmetic: str) -> None:
        names = load_numpy(path / CHECKPOINT)
        described = {"config": _described(path), "weights": {name: name for name in names}}
        files = {f"model{SUFFIX}": json.dumps(described).encode(), WEIGHTS: (path / CHECKPOINT).read_bytes()}
        self._session = Backend().load(graph, files, RunOptions(arithmetic=arithmetic))
        self.operations: Counter[str] = Counter()

    def __call__(self, inputs: dict[str, Tensor]) -> Tensor:
        """Runs the graph on named inputs."""
        (output,) = self._session.run({name: value.numpy() for name, value in inputs.items()}).values()
        return torch.as_tensor(output.fetch(np.float32) if isinstance(output, Pixels) else output).clone()
