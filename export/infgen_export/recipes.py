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


def tile(tokens: int, config: DecoderConfig) -> FixedShape:
    """A square tile and the cells that it needs at scale 1. A model that attends to all cells gets only these."""
    pixels = config.PATCH * tokens
    grid = Grid(Size(2 * tokens, 2 * tokens), Size(2 * pixels, 2 * pixels), config.PATCH)
    cells = grid.most_context(Size(tokens, tokens), config.radius or 0)
    return FixedShape((tokens, tokens), (cells.height, cells.width), (pixels, pixels))


@dataclass(frozen=True)
class Recipe:
    """How one target's graphs are made.

    Attributes:
        name: Unique name, which is also the folder of the graphs in a bundle.
        target: The converter and runtime, as the name of a module in ``infgen_export.targets``.
        precision: ``"fp32"``; ``"fp16"``, arithmetic or at least weights in float16; ``"int8"``, weights in 8 bits.
        about: What the recipe is for.
        default: Whether the recipe is used if its target is requested without a recipe.
        tiles: Sides in tokens of the only tiles that decode and encode take, smallest first. If empty, they take any.
            Prefill stays dynamic, because it sees whole latents, and padding would change their statistics.
    """

    name: str
    target: str
    precision: str
    about: str
    default: bool = False
    tiles: tuple[int, ...] = ()

    def shapes(self, config: DecoderConfig) -> tuple[FixedShape, ...]:
        """The only shapes that a model's decode and encode take, smallest first. If empty, they take any."""
        return tuple(tile(side, config) for side in self.tiles)

    def compute_units(self, kind: Kind) -> str | None:
        """The units of an Apple device that suit a kind of graph, by Core ML's name. None for other targets.

        Of a graph with several shapes, the Neural Engine runs only the default one, and float32 it does not run at all.
        Such graphs are for the GPU.
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
TARGETS = tuple(dict.fromkeys(recipe.target for recipe in RECIPES))


def select(targets: Sequence[str], names: Sequence[str] = ()) -> tuple[Recipe, ...]:
    """The recipes of a request.

    Args:
        targets: Names of targets, or ``"all"``. If empty, those of the named recipes, or ONNX if there are none.
        names: Names of recipes, or ``"all"`` for every recipe of the targets. If empty, the targets' defaults.

    Raises:
        RequestError: A name is unknown, or a recipe is not for one of the requested targets.
    """
    known = {recipe.name: recipe for recipe in RECIPES}
    wanted = TARGETS if "all" in targets else tuple(targets) or (() if names else ("onnx",))
    if unknown := [target for target in wanted if target not in TARGETS]:
        raise RequestError(f"unknown target {unknown[0]!r}: expected one of {', '.join((*TARGETS, 'all'))}")
    if "all" in names or not names:
        return tuple(
            recipe for recipe in RECIPES if recipe.target in (wanted or TARGETS) and (recipe.default or "all" in names)
        )
    for name in names:
        if name not in known:
            raise RequestError(f"unknown recipe {name!r}: infgen-export recipes lists {', '.join(known)}")
        if wanted and known[name].target not in wanted:
            raise RequestError(f"recipe {name!r} is of target {known[name].target!r}, which was not asked for")
    if bare := [target for target in wanted if all(known[name].target != target for name in names)]:
        raise RequestError(f"no recipe of target {bare[0]!r} among {', '.join(names)}: name one, or leave it out")
    return tuple(known[name] for name in dict.fromkeys(names))
