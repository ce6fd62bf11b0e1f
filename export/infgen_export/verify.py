"""Verification: compares every exported graph with the PyTorch model at shapes that were not used for tracing."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from infgen_export.errors import LONGEST, ExportError
from infgen_export.inputs import cells_inputs, context_inputs, decode_inputs, encoder_inputs, fit
from infgen_model import InfGen
from infgen_model.graphs import Graph
from infgen_rt.bundle.graphs import DECODE, DECODE_CELLS
from infgen_rt.common.pixels import psnr
from infgen_rt.errors import one_line
from infgen_rt.geometry import grid as coordinates
from infgen_rt.geometry.shapes import Box, Size

TOLERANCE = 1e-4
"""Largest error of a float32 graph, as a share of the output's full scale."""
LEAST_PSNR = {"fp16": 50.0, "bf16": 50.0, "apple": 50.0, "int8": 40.0}
"""Lowest PSNR that passes in a lower precision, in decibels. ``"apple"`` is what Apple's devices choose."""


@dataclass(frozen=True)
class Case:
    """One shape at which graphs are verified.

    Attributes:
        name: A word for what is special about the case.
        cells: Size of the latent.
        size: Size of the picture in pixels.
        tile: The tile in tokens. ``None`` for the whole picture.
        deviation: Standard deviation of the latent's values.
    """

    name: str
    cells: Size
    size: Size
    tile: Box | None = None
    deviation: float = 1.0


CASES = (
    Case("square", Size(16, 16), Size(256, 256)),
    Case("wide", Size(40, 5), Size(640, 77)),
    Case("tall", Size(3, 29), Size(50, 500)),
    Case("odd", Size(9, 7), Size(101, 77)),
    Case("smallest", Size(1, 1), Size(8, 8)),
    Case("reduced", Size(24, 18), Size(96, 72)),
    Case("crop", Size(32, 48), Size(1001, 1777), Box(70, 101, 19, 23)),
    Case("corner", Size(32, 48), Size(1001, 1777), Box(120, 214, 6, 9)),
    Case("loud", Size(12, 10), Size(200, 150), deviation=4.0),
)


@dataclass(frozen=True)
class Check:
    """The result of comparing a graph with PyTorch in one case.

    Attributes:
        graph: Name of the graph.
        case: Name of the case.
        shape: Shape of the output.
        max_error: Largest absolute difference from PyTorch, as a share of full scale.
        psnr: PSNR against PyTorch, in decibels. Infinite if the outputs are equal.
        worst: Index of the largest difference in the output.
        passed: Whether the result is good enough for the precision.
    """

    graph: str
    case: str
    shape: tuple[int, ...]
    max_error: float
    psnr: float
    worst: tuple[int, ...]
    passed: bool


def verify(
    model: InfGen,
    graph: Graph,
    run: Callable[[dict[str, Tensor]], Tensor],
    precision: str = "fp32",
    label: str | None = None,
) -> Iterator[Check]:
    """Compares a converted graph with PyTorch, case by case.

    Args:
        model: The reference.
        graph: The graph to compare.
        run: Runs the converted graph on named inputs.
        precision: ``"fp32"`` or a key of ``LEAST_PSNR``. It determines how close the outputs must be.
        label: Name of the converted graph in messages. If omitted, the graph's own name.

    Yields:
        The result of each case.

    Raises:
        ExportError: The graph does not run in one of the cases, or its output has another shape.
    """
    label, generator = label or graph.name, torch.Generator().manual_seed(1)
    for case in cases_of(graph, model):
        with torch.inference_mode():
            inputs = case_inputs(model, graph, case, generator)
            expected = graph.module(*inputs.values())
        try:
            actual = run(inputs)
        # Runtimes may raise any exception, most often because the tracer took a dimension for a constant.
        except Exception as error:
            raise ExportError(f"{label}, case {case.name}: {one_line(error, LONGEST)}") from error
        if actual.shape != expected.shape:
            raise ExportError(f"{label}, case {case.name}: shape {list(actual.shape)}, expected {list(expected.shape)}")
        yield compare(graph.name, case.name, actual, expected, precision)


def cases_of(graph: Graph, model: InfGen) -> list[Case]:
    """The cases that fit into the graph's shapes.

    Args:
        graph: The graph.
        model: Its model, whose reach determines how much context a tile needs.
    """
    if not graph.shapes or graph.kind.name != DECODE.name:
        return list(CASES)
    (height, width), (rows, columns) = graph.shapes[-1].tokens, graph.shapes[-1].context
    fitting = []
    for case in CASES:
        grid = coordinates.Grid(case.cells, case.size, model.config.PATCH)
        tile = case.tile or grid.tokens.box
        context = grid.context_of(tile, model.config.radius)
        if tile.height <= height and tile.width <= width and context.height <= rows and context.width <= columns:
            fitting.append(case)
    return fitting


def case_inputs(model: InfGen, graph: Graph, case: Case, generator: torch.Generator) -> dict[str, Tensor]:
    """Inputs of a graph for a case, from a normally distributed latent or a uniformly random image.

    Args:
        model: The graph's model.
        graph: The graph.
        case: The case.
        generator: Source of the random values.

    Returns:
        The inputs by name, in the order of the module's arguments. They are padded if the graph has fixed shapes.
    """
    latent = torch.randn(1, model.config.latent_channels, case.cells.height, case.cells.width, generator=generator)
    latent = case.deviation * latent
    if graph.kind.name == DECODE.name:
        return fit(graph, decode_inputs(graph, model, latent, case.size, case.tile))
    if graph.kind.name == DECODE_CELLS.name:
        return cells_inputs(graph, model, latent)
    # In a case with a tile, the latent stands for a part: it has a halo, and the first block's moments are known.
    part = case.tile is not None
    if not graph.kind.picture:
        halo = model.config.encode_latent_halo if part else 0
        return fit(graph, encoder_inputs(graph, model, case.cells, generator, halo, int(part)))
    return context_inputs(graph, model, latent, halo=model.config.prefill_halo if part else 0, known=int(part))


def compare(graph: str, case: str, actual: Tensor, expected: Tensor, precision: str = "fp32") -> Check:
    """Compares an output with the expected one.

    Full scale is 1, or the largest absolute expected value if that is more. NaN and infinity count as infinite errors.

    Args:
        graph: Name of the graph, for the result.
        case: Name of the case, for the result.
        actual: Output of the converted graph.
        expected: Output of the PyTorch model, of the same shape.
        precision: ``"fp32"`` or a key of ``LEAST_PSNR``.
    """
    scale = max(1.0, expected.abs().max().item())
    error = (actual.double() - expected.double()).abs().nan_to_num(math.inf) / scale
    worst = tuple(int(i) for i in torch.unravel_index(error.argmax(), error.shape))
    ratio = psnr(actual.numpy(), expected.numpy(), scale)
    largest = error.max().item()
    passed = largest <= TOLERANCE if precision == "fp32" else ratio >= LEAST_PSNR[precision]
    return Check(graph, case, tuple(expected.shape), largest, ratio, worst, passed)
