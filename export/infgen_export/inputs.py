"""Inputs for tracing and verifying graphs."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor, nn

from infgen_model import InfGen
from infgen_model.graphs import Graph
from infgen_rt.backend.inputs import fill, tile_inputs
from infgen_rt.bundle.graphs import DECODE, DECODE_CELLS, ENCODE, ENCODE_STATISTICS, REFINE, STATISTICS, TRUNK
from infgen_rt.geometry import grid as coordinates
from infgen_rt.geometry.shapes import Box, Size


def fit(graph: Graph, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Pads inputs to the smallest shape of a graph that holds them, if the graph has fixed shapes.

    An image is repeated or cropped instead, because any padding would change what the encoder sees.

    Args:
        graph: The graph.
        inputs: Its inputs by name.

    Raises:
        ValueError: The inputs are larger than every shape.
    """
    if not graph.shapes:
        return inputs
    if graph.kind.name == ENCODE.name:
        image = inputs["image"]
        height, width = next((s.image for s in graph.shapes if s.image >= image.shape[2:]), graph.shapes[-1].image)
        repeats = (-(-height // image.shape[2]), -(-width // image.shape[3]))
        return {"image": image.repeat(1, 1, *repeats)[:, :, :height, :width].contiguous()}
    arrays = {name: value.numpy() for name, value in inputs.items()}
    for shape in graph.shapes:
        context, tokens = (Size(width, height) for height, width in (shape.context, shape.tokens))
        with contextlib.suppress(ValueError):
            filled = fill(arrays, context, tokens)
            return {name: torch.from_numpy(value) for name, value in filled.items()}
    raise ValueError(f"inputs are larger than {graph.shapes[-1]}")


def decode_inputs(
    graph: Graph, model: InfGen, latent: Tensor, size: Size, tile: Box | None = None
) -> dict[str, Tensor]:
    """Inputs of a decode graph for one tile, with the context crop that a runtime would cut.

    Args:
        graph: The decode graph. The context is made for its enlargement.
        model: The model that makes the context.
        latent: [1, C, h, w].
        size: Size of the whole picture in pixels.
        tile: The tile in tokens. If omitted, the whole picture.

    Returns:
        The inputs by name, in the order of the module's arguments.
    """
    config = model.config
    grid = coordinates.Grid(Size(latent.shape[3], latent.shape[2]), size, config.PATCH)
    with torch.no_grad():
        context = model.context(latent, graph.enlargement).numpy()
    tokens = tile or grid.tokens.box
    cells = grid.context_of(tokens, config.radius)
    inputs = tile_inputs(grid, context[:, :, *cells.slices], cells, tokens)
    return {name: torch.from_numpy(value) for name, value in inputs.items()}


def cells_inputs(graph: Graph, model: InfGen, latent: Tensor) -> dict[str, Tensor]:
    """The input of a graph that decodes whole cells: the context of a latent [1, C, h, w]."""
    with torch.no_grad():
        return {"context": model.context(latent, graph.enlargement)}


def encoder_inputs(
    graph: Graph, model: InfGen, cells: Size, generator: torch.Generator, halo: int = 0, known: int = 0
) -> dict[str, Tensor]:
    """Inputs of one of the graphs that encode an image, for an image [1, 3, 8h, 8w] of uniformly random values.

    Args:
        graph: ``encode``, ``encode_statistics`` or ``encode_latent``.
        model: The graph's model.
        cells: Size of the latent that the image is encoded to.
        generator: Source of the values, which are in [0, 1).
        halo: As for ``context_inputs``.
        known: As for ``context_inputs``.

    Returns:
        The inputs by name, in the order of the module's arguments.
    """
    patch = model.config.PATCH
    image = torch.rand((1, 3, patch * cells.height, patch * cells.width), generator=generator)
    if graph.kind.name == ENCODE.name:
        return {"image": image}
    assert model.encode_statistics is not None and model.config.encoder_moments is not None
    with torch.no_grad():
        encoded = {"encoded": model.encode.features(image)}
    gathers = graph.kind.name == ENCODE_STATISTICS.name
    return _with_statistics(encoded, model.encode_statistics, model.config.encoder_moments, gathers, halo, known)


def context_inputs(graph: Graph, model: InfGen, latent: Tensor, halo: int = 0, known: int = 0) -> dict[str, Tensor]:
    """Inputs of one of the graphs that make a latent's context.

    Args:
        graph: ``statistics``, ``prefill``, ``trunk`` or ``refine``.
        model: The graph's model.
        latent: [1, C, h, w].
        halo: Number of rows at the top, and of columns at the left, that have a share of 0 in statistics. At least one
            row and one column keep a share.
        known: Number of blocks whose moments are given to statistics. Those of the other blocks are -1, which means
            unknown.

    Returns:
        The inputs by name, in the order of the module's arguments.
    """
    if graph.kind.name in (TRUNK.name, REFINE.name):
        assert model.refine is not None
        with torch.no_grad():
            features = model.prefill(latent)
            fine = {"fine": model.refine.grown(features)} if graph.kind.name == REFINE.name else {}
        return {"features": features} | fine
    if model.config.moments is None or model.statistics is None:
        return {"latent": latent}
    gathers = graph.kind.name == STATISTICS.name
    return _with_statistics({"latent": latent}, model.statistics, model.config.moments, gathers, halo, known)


def _with_statistics(
    values: dict[str, Tensor], statistics: nn.Module, shape: tuple[int, int], gathers: bool, halo: int, known: int
) -> dict[str, Tensor]:
    """Inputs of a graph that computes or uses statistics of values [1, C, h, w].

    Args:
        values: The values by name. There is one entry.
        statistics: The module that computes the statistics.
        shape: Number of blocks and groups.
        gathers: Whether the graph computes the statistics. Otherwise, it uses them.
        halo: As for ``context_inputs``.
        known: As for ``context_inputs``.
    """
    (whole,), shares = values.values(), list[Tensor]()
    for side in whole.shape[2:]:
        share = (torch.arange(side) >= min(halo, side - 1)).float()
        shares.append(share / share.sum())
    with torch.no_grad():
        moments = statistics(whole, *shares, torch.full((2, *shape), -1.0))
    if not gathers:
        return values | {"moments": moments}
    moments[:, known:] = -1
    return values | {"share_y": shares[0], "share_x": shares[1], "known": moments}


def trace_inputs(graph: Graph, model: InfGen) -> tuple[Tensor, ...]:
    """Arguments to trace a graph with.

    Every dynamic dimension has a different size, and no size is special. Otherwise, a tracer could take two dimensions
    for one, or a dimension for a constant.
    """
    generator = torch.Generator().manual_seed(0)
    latent = torch.randn(1, model.config.latent_channels, 11, 13, generator=generator)
    if not graph.kind.picture:
        inputs = encoder_inputs(graph, model, Size(7, 6), generator)
    elif graph.kind.name == DECODE.name:
        inputs = decode_inputs(graph, model, latent, Size(257, 190), Box(3, 2, 17, 15))
    elif graph.kind.name == DECODE_CELLS.name:
        inputs = cells_inputs(graph, model, latent)
    else:
        inputs = context_inputs(graph, model, latent)
    return tuple(fit(graph, inputs).values())
