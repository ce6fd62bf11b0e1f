"""Builds the inputs of the graphs that need more than values: coordinates for decode, shares for statistics."""

from typing import Any

import numpy as np

from infgen_rt.backend.protocol import Values
from infgen_rt.bundle.graphs import STATISTICS, Kind
from infgen_rt.bundle.manifest import Manifest
from infgen_rt.common.pixels import FloatArray
from infgen_rt.geometry.grid import Grid
from infgen_rt.geometry.shapes import Box, Size


def statistics_inputs(
    values: FloatArray,
    manifest: Manifest,
    inner: Box | None = None,
    known: FloatArray | None = None,
    kind: Kind = STATISTICS,
) -> dict[str, Any]:
    """The inputs of a statistics graph for a latent or an encoded picture, or for a part of one.

    Args:
        values: float32 [C, h, w].
        manifest: the model's manifest.
        inner: the cells that count. The others are the halo. None for all cells.
        known: float32 [2, blocks, groups], the moments of the whole, in which a variance below 0 stands for "not
            known". None if none are known.
        kind: the kind of the graph.

    Returns:
        The inputs by name.
    """
    box = inner or Size(*values.shape[:0:-1]).box
    return {
        kind.inputs[0].name: values[None],
        "share_y": _shares(values.shape[1], box.y, box.height),
        "share_x": _shares(values.shape[2], box.x, box.width),
        "known": np.full(kind.output.at(manifest.sizes()), -1, np.float32) if known is None else known,
    }


def _shares(count: int, first: int, counted: int) -> FloatArray:
    """The weight of each of `count` rows in the mean over `counted` rows that start at `first`: 1 / counted or 0."""
    shares = np.zeros(count, np.float32)
    shares[first : first + counted] = 1 / counted
    return shares


def tile_inputs(grid: Grid, crop: Values, cells: Box, tokens: Box) -> dict[str, Any]:
    """The inputs of the decode graph for a box of tokens.

    Args:
        grid: the picture over the latent.
        crop: float32 [1, D, h, w], the context of the cells. It stays on its device.
        cells: the cells from `Grid.context_of` for the tokens.
        tokens: the tokens to decode, halo included.

    Returns:
        The inputs by name.
    """
    key_y, key_x = grid.cell_centres(cells)
    token_y, token_x = grid.token_centres(tokens)
    return {
        **cell_inputs(crop),
        "key_y": key_y,
        "key_x": key_x,
        "token_y": token_y,
        "token_x": token_x,
        "extent": np.array([grid.cells.height, grid.cells.width], np.float32),
        "scale": np.array(grid.scale, np.float32),
    }


def cell_inputs(crop: Values) -> dict[str, Any]:
    """The input of the graph that decodes whole cells.

    Args:
        crop: float32 [1, D, h, w], the context of the cells. It stays on its device.

    Returns:
        The input by name.
    """
    return {"context": np.ascontiguousarray(crop) if isinstance(crop, np.ndarray) else crop}


def fill(inputs: dict[str, FloatArray], context: Size, tokens: Size) -> dict[str, FloatArray]:
    """Pad the inputs of a decode graph to its fixed shape. The coordinates continue beyond the end.

    Args:
        inputs: the inputs from `tile_inputs`.
        context: the size in cells that the graph takes.
        tokens: the size in tokens that the graph takes.

    Returns:
        Inputs whose image has the tile's pixels in its top-left corner.

    Raises:
        ValueError: the tile or its context is larger than the shape.
    """
    spacing = {"key_y": 1.0, "key_x": 1.0, "token_y": 1.0 / inputs["scale"][0], "token_x": 1.0 / inputs["scale"][1]}
    counts = {"key_y": context.height, "key_x": context.width, "token_y": tokens.height, "token_x": tokens.width}
    filled = dict(inputs)
    for name, count in counts.items():
        vector = inputs[name]
        missing = count - len(vector)
        if missing < 0:
            raise ValueError(f"{name} has {len(vector)} entries, the graph takes {count}")
        beyond = vector[-1] + np.arange(1, missing + 1) * spacing[name]
        filled[name] = np.concatenate([vector, beyond.astype(np.float32)])
    height, width = inputs["context"].shape[2:]
    margins = ((0, 0), (0, 0), (0, context.height - height), (0, context.width - width))
    filled["context"] = np.pad(inputs["context"], margins)
    return filled
