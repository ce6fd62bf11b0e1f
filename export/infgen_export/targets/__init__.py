"""Targets: a module each, which converts a graph and runs what came of it."""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

from torch import Tensor

from infgen_export.errors import RequestError
from infgen_export.quiet import quiet
from infgen_export.recipes import Recipe
from infgen_model.graphs import Graph

OPSETS = (18, 23)
"""Oldest and newest ONNX operator set that exports."""
DEPLOYMENT_TARGETS = ("iOS18", "macOS15", "iOS26", "macOS26")
"""Oldest systems that a Core ML program may be made for: attention is an operation of its own from the first on."""
LEAST_WEIGHTS = 20_000
"""Smaller weights are left alone by 8 bits: there is little to win, and first and last layers are sensitive."""


@dataclass(frozen=True)
class Options:
    """What may be asked of conversions.

    Attributes:
        opset: ONNX operator set.
        deployment_target: Oldest system that a Core ML program runs on, from ``DEPLOYMENT_TARGETS``.
    """

    opset: int = 20
    deployment_target: str = "iOS18"


class Session(Protocol):
    """A converted graph, ready to run in its own runtime or in what stands in for it."""

    @property
    def operations(self) -> Counter[str]:
        """How often each kind of operation occurs in the graph."""
        ...

    def __call__(self, inputs: dict[str, Tensor]) -> Tensor:
        """Runs it on named inputs, in float32."""
        ...


class Target(Protocol):
    """What a target's module has.

    Attributes:
        SUFFIX: Of a graph's file or folder.
        SHARED: Name of the one folder that all graphs of a recipe are in, if they are not each on its own.
        BACKEND: The runtime backend that these graphs are for, if this machine can run it.
        NATIVE: Whether a session runs in the target's own runtime, so that its seconds mean something.
    """

    SUFFIX: str
    SHARED: str | None
    BACKEND: str | None
    NATIVE: bool

    def trace(self, graph: Graph, example: tuple[Tensor, ...], options: Options) -> Any:
        """Turns a graph into the target's own terms, once for all recipes of the same shapes.

        Args:
            graph: What to convert; its module is in evaluation mode.
            example: Arguments to trace with.
            options: What was asked for beyond the recipe.
        """
        ...

    def convert(
        self, traced: Any, graph: Graph, path: Path, metadata: Mapping[str, str], recipe: Recipe, options: Options
    ) -> None:
        """Writes a graph.

        Args:
            traced: What ``trace`` made, which is left as it is.
            graph: What it was made of.
            path: File or folder to make; its parent exists.
            metadata: Properties of the model; descriptions and bounds of the inputs are added.
            recipe: Precision and shapes.
            options: What was asked for beyond the recipe.
        """
        ...

    def load(self, path: Path, graph: str, precision: str | None = None) -> Session:
        """Loads a graph by its name from what ``convert`` wrote, to compute in what it says or a native precision."""
        ...

    def native_precisions(self) -> tuple[str, ...]:
        """Precisions that the runtime may compute in here whatever the graph says."""
        ...


def target_of(recipe: Recipe) -> Target:
    """The module of a recipe's target.

    Raises:
        RequestError: What it needs is not installed.
    """
    try:
        with quiet():  # coremltools says at length what a machine without macOS lacks
            return cast(Target, importlib.import_module(f"infgen_export.targets.{recipe.target}"))
    except ImportError as error:
        raise RequestError(
            f"target {recipe.target!r} needs {error.name}, which is not installed: pip install 'infgen-rt[export]'"
        ) from error


def depends_on(source: str, nodes: Iterable[tuple[str, Sequence[str], Sequence[str]]]) -> set[str]:
    """Names of the values that are computed from an input's values.

    What is not among them comes from coordinates, shapes and weights alone: the positional embedding, sampling and
    rotary angles, which must stay float32 in graphs of less precision.

    Args:
        source: Name of the input.
        nodes: Kind, inputs and outputs of every node, in topological order.
    """
    found = {source}
    for kind, inputs, outputs in nodes:
        if kind.lower() not in {"shape", "shapeof"} and not found.isdisjoint(inputs):
            found.update(outputs)
    return found
