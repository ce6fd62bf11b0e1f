"""The graphs of a model: what each kind of them is called, takes and gives (docs/bundle.md).

A side of a shape is a number, the name of a size, or a product such as `P*ht`. Lower-case names are sizes of what a
graph runs on. Upper-case letters are sizes of the model: its patch P, the channels C of a latent, F of features and D
of a context, the blocks S and groups G of its statistics.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal


@dataclass(frozen=True)
class Tensorspec:
    """One input or output of a graph.

    Attributes:
        name: the same in every target.
        shape: its sides.
        about: what it holds, in words; `{space}` is the model's latent space.
    """

    name: str
    shape: tuple[str | int, ...]
    about: str

    def of(self, sizes: Mapping[str, int]) -> "Tensorspec":
        """The same with numbers for the sizes that are known."""
        return replace(self, shape=tuple(_with(sizes, side) for side in self.shape))

    def at(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """Its shape in numbers; every size must be known."""
        return tuple(int(side) for side in self.of(sizes).shape)

    def named(self) -> list[tuple[int, int, str]]:
        """Axis, factor and name of every side that is not a number."""
        parts = [(axis, side.rpartition("*")) for axis, side in enumerate(self.shape) if isinstance(side, str)]
        return [(axis, int(factor or 1), name) for axis, (factor, _, name) in parts]


def _with(sizes: Mapping[str, int], side: str | int) -> str | int:
    parts = [str(sizes.get(part, part)) for part in str(side).split("*")]
    return math.prod(map(int, parts)) if all(part.isdecimal() for part in parts) else "*".join(parts)


@dataclass(frozen=True)
class Kind:
    """What the graphs of one kind have in common.

    Attributes:
        name: of the graph; where there are several, they have the factor of their enlargement behind it.
        inputs: the first is what holds values, the others are coordinates, shares and statistics.
        output: the only one.
        unit: of the working memory that it needs a position: a cell or a token.
        part: the part of the PyTorch model that holds its weights.
        enlarged: whether there is one for each of the model's enlargements.
        picture: whether a picture cannot be made without it.
        fixed: whether it takes nothing but the shapes of a recipe that has any.
        kept: whether working memory is better left to it than to the others: it runs for every tile.
    """

    name: str
    inputs: tuple[Tensorspec, ...]
    output: Tensorspec
    unit: Literal["cell", "token"]
    part: str
    enlarged: bool = False
    picture: bool = True
    fixed: bool = False
    kept: bool = False

    @property
    def memory(self) -> str:
        """The field of a manifest's `Memory` that says how much it needs."""
        return f"{self.name}_per_{self.unit}"

    def output_shape(self, inputs: Mapping[str, Any], sizes: Mapping[str, int]) -> tuple[int, ...]:
        """The shape of what it makes of some inputs, in a model of such sizes."""
        given = {
            name: inputs[spec.name].shape[axis] // factor
            for spec in self.inputs
            for axis, factor, name in spec.of(sizes).named()
        }
        return self.output.at({**sizes, **given})


_LATENT = Tensorspec("latent", (1, "C", "h", "w"), "{space} latent")
_MOMENTS = Tensorspec("moments", (2, "S", "G"), "means and variances of prefill's blocks, over the whole latent")
_FEATURES = Tensorspec("features", (1, "F", "h", "w"), "what the context is refined from")
_CONTEXT = Tensorspec("context", (1, "D", "h", "w"), "what every tile of the picture is decoded from")

STATISTICS = Kind(
    "statistics",
    (
        _LATENT,
        Tensorspec("share_y", ("h",), "what each row counts for in means: 1 / rows, 0 in a halo"),
        Tensorspec("share_x", ("w",), "the same of columns"),
        Tensorspec("known", (2, "S", "G"), "moments of the whole latent; variances below 0 where they are not known"),
    ),
    _MOMENTS,
    "cell",
    part="prefill",
)
PREFILL = Kind("prefill", (_LATENT, _MOMENTS), _FEATURES, "cell", part="prefill")
REFINE = Kind("refine", (_FEATURES,), _CONTEXT, "cell", part="refine", enlarged=True)
DECODE = Kind(
    "decode",
    (
        Tensorspec("context", (1, "D", "hk", "wk"), "crop of the context"),
        Tensorspec("key_y", ("hk",), "centres of the crop's cell rows, in cells of the whole latent"),
        Tensorspec("key_x", ("wk",), "centres of the crop's cell columns"),
        Tensorspec("token_y", ("ht",), "centres of the token rows, in cells of the whole latent"),
        Tensorspec("token_x", ("wt",), "centres of the token columns"),
        Tensorspec("extent", (2,), "cells of the whole latent: height, width"),
        Tensorspec("scale", (2,), "output pixels a cell / 8: vertical, horizontal"),
    ),
    Tensorspec("image", (1, 3, "P*ht", "P*wt"), "RGB, about 0 to 1, not clamped"),
    "token",
    part="decode",
    enlarged=True,
    fixed=True,
    kept=True,
)
ENCODE = Kind(
    "encode",
    (Tensorspec("image", (1, 3, "P*h", "P*w"), "RGB, 0 to 1"),),
    _LATENT,
    "cell",
    part="encode",
    picture=False,
    fixed=True,
)
KINDS = (STATISTICS, PREFILL, REFINE, DECODE, ENCODE)


def kinds(gathers: bool, refines: bool) -> tuple[Kind, ...]:
    """The kinds that a model has, in the order that they run in.

    Args:
        gathers: whether it has statistics. Prefill takes a latent alone without.
        refines: whether it has refine. Prefill gives the context without.
    """
    inputs, output = PREFILL.inputs if gathers else (_LATENT,), _FEATURES if refines else _CONTEXT
    prefill = replace(PREFILL, inputs=inputs, output=output)
    return (*([STATISTICS] if gathers else []), prefill, *([REFINE] if refines else []), DECODE, ENCODE)


def model_sizes(
    patch: int, latent: int, features: int | None, context: int, moments: tuple[int, int] | None
) -> dict[str, int]:
    """A model's patch, channels and shape of statistics, by the letters that shapes have for them."""
    blocks, groups = moments or (0, 0)
    return {"P": patch, "C": latent, "F": features or 0, "D": context, "S": blocks, "G": groups}


def graph_name(kind: str, factor: int | None) -> str:
    """What the graph of a kind is called: the factor of its enlargement, if it has one, is behind the kind."""
    return kind if factor is None else f"{kind}{factor}"


def kind_of(graph: str) -> Kind:
    """The kind of a graph, by what the graph is called."""
    return _BY_NAME[graph.rstrip("0123456789")]


_BY_NAME = {kind.name: kind for kind in KINDS}
