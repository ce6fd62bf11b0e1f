"""The kinds of graph in a model, with their names, inputs and outputs (docs/bundle.md).

A side of a shape is a number, the name of a size, or a product such as `P*ht`. Lower-case names are sizes of a graph's
inputs and output. Upper-case letters are sizes of the model: its patch P, the channels C of a latent, F of features, T
of fine features and D of a context, and the blocks S and groups G of its statistics. U is the side in pixels of a cell
that is enlarged by the enlargement's factor. An encoder that has statistics too has channels E of an encoded picture,
and blocks ES and groups EG.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

WEIGHTS = "weights.safetensors"
"""The name of a bundle's file of weights. Each latent space after the first has a further file; see `weights_name`."""
_SUFFIX = ".safetensors"
Content = bytes | memoryview
"""The content of a file. It is a memoryview if the file is mapped into memory."""


def weights_name(space: str | None) -> str:
    """The name of a file of weights.

    Args:
        space: the latent space whose graphs refer to the file, if it is not the bundle's first. None for the file that
            all other graphs refer to.
    """
    return WEIGHTS if space is None else WEIGHTS.replace(_SUFFIX, f".{space}{_SUFFIX}")


def apart(files: Mapping[str, Content]) -> tuple[dict[str, Content], dict[str, Content]]:
    """The files that a graph consists of, and the bundle's files of weights that it refers to, by name."""
    own = {name: content for name, content in files.items() if not name.endswith(_SUFFIX)}
    return own, {name: content for name, content in files.items() if name.endswith(_SUFFIX)}


@dataclass(frozen=True)
class Tensorspec:
    """One input or output of a graph.

    Attributes:
        name: its name, which is the same in every target.
        shape: its shape, as the module's docstring describes it.
        about: a description of its content, in which `{space}` stands for the model's latent space.
    """

    name: str
    shape: tuple[str | int, ...]
    about: str

    @property
    def holds_values(self) -> bool:
        """Whether it holds values of cells or pixels. The others hold coordinates, shares or statistics."""
        return len(self.shape) == 4

    def of(self, sizes: Mapping[str, int]) -> "Tensorspec":
        """The same specification, with numbers for the known sizes."""
        return replace(self, shape=tuple(_with(sizes, side) for side in self.shape))

    def at(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """Its shape in numbers, for which every size must be known."""
        return tuple(int(side) for side in self.of(sizes).shape)

    def named(self) -> list[tuple[int, int, str]]:
        """The axis, the factor and the name of every side that is not a number: (2, 8, 'h') for `8*h` at axis 2."""
        parts = [(axis, side.rpartition("*")) for axis, side in enumerate(self.shape) if isinstance(side, str)]
        return [(axis, int(factor or 1), name) for axis, (factor, _, name) in parts]


def _with(sizes: Mapping[str, int], side: str | int) -> str | int:
    parts = [str(sizes.get(part, part)) for part in str(side).split("*")]
    return math.prod(map(int, parts)) if all(part.isdecimal() for part in parts) else "*".join(parts)


@dataclass(frozen=True)
class Kind:
    """The common properties of all graphs of one kind.

    Attributes:
        name: the name of the graph. If there is one graph per enlargement, the name is followed by the factor.
        inputs: the inputs. The first one holds values.
        output: the only output.
        unit: the unit to which its working memory is proportional.
        part: the part of the PyTorch model that holds its weights.
        of_space: whether every latent space has its own graph. The models of several spaces can share other graphs.
        enlarged: whether there is one graph per enlargement of the model.
        picture: whether it is needed for decoding a picture.
        fixed: whether it takes only the recipe's fixed shapes, if the recipe has any.
        kept: whether it should keep its working memory between runs, because it runs for every tile.
        optional: whether pictures can be decoded without it.
    """

    name: str
    inputs: tuple[Tensorspec, ...]
    output: Tensorspec
    unit: Literal["cell", "token"]
    part: str
    of_space: bool = False
    enlarged: bool = False
    picture: bool = True
    fixed: bool = False
    kept: bool = False
    optional: bool = False

    @property
    def memory(self) -> str:
        """The name of the field of a manifest's `Memory` for this kind."""
        return f"{self.name}_per_{self.unit}"

    def output_shape(self, inputs: Mapping[str, Any], sizes: Mapping[str, int]) -> tuple[int, ...]:
        """The shape of the output for given inputs.

        Args:
            inputs: the inputs by name.
            sizes: the sizes of the model, from `model_sizes`.
        """
        given = {
            name: inputs[spec.name].shape[axis] // factor
            for spec in self.inputs
            for axis, factor, name in spec.of(sizes).named()
        }
        return self.output.at({**sizes, **given})


_LATENT = Tensorspec("latent", (1, "C", "h", "w"), "{space} latent")
_MOMENTS = Tensorspec("moments", (2, "S", "G"), "means and variances of prefill's blocks, over the whole latent")
_FEATURES = Tensorspec("features", (1, "F", "h", "w"), "what the context is refined from")
_ENCODED = Tensorspec("encoded", (1, "E", "h", "w"), "what the latent of a picture is made from")
_ENCODE_MOMENTS = Tensorspec(
    "moments", (2, "ES", "EG"), "means and variances of encode_latent's blocks, over the picture"
)
_FINE = Tensorspec("fine", (1, "T", "P*h", "P*w"), "the trunk's features and picture at the latent's own size")
_CONTEXT = Tensorspec("context", (1, "D", "h", "w"), "what every tile of the picture is decoded from")


def _gathering(values: Tensorspec, moments: Tensorspec, whole: str) -> tuple[Tensorspec, ...]:
    """The inputs of a graph that computes moments of some values."""
    return (
        values,
        Tensorspec("share_y", ("h",), "what each row counts for in means: 1 / rows, 0 in a halo"),
        Tensorspec("share_x", ("w",), "the same of columns"),
        Tensorspec("known", moments.shape, f"moments of the whole {whole}; variances below 0 where they are not known"),
    )


STATISTICS = Kind(
    "statistics", _gathering(_LATENT, _MOMENTS, "latent"), _MOMENTS, "cell", part="prefill", of_space=True
)
PREFILL = Kind("prefill", (_LATENT, _MOMENTS), _FEATURES, "cell", part="prefill", of_space=True)
TRUNK = Kind("trunk", (_FEATURES,), _FINE, "cell", part="refine", of_space=True)
REFINE = Kind("refine", (_FEATURES, _FINE), _CONTEXT, "cell", part="refine", enlarged=True)
DECODE = Kind(
    "decode",
    (
        Tensorspec("context", (1, "D", "hk", "wk"), "crop of the context"),
        Tensorspec("key_y", ("hk",), "centres of the crop's cell rows, in cells of the whole latent"),
        Tensorspec("key_x", ("wk",), "centres of the crop's cell columns"),
        Tensorspec("token_y", ("ht",), "centres of the token rows, in cells of the whole latent"),
        Tensorspec("token_x", ("wt",), "centres of the token columns"),
        Tensorspec("extent", (2,), "cells of the whole latent: height, width"),
        Tensorspec("scale", (2,), "output pixels per cell / 8: vertical, horizontal"),
    ),
    Tensorspec("image", (1, 3, "P*ht", "P*wt"), "RGB, about 0 to 1, not clamped"),
    "token",
    part="decode",
    enlarged=True,
    fixed=True,
    kept=True,
)
DECODE_CELLS = Kind(
    "decode_cells",
    (Tensorspec("context", (1, "D", "hk", "wk"), "context of some cells, which are decoded as if they were all"),),
    Tensorspec("image", (1, 3, "U*hk", "U*wk"), "RGB, about 0 to 1, not clamped"),
    "token",
    part="decode",
    enlarged=True,
    kept=True,
    optional=True,
)
ENCODE = Kind(
    "encode",
    (Tensorspec("image", (1, 3, "P*h", "P*w"), "RGB, 0 to 1"),),
    _LATENT,
    "cell",
    part="encode",
    of_space=True,
    picture=False,
    fixed=True,
)
ENCODE_STATISTICS = Kind(
    "encode_statistics",
    _gathering(_ENCODED, _ENCODE_MOMENTS, "picture"),
    _ENCODE_MOMENTS,
    "cell",
    part="encode",
    of_space=True,
    picture=False,
)
ENCODE_LATENT = Kind(
    "encode_latent",
    (_ENCODED, _ENCODE_MOMENTS),
    _LATENT,
    "cell",
    part="encode",
    of_space=True,
    picture=False,
)
KINDS = (STATISTICS, PREFILL, TRUNK, REFINE, DECODE, DECODE_CELLS, ENCODE, ENCODE_STATISTICS, ENCODE_LATENT)


def kinds(
    gathers: bool, grows: bool, refines: bool, encode_gathers: bool = False, by_cells: bool = False
) -> tuple[Kind, ...]:
    """The kinds of graph in a model, in the order in which they run.

    Args:
        gathers: whether it has statistics. Without them, prefill takes only a latent.
        grows: whether it has a trunk. Without it, refine takes only features.
        refines: whether it has refine. Without it, prefill gives the context.
        encode_gathers: whether its encoder has statistics. Without them, encode gives the latent.
        by_cells: whether it decodes whole cells at the factor of some enlargement.
    """
    inputs, output = PREFILL.inputs if gathers else (_LATENT,), _FEATURES if refines else _CONTEXT
    prefill = replace(PREFILL, inputs=inputs, output=output)
    refine = replace(REFINE, inputs=REFINE.inputs if grows else (_FEATURES,))
    encode = replace(ENCODE, output=_ENCODED) if encode_gathers else ENCODE
    has = (
        *((STATISTICS, gathers), (prefill, True), (TRUNK, grows), (refine, refines), (DECODE, True)),
        (DECODE_CELLS, by_cells),
        *((encode, True), (ENCODE_STATISTICS, encode_gathers), (ENCODE_LATENT, encode_gathers)),
    )
    return tuple(kind for kind, there in has if there)


def model_sizes(
    *,
    patch: int,
    factor: int | None,
    latent: int,
    features: int | None,
    fine: int | None,
    context: int,
    moments: tuple[int, int] | None,
    encoded: int | None = None,
    encode_moments: tuple[int, int] | None = None,
) -> dict[str, int]:
    """The sizes of a model by their letters in shapes; see the module's docstring.

    Args:
        patch: the side of a token in pixels.
        factor: the enlargement's factor. None for a model without enlargements.
        latent: the number of channels of a latent.
        features: the number of channels of features. None without refine.
        fine: the number of channels of fine features. None without a trunk.
        context: the number of channels of a context.
        moments: the number of blocks and groups of statistics. None without statistics.
        encoded: the number of channels of an encoded picture. None if the encoder has no statistics.
        encode_moments: the number of blocks and groups of the encoder's statistics. None without them.
    """
    (blocks, groups), (encode_blocks, encode_groups) = moments or (0, 0), encode_moments or (0, 0)
    own = {
        "P": patch,
        "U": patch * (factor or 1),
        "C": latent,
        "F": features or 0,
        "T": fine or 0,
        "D": context,
        "S": blocks,
        "G": groups,
    }
    return own | {"E": encoded or 0, "ES": encode_blocks, "EG": encode_groups}


def graph_name(kind: str, factor: int | None) -> str:
    """The name of a graph: its kind, followed by the factor of its enlargement if it has one."""
    return kind if factor is None else f"{kind}{factor}"


def kind_of(graph: str) -> Kind:
    """The kind of a graph, by its name."""
    return _BY_NAME[graph.rstrip("0123456789")]


def is_of_space(graph: str) -> bool:
    """Whether every latent space has its own graph of this name. Unknown graphs count as shared."""
    kind = _BY_NAME.get(graph.rstrip("0123456789"))
    return kind is not None and kind.of_space


_BY_NAME = {kind.name: kind for kind in KINDS}
