"""The graphs of a model: modules that can be run or traced, with the shapes of their inputs and outputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from infgen_model.config import DecoderConfig, Enlargement
from infgen_model.encode import Encode
from infgen_model.grid import Grid
from infgen_model.infgen import InfGen
from infgen_model.prefill import Refine
from infgen_rt.bundle.graphs import (
    DECODE,
    DECODE_CELLS,
    ENCODE,
    ENCODE_LATENT,
    REFINE,
    TRUNK,
    Kind,
    Tensorspec,
    graph_name,
    kinds,
)
from infgen_rt.bundle.manifest import FixedShape

MAX_CELLS = 1024
"""Largest side of a latent or a context crop, in cells."""
MAX_TOKENS = 2048
"""Largest side of a decoded tile, in tokens."""


@dataclass(frozen=True)
class Graph:
    """One of the functions of a model, ready to be traced.

    Attributes:
        kind: The graph's kind, with the inputs and the output that it has for this model.
        config: The model's config.
        module: The module that computes the graph. It takes the inputs in order and returns the output.
        inputs: Specifications of the inputs, in the order of the module's arguments.
        output: Specification of the only output.
        bounds: Smallest and largest size of each named dimension. They are equal if the dimension is fixed.
        shapes: The only shapes that the graph takes, smallest first. If empty, it takes any shape within the bounds.
        enlargement: The enlargement that a refine or decode graph belongs to, if the model has any.
    """

    kind: Kind
    config: DecoderConfig
    module: nn.Module
    inputs: tuple[Tensorspec, ...]
    output: Tensorspec
    bounds: Mapping[str, tuple[int, int]]
    shapes: tuple[FixedShape, ...] = ()
    enlargement: Enlargement | None = None

    @property
    def name(self) -> str:
        """The graph's name, unique in a bundle: its kind, followed by the factor of its enlargement if it has one."""
        return graph_name(self.kind.name, None if self.enlargement is None else self.enlargement.factor)

    @property
    def data(self) -> frozenset[str]:
        """The names of the inputs that hold values rather than coordinates."""
        return frozenset(spec.name for spec in self.inputs if spec.holds_values)

    def choices(self) -> list[dict[str, int]]:
        """The sizes of the named dimensions for each of the shapes."""
        return [{name: _sides(shape)[name] for name in self.bounds} for shape in self.shapes]


class _Decode(nn.Module):
    """``Decode`` with plain tensors as arguments."""

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


class _DecodeCells(nn.Module):
    """The form of ``Decode`` that decodes whole cells, for one enlargement."""

    def __init__(self, model: InfGen, enlargement: Enlargement) -> None:
        super().__init__()
        self.decode = model.decode
        self.enlargement = enlargement

    def forward(self, context: Tensor) -> Tensor:
        """See ``Decode.whole_cells``."""
        return self.decode.whole_cells(context, self.enlargement)


class _Trunk(nn.Module):
    """The first part of ``Refine``: the trunk's finer resolutions."""

    def __init__(self, refine: Refine) -> None:
        super().__init__()
        self.refine = refine

    def forward(self, features: Tensor) -> Tensor:
        """See ``Refine.grown``."""
        return self.refine.grown(features)


class _Refine(nn.Module):
    """The second part of ``Refine``, for one enlargement."""

    def __init__(self, refine: Refine, enlargement: Enlargement) -> None:
        super().__init__()
        self.refine = refine
        self.enlargement = enlargement

    def forward(self, features: Tensor, fine: Tensor) -> Tensor:
        """See ``Refine.enlarged``."""
        return self.refine.enlarged(features, fine, self.enlargement)


class _Encode(nn.Module):
    """The first part of ``Encode``, for a model with statistics between its parts."""

    def __init__(self, encode: Encode) -> None:
        super().__init__()
        self.encode = encode

    def forward(self, image: Tensor) -> Tensor:
        """See ``Encode.features``."""
        return self.encode.features(image)


class _EncodeLatent(nn.Module):
    """The last part of ``Encode``, for a model with statistics between its parts."""

    def __init__(self, encode: Encode) -> None:
        super().__init__()
        self.encode = encode

    def forward(self, encoded: Tensor, moments: Tensor) -> Tensor:
        """See ``Encode.latent``."""
        return self.encode.latent(encoded, moments)


def graphs_of(model: InfGen, shapes: tuple[FixedShape, ...] = ()) -> tuple[Graph, ...]:
    """The graphs of a model: prefill, decode and encode, and the others if the model has them.

    Args:
        model: The model, in evaluation mode.
        shapes: The only shapes that decode and encode take, smallest first. If empty, they take any shape.

    Examples:
        >>> from infgen_model import edge
        >>> [graph.name for graph in graphs_of(InfGen(edge()).eval())][:4]
        ['statistics', 'prefill', 'trunk', 'refine1']
    """
    several: tuple[Enlargement | None, ...] = model.config.enlargements or (None,)
    return tuple(
        _graph(model, kind, enlargement, shapes if kind.fixed else ())
        for kind in _kinds(model)
        for enlargement in (several if kind.enlarged else (None,))
        if kind != DECODE_CELLS or (model.config.decodes_cells(enlargement) and not shapes)
    )


def _kinds(model: InfGen) -> tuple[Kind, ...]:
    refines = model.refine is not None
    encode_gathers = model.encode_statistics is not None
    return kinds(model.statistics is not None, refines, refines, encode_gathers, by_cells=True)


def _graph(model: InfGen, kind: Kind, enlargement: Enlargement | None, shapes: tuple[FixedShape, ...]) -> Graph:
    config = model.config
    sizes = config.sizes(enlargement)
    *inputs, output = (
        dataclasses.replace(spec.of(sizes), about=spec.about.format(space=config.latent_space))
        for spec in (*kind.inputs, kind.output)
    )
    named = dict.fromkeys(name for spec in inputs for _, _, name in spec.named())
    bounds = {name: (1, MAX_TOKENS if name in ("ht", "wt") else MAX_CELLS) for name in named}
    if shapes:
        least, most = _sides(shapes[0]), _sides(shapes[-1])
        bounds = {name: (least[name], most[name]) for name in named}
    module: nn.Module
    if kind == DECODE:
        module = _Decode(model, bool(shapes), enlargement)
    elif kind == DECODE_CELLS and enlargement:
        module = _DecodeCells(model, enlargement)
    elif kind == TRUNK and model.refine:
        module = _Trunk(model.refine)
    elif kind == REFINE and enlargement and model.refine:
        module = _Refine(model.refine, enlargement)
    elif kind.name == ENCODE.name and kind != ENCODE:
        module = _Encode(model.encode)
    elif kind == ENCODE_LATENT:
        module = _EncodeLatent(model.encode)
    else:
        module = getattr(model, kind.name)
    return Graph(kind, config, module, tuple(inputs), output, bounds, shapes, enlargement)


def _sides(shape: FixedShape) -> dict[str, int]:
    """The values of the named dimensions of decode and encode for one of a recipe's shapes."""
    image = (side // DecoderConfig.PATCH for side in shape.image)
    return dict(zip(("hk", "wk", "ht", "wt", "h", "w"), (*shape.context, *shape.tokens, *image), strict=True))
