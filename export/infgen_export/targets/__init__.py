"""Export targets. Each is a module that converts graphs and runs the converted graphs."""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

from numpy.typing import NDArray
from torch import Tensor

from infgen_export.errors import RequestError
from infgen_export.pool import Pool
from infgen_export.quiet import quiet
from infgen_export.recipes import Recipe
from infgen_model.graphs import Graph

OPSETS = (18, 23)
"""Oldest and newest ONNX operator set that a graph can be exported with."""
DEPLOYMENT_TARGETS = ("iOS18", "macOS15", "iOS26", "macOS26")
"""Possible deployment targets of a Core ML program. The first is the oldest that has attention as an operation."""
LEAST_WEIGHTS = 20_000
"""Weights with fewer values are not stored in 8 bits. It would save little, and some are sensitive layers."""


@dataclass(frozen=True)
class Options:
    """Options of conversions.

    Attributes:
        opset: ONNX operator set.
        deployment_target: Oldest system that a Core ML program runs on, from ``DEPLOYMENT_TARGETS``.
    """

    opset: int = 20
    deployment_target: str = "iOS18"


class Session(Protocol):
    """A converted graph, ready to run in its own runtime or in a substitute for it."""

    @property
    def operations(self) -> Counter[str]:
        """How often each kind of operation occurs in the graph."""
        ...

    def __call__(self, inputs: dict[str, Tensor]) -> Tensor:
        """Runs the graph on named inputs, in float32."""
        ...


class Target(Protocol):
    """The members of a target's module.

    Attributes:
        SUFFIX: Suffix of a graph's file or folder.
        SHARED: Whether all graphs of a model share one file.
        POOLED: Whether packed graphs refer to weights in the bundle's files of weights.
        NAMED: Whether weights have the names of a checkpoint. Otherwise, names mean nothing outside of their graph.
        BACKEND: Name of the backend with which the exporter measures memory. ``None`` if memory is not measured.
        NATIVE: Whether a session runs in the target's own runtime, so that its times are meaningful.
    """

    SUFFIX: str
    SHARED: bool
    POOLED: bool
    NAMED: bool
    BACKEND: str | None
    NATIVE: bool

    def trace(self, graph: Graph, example: tuple[Tensor, ...], options: Options) -> Any:
        """Traces a graph into the target's representation, once for all recipes of the same shapes.

        Args:
            graph: The graph to convert. Its module is in evaluation mode.
            example: Arguments to trace with.
            options: Options beyond the recipe.
        """
        ...

    def convert(
        self, traced: Any, graph: Graph, path: Path, metadata: Mapping[str, str], recipe: Recipe, options: Options
    ) -> None:
        """Writes a graph.

        Args:
            traced: The result of ``trace``, which must not be changed.
            graph: The graph that was traced.
            path: File or folder to make. Its parent exists.
            metadata: Properties of the model. Descriptions and bounds of the inputs are added.
            recipe: Precision and shapes.
            options: Options beyond the recipe.
        """
        ...

    def load(self, path: Path, graph: str, precision: str | None = None) -> Session:
        """Loads a graph by name from the output of ``convert``, in its own precision or a native one."""
        ...

    def weights(self, path: Path) -> dict[str, NDArray[Any]]:
        """The weights in the output of ``convert`` that may be stored elsewhere. Empty if there are none."""
        ...

    def pack(self, path: Path, output: Path, pools: Sequence[Pool]) -> None:
        """Writes the output of ``convert`` for a bundle, with references to those weights that the pools have.

        Args:
            path: File or folder that ``convert`` has written.
            output: File or folder to make, with this target's suffix, beside the pools' files.
            pools: The files with the graph's weights, already saved. There is one, except for targets whose graphs
                share a file, which may refer to the weights of a latent space and to shared ones.
        """
        ...

    def native_precisions(self) -> tuple[str, ...]:
        """Low precisions in which the runtime may compute on this machine, whatever the precision of the graph."""
        ...


def target_of(recipe: Recipe) -> Target:
    """The module of a recipe's target.

    Raises:
        RequestError: A package that the target needs is not installed.
    """
    try:
        with quiet():  # without macOS, coremltools prints many lines about missing features
            return cast(Target, importlib.import_module(f"infgen_export.targets.{recipe.target}"))
    except ImportError as error:
        raise RequestError(
            f'target {recipe.target!r} needs {error.name}, which is not installed: pip install "infgen-rt[export]"'
        ) from error


def depends_on(sources: Collection[str], nodes: Iterable[tuple[str, Sequence[str], Sequence[str]]]) -> set[str]:
    """Finds the values of a graph that are computed from the values of certain inputs.

    All other values depend only on coordinates, shapes and weights. They are the positional embedding, the sampling
    matrices and the rotary angles, which must stay float32 in graphs of lower precision.

    Args:
        sources: Names of the inputs.
        nodes: Kind, inputs and outputs of every node, in topological order.

    Returns:
        The names of the values, including the inputs.
    """
    found = set(sources)
    for kind, inputs, outputs in nodes:
        if kind.lower() not in {"shape", "shapeof"} and not found.isdisjoint(inputs):
            found.update(outputs)
    return found
