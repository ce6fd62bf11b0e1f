"""The graphs that every target exports: their names, dynamic dimensions and modules (docs/bundle.md)."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from infgen_export.model import DecoderConfig, Enlargement, Grid, InfGen
from infgen_rt.backend.inputs import fill, tile_inputs
from infgen_rt.bundle.manifest import FixedShape
from infgen_rt.geometry import grid as coordinates
from infgen_rt.geometry.shapes import Box, Size

MAX_CELLS = 1024
"""Largest side of a latent or a context crop, in cells."""
MAX_TOKENS = 2048
"""Largest side of a decoded tile, in tokens."""


@dataclass(frozen=True)
class Tensorspec:
    """One input or output of a graph.

    Attributes:
        name: The same in every target.
        shape: A name for each dynamic dimension, a number for each fixed one, ``"8*ht"`` for a product.
        about: What it holds, for the target's own description fields.
    """

    name: str
    shape: tuple[str | int, ...]
    about: str


@dataclass(frozen=True)
class Graph:
    """One of the functions of a model, ready to be traced.

    Attributes:
        kind: ``"statistics"``, ``"prefill"``, ``"refine"``, ``"decode"`` or ``"encode"``.
        config: Of the model.
        module: Takes the inputs in order, returns the output.
        inputs: Specifications, in the order of the module's arguments.
        output: Specification of the only output.
        bounds: Smallest and largest value of each named dimension; equal where it is fixed.
        shapes: The only shapes it takes, smallest first; any within the bounds if empty.
        enlargement: Of a model's several, that of a refine or a decode.
    """

    kind: str
    config: DecoderConfig
    module: nn.Module
    inputs: tuple[Tensorspec, ...]
    output: Tensorspec
    bounds: Mapping[str, tuple[int, int]]
    shapes: tuple[FixedShape, ...] = ()
    enlargement: Enlargement | None = None

    @property
    def name(self) -> str:
        """Unique in a bundle: the kind, and the factor of an enlargement behind it."""
        return self.kind if self.enlargement is None else f"{self.kind}{self.enlargement.factor}"

    @property
    def data(self) -> str:
        """The input that holds values rather than coordinates."""
        return self.inputs[0].name

    def fit(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Brings inputs to the smallest shape of the graph that holds them, if not any will do.

        An image is repeated or cut, since nothing can fill it without changing what the encoder sees.

        Raises:
            ValueError: They are larger than every shape.
        """
        if not self.shapes:
            return inputs
        if self.kind == "encode":
            image = inputs["image"]
            height, width = next((s.image for s in self.shapes if s.image >= image.shape[2:]), self.shapes[-1].image)
            repeats = (-(-height // image.shape[2]), -(-width // image.shape[3]))
            return {"image": image.repeat(1, 1, *repeats)[:, :, :height, :width].contiguous()}
        arrays = {name: value.numpy() for name, value in inputs.items()}
        for shape in self.shapes:
            context, tokens = (Size(width, height) for height, width in (shape.context, shape.tokens))
            with contextlib.suppress(ValueError):
                filled = fill(arrays, context, tokens)
                return {name: torch.from_numpy(value) for name, value in filled.items()}
        raise ValueError(f"inputs are larger than {self.shapes[-1]}")

    def choices(self) -> list[dict[str, int]]:
        """The named dimensions at each of the shapes."""
        sides = (
            shape.context + shape.tokens if self.kind == "decode" else tuple(side // 8 for side in shape.image)
            for shape in self.shapes
        )
        return [dict(zip(self.bounds, each, strict=True)) for each in sides]


class _Decode(nn.Module):
    """``Decode`` with plain tensors for arguments."""

    def __init__(self, model: InfGen, padded: bool, enlargement: Enlargement | None) -> None:
        super().__init__()
        self.decode = model.decode
        self.padded = padded
        self.enlargement = enlargement

    def forward(
        self,
        context: Tensor,
        key_y: Tensor,
        key_x: Tensor,
        token_y: Tensor,
        token_x: Tensor,
        extent: Tensor,
        scale: Tensor,
    ) -> Tensor:
        """See ``Decode``."""
        grid = Grid(key_y, key_x, token_y, token_x, extent, scale, self.padded)
        image: Tensor = self.decode(context, grid, self.enlargement)
        return image


class _Refine(nn.Module):
    """``Refine`` for one enlargement."""

    def __init__(self, refine: nn.Module, enlargement: Enlargement) -> None:
        super().__init__()
        self.refine = refine
        self.enlargement = enlargement

    def forward(self, features: Tensor) -> Tensor:
        """See ``Refine``."""
        context: Tensor = self.refine(features, self.enlargement)
        return context


def graphs_of(model: InfGen, shapes: tuple[FixedShape, ...] = ()) -> tuple[Graph, ...]:
    """The graphs of a model: statistics and refine if it has them, prefill, decode, encode.

    Args:
        model: In evaluation mode.
        shapes: The only shapes that decode and encode take, smallest first; any if empty.
    """
    config = model.config
    latent = Tensorspec("latent", (1, config.latent_channels, "h", "w"), f"{config.latent_space} latent")
    cells, tokens = (1, MAX_CELLS), (1, MAX_TOKENS)
    decode_bounds = {"hk": cells, "wk": cells, "ht": tokens, "wt": tokens}
    encode_bounds = {"h": cells, "w": cells}
    if shapes:
        least, most = shapes[0], shapes[-1]
        both = zip((*least.context, *least.tokens), (*most.context, *most.tokens), strict=True)
        decode_bounds = dict(zip(decode_bounds, both, strict=True))
        pixels = zip(least.image, most.image, strict=True)
        encode_bounds = {name: (low // 8, high // 8) for name, (low, high) in zip("hw", pixels, strict=True)}
    features = Tensorspec("features", (1, config.feature_channels, "h", "w"), "what the context is refined from")
    contexts: tuple[Enlargement | None, ...] = config.enlargements or (None,)
    made = "what every tile of the picture is decoded from"
    whole = Tensorspec("context", (1, config.context_channels(), "h", "w"), made)
    sides = {"h": cells, "w": cells}
    before: tuple[Graph, ...] = ()
    prefill_inputs: tuple[Tensorspec, ...] = (latent,)
    if config.moments and model.statistics:
        shape = (2, *config.moments)
        moments = Tensorspec("moments", shape, "means and variances of prefill's blocks, over the whole latent")
        shares = (
            Tensorspec("share_y", ("h",), "what each row counts for in means: 1 / rows, 0 in a halo"),
            Tensorspec("share_x", ("w",), "the same of columns"),
        )
        known = Tensorspec("known", shape, "moments of the whole latent; variances below 0 where they are not known")
        before = (Graph("statistics", config, model.statistics, (latent, *shares, known), moments, sides),)
        prefill_inputs = (latent, moments)
    refine = tuple(
        Graph(
            "refine",
            config,
            _Refine(model.refine, each),
            (features,),
            Tensorspec("context", (1, config.context_channels(each), "h", "w"), made),
            sides,
            enlargement=each,
        )
        for each in config.enlargements
        if model.refine is not None
    )
    decode = tuple(
        Graph(
            "decode",
            config,
            _Decode(model, bool(shapes), each),
            (
                Tensorspec("context", (1, config.context_channels(each), "hk", "wk"), "crop of the context"),
                Tensorspec("key_y", ("hk",), "centres of the crop's cell rows, in cells of the whole latent"),
                Tensorspec("key_x", ("wk",), "centres of the crop's cell columns"),
                Tensorspec("token_y", ("ht",), "centres of the token rows, in cells of the whole latent"),
                Tensorspec("token_x", ("wt",), "centres of the token columns"),
                Tensorspec("extent", (2,), "cells of the whole latent: height, width"),
                Tensorspec("scale", (2,), "output pixels a cell / 8: vertical, horizontal"),
            ),
            Tensorspec("image", (1, 3, "8*ht", "8*wt"), "RGB, about 0 to 1, not clamped"),
            decode_bounds,
            shapes,
            each,
        )
        for each in contexts
    )
    return (
        *before,
        Graph("prefill", config, model.prefill, prefill_inputs, features if refine else whole, sides),
        *refine,
        *decode,
        Graph(
            "encode",
            config,
            model.encode,
            (Tensorspec("image", (1, 3, "8*h", "8*w"), "RGB, 0 to 1"),),
            latent,
            encode_bounds,
            shapes,
        ),
    )


def decode_inputs(
    graph: Graph, model: InfGen, latent: Tensor, size: Size, tile: Box | None = None
) -> dict[str, Tensor]:
    """Inputs of a decode graph for one tile, with the context crop that a runtime would cut.

    Args:
        graph: Whose enlargement the context is made for.
        model: What makes the context.
        latent: [1, C, h, w].
        size: The whole picture's, in pixels.
        tile: In tokens; the whole picture if omitted.
    """
    config = model.config
    grid = coordinates.Grid(Size(latent.shape[3], latent.shape[2]), size, config.PATCH)
    with torch.no_grad():
        context = model.context(latent, graph.enlargement).numpy()
    tokens = tile or grid.tokens.box
    cells = grid.context_of(tokens, config.halo_cells)
    inputs = tile_inputs(grid, context[:, :, *cells.slices], cells, tokens)
    return {name: torch.from_numpy(value) for name, value in inputs.items()}


def context_inputs(graph: Graph, model: InfGen, latent: Tensor, halo: int = 0, known: int = 0) -> dict[str, Tensor]:
    """Inputs of one of the graphs that a latent's context is made by.

    Args:
        graph: ``statistics``, ``prefill`` or ``refine``.
        model: What it is of.
        latent: [1, C, h, w].
        halo: Rows and columns at the top and the left that do not count in statistics, as long as some do.
        known: Blocks whose moments are given to statistics.
    """
    if graph.kind == "refine":
        with torch.no_grad():
            return {"features": model.prefill(latent)}
    if model.config.moments is None or model.statistics is None:
        return {"latent": latent}
    shares = []
    for side in latent.shape[2:]:
        share = (torch.arange(side) >= min(halo, side - 1)).float()
        shares.append(share / share.sum())
    with torch.no_grad():
        moments = model.statistics(latent, *shares, torch.full((2, *model.config.moments), -1.0))
    if graph.kind == "prefill":
        return {"latent": latent, "moments": moments}
    moments[:, known:] = -1
    return {"latent": latent, "share_y": shares[0], "share_x": shares[1], "known": moments}


def trace_inputs(graph: Graph, model: InfGen) -> tuple[Tensor, ...]:
    """Arguments to trace a graph with: every dynamic dimension another number, none of them special."""
    generator = torch.Generator().manual_seed(0)
    latent = torch.randn(1, model.config.latent_channels, 11, 13, generator=generator)
    if graph.kind not in ("decode", "encode"):
        return tuple(context_inputs(graph, model, latent).values())
    if graph.kind == "encode":
        return tuple(graph.fit({"image": torch.rand(1, 3, 48, 56, generator=generator)}).values())
    inputs = graph.fit(decode_inputs(graph, model, latent, Size(257, 190), Box(3, 2, 17, 15)))
    return tuple(inputs[spec.name] for spec in graph.inputs)
