"""The PyTorch target: the checkpoint's own weights, for the backend that runs the model's code."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from infgen_export.recipes import Recipe
from infgen_export.targets import Options
from infgen_model.checkpoint import CONFIG, WEIGHTS
from infgen_model.graphs import Graph
from infgen_rt.backend.protocol import Options as RunOptions
from infgen_rt.bundle.graphs import kind_of
from infgen_rt.bundle.manifest import Recipe as BundleRecipe
from infgen_runtimes.torch import Backend, Pixels

SUFFIX = ""
SHARED = "weights"
"""Name of the folder of two files that all graphs share, because some have weights in common."""
BACKEND = "torch"
NATIVE = True


def trace(graph: Graph, example: tuple[Tensor, ...], options: Options) -> dict[str, Tensor]:
    """The graph's weights, named as in a checkpoint; see ``Target``."""
    part = kind_of(graph.kind).part
    names = ((name, value) for name, value in graph.module.state_dict().items())
    # The modules of prefill and encode are parts of the model. The others contain one.
    return {name if name.startswith(f"{part}.") else f"{part}.{name}": value.detach() for name, value in names}


def convert(
    traced: dict[str, Tensor],
    graph: Graph,
    path: Path,
    metadata: Mapping[str, str],
    recipe: Recipe,
    options: Options,
) -> None:
    """Writes ``config.json``, and adds the weights that ``model.safetensors`` lacks to it; see ``Target``."""
    path.mkdir(exist_ok=True)
    (path / CONFIG).write_text(json.dumps(graph.config.to_json(), indent=2) + "\n")
    dtype = torch.float16 if recipe.precision == "fp16" else torch.float32
    # The frequencies of the positional embedding stay float32, as in all targets.
    values = {name: value if "frequencies" in name else value.to(dtype) for name, value in traced.items()}
    known = load_file(path / WEIGHTS) if (path / WEIGHTS).exists() else {}
    # The file holds several graphs, so it does not have the name of one.
    about = {name: value for name, value in metadata.items() if name != "graph"}
    save_file(known | {name: value.contiguous() for name, value in values.items()}, path / WEIGHTS, about)


def load(path: Path, graph: str, precision: str | None = None) -> Session:
    """Loads a graph into the backend, in float32 or in a native precision; see ``Target``."""
    return Session(path, graph, precision or "fp32")


def native_precisions() -> tuple[str, ...]:
    """The low precision that PyTorch supports on this CPU."""
    anything = BundleRecipe("", "torch", "fp32", {}, None)
    return tuple(Backend().arithmetics("cpu", anything))[1:]


class Session:
    """A graph in the runtime's own backend; see ``targets.Session``."""

    def __init__(self, path: Path, graph: str, arithmetic: str) -> None:
        files = {file.name: file.read_bytes() for file in path.iterdir()}
        self._session = Backend().load(graph, files, RunOptions(arithmetic=arithmetic))
        self.operations: Counter[str] = Counter()

    def __call__(self, inputs: dict[str, Tensor]) -> Tensor:
        """Runs it on named inputs."""
        (output,) = self._session.run({name: value.numpy() for name, value in inputs.items()}).values()
        return torch.as_tensor(output.fetch(np.float32) if isinstance(output, Pixels) else output).clone()
