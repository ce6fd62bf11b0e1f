"""Recipes: named presets of a target, a precision and a shape, which ``infgen-export recipes`` lists."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from infgen_export.errors import RequestError
from infgen_rt.bundle.graphs import Kind
from infgen_rt.bundle.manifest import FixedShape
from infgen_rt.geometry.grid import Grid
from infgen_rt.geometry.shapes import Size

if TYPE_CHECKING:
    from infgen_model import DecoderConfig

PRECISIONS = ("fp32", "fp16", "int8")
"""Precisions of recipes; see ``Recipe``."""


def tile(tokens: int, config: DecoderConfig) -> FixedShape:
    """The shapes for a square tile, and for the context that the tile needs at scale 1.

    A model whose attention has no radius would need the whole latent. The shape then has only the cells that the tile
    covers.

    Args:
        tokens: Side of the tile in tokens.
        config: Config of the model.
    """
    pixels = config.PATCH * tokens
    grid = Grid(Size(2 * tokens, 2 * tokens), Size(2 * pixels, 2 * pixels), config.PATCH)
    cells = grid.most_context(Size(tokens, tokens), config.radius or 0)
    return FixedShape((tokens, tokens), (cells.height, cells.width), (pixels, pixels))


@dataclass(frozen=True)
class Recipe:
    """A preset for the graphs of one target.

    Attributes:
        name: Unique name. The names of the recipe's files in a bundle start with it.
        target: Name of a module in ``infgen_export.targets``, which converts the graphs.
        precision: ``"fp32"``, ``"fp16"`` or ``"int8"``. With ``"fp16"``, the weights are float16, and on some targets
            the arithmetic too. With ``"int8"``, large weights have 8 bits.
        about: What the recipe is for.
        default: Whether the recipe is used if its target is requested without a recipe.
        tiles: Sides, in tokens, of the only square tiles that decode and encode take, smallest first. If empty, they
            take tiles of any size. The other graphs always take any size. They see whole latents, and padding would
            change the statistics of these.
    """

    name: str
    target: str
    precision: str
    about: str
    default: bool = False
    tiles: tuple[int, ...] = ()

    def shapes(self, config: DecoderConfig) -> tuple[FixedShape, ...]:
        """The only shapes that a model's decode and encode take, smallest first. If empty, they take any shape."""
        return tuple(tile(side, config) for side in self.tiles)

    def compute_units(self, kind: Kind) -> str | None:
        """The compute units of an Apple device that suit a kind of graph, as Core ML names them.

        The Neural Engine does not run float32. If a graph has several shapes, the Neural Engine runs only the default
        one. Such graphs, and graphs that take any shape, are for the GPU.

        Returns:
            ``"cpuAndNeuralEngine"`` or ``"cpuAndGPU"``. ``None`` for targets other than Core ML.
        """
        if self.target != "coreml":
            return None
        fixed = kind.fixed and len(self.tiles) == 1 and self.precision != "fp32"
        return "cpuAndNeuralEngine" if fixed else "cpuAndGPU"


RECIPES = (
    Recipe("onnx-fp32", "onnx", "fp32", "ONNX Runtime on CPUs", default=True),
    Recipe("onnx-fp16", "onnx", "fp16", "ONNX Runtime on GPUs", default=True),
    Recipe("onnx-int8", "onnx", "int8", "small downloads; computes in float32"),
    Recipe("openvino-fp32", "openvino", "fp32", "Intel CPUs and GPUs, float32 weights"),
    Recipe("openvino-fp16", "openvino", "fp16", "Intel CPUs and GPUs, float16 weights", default=True),
    Recipe("openvino-int8", "openvino", "int8", "small downloads, weights in 8 bits"),
    Recipe("openvino-npu", "openvino", "fp16", "Intel NPUs: one tile of 512x512 pixels", tiles=(64,)),
    Recipe("coreml-fp32", "coreml", "fp32", "Apple CPUs and GPUs, float32"),
    Recipe("coreml-fp16", "coreml", "fp16", "Apple GPUs and CPUs, any tile", default=True),
    Recipe("coreml-int8", "coreml", "int8", "small downloads, weights in 8 bits"),
    Recipe("coreml-ane", "coreml", "fp16", "Apple Neural Engine: one tile of 512x512 pixels", tiles=(64,)),
    Recipe(
        "coreml-enum",
        "coreml",
        "fp16",
        "Apple GPUs, compiled for a few tile sizes",
        tiles=(32, 64, 96),
    ),
    Recipe("torch-fp32", "torch", "fp32", "PyTorch anywhere, float32 weights"),
    Recipe("torch-fp16", "torch", "fp16", "PyTorch anywhere, float16 weights", default=True),
)
"""All recipes, in the order in which ``infgen-export recipes`` lists them."""
TARGETS = tuple(dict.fromkeys(recipe.target for recipe in RECIPES))
"""Names of all targets."""


def select(targets: Sequence[str], names: Sequence[str] = ()) -> tuple[Recipe, ...]:
    """Finds the recipes for the targets and recipes that a user names.

    Args:
        targets: Names of targets, or ``"all"`` as one of them. If empty, the targets of the named recipes, or ONNX if
            no recipe is named.
        names: Names of recipes, or ``"all"`` as one of them for every recipe of the targets. If empty, the targets'
            default recipes.

    Raises:
        RequestError: A name is unknown, a recipe is not for one of the requested targets, or a requested target has
            none of the named recipes.

    Examples:
        >>> [recipe.name for recipe in select(["onnx"])]
        ['onnx-fp32', 'onnx-fp16']
        >>> [recipe.name for recipe in select([], ["coreml-ane"])]
        ['coreml-ane']
    """
    known = {recipe.name: recipe for recipe in RECIPES}
    for kind, given, possible in (("target", targets, TARGETS), ("recipe", names, tuple(known))):
        if unknown := [name for name in given if name not in (*possible, "all")]:
            raise RequestError(f"unknown {kind} {unknown[0]!r}: expected one of {', '.join((*possible, 'all'))}")
    wanted = TARGETS if "all" in targets else tuple(targets) or (() if names else ("onnx",))
    if "all" in names or not names:
        return tuple(
            recipe for recipe in RECIPES if recipe.target in (wanted or TARGETS) and (recipe.default or "all" in names)
        )
    for name in names:
        if wanted and known[name].target not in wanted:
            target = known[name].target
            raise RequestError(
                f"recipe {name!r} is for target {target!r}, which was not requested: add --target {target}"
            )
    if bare := [target for target in wanted if all(known[name].target != target for name in names)]:
        raise RequestError(
            f"no recipe for target {bare[0]!r} among {', '.join(names)}: name one, or leave the target out"
        )
    return tuple(known[name] for name in dict.fromkeys(names))
