"""The dimensions of a graph, as ``torch.export`` and the targets need them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.export import Dim

from infgen_model.graphs import Graph


def dynamic_shapes(graph: Graph) -> tuple[dict[int, Any], ...]:
    """The dynamic axes of every input, for ``torch.export``. A dimension with equal bounds is static.

    Returns:
        A dictionary for each input, with the dimension of each dynamic axis.
    """
    dims = {name: Dim(name, min=low, max=high) for name, (low, high) in graph.bounds.items() if low < high}
    return tuple(
        {axis: factor * dims[name] if factor > 1 else dims[name] for axis, factor, name in spec.named() if name in dims}
        for spec in graph.inputs
    )


def described_bounds(bounds: Mapping[str, tuple[int, int]]) -> dict[str, str]:
    """Metadata of a graph's file about the smallest and the largest size of each dimension."""
    return {f"bounds.{name}": f"{low}..{high}" for name, (low, high) in bounds.items()}


def sizes(graph: Graph, example: tuple[Tensor, ...]) -> dict[str, int]:
    """The size of every dimension of a graph in an example of its inputs.

    Raises:
        ValueError: The example does not fit the graph, because its inputs contradict each other or the bounds.
    """
    found: dict[str, int] = {}
    for spec, value in zip(graph.inputs, example, strict=True):
        for axis, factor, name in spec.named():
            size, left = divmod(value.shape[axis], factor)
            if left or found.setdefault(name, size) != size:
                raise ValueError(f"{spec.name} has shape {list(value.shape)}, expected {list(spec.shape)} with {found}")
    for name, (low, high) in graph.bounds.items():
        if not low <= found[name] <= high:
            raise ValueError(f"{name} is {found[name]} in the example, outside its bounds {low}..{high}")
    return found
