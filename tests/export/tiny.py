"""Models of both kinds, small enough to be built, exported and trained in a moment."""

import dataclasses

import torch
from torch import Tensor

from infgen_export import recipes
from infgen_model import DecoderConfig, Enlargement, Grid, InfGen, Level, edge, paper
from infgen_model.graphs import Graph, graphs_of
from infgen_rt.backend.inputs import tile_inputs
from infgen_rt.bundle.manifest import FixedShape
from infgen_rt.geometry import grid as coordinates
from infgen_rt.geometry.shapes import Box

_SMALL = {
    "width": 16,
    "inpe_features": 8,
    "blocks": 1,
    "heads": 2,
    "key_width": 16,
    "mlp_ratio": 1,
    "encoder": (Level(8, 1), Level(8, 1)),
}

EDGE = dataclasses.replace(
    edge(),
    name="tiny-edge",
    trunk=(Level(8, 2), Level(6, 1), Level(4, 0), Level(4, 1)),
    enlargements=(Enlargement(1, 0), Enlargement(2, 1), Enlargement(4, 2, finish=2, polish=4)),
    detail=3,
    levels=(Level(8, 1), Level(8, 1)),
    scale_range=(0.5, 4.0),  # below its own size too, so that the runtime decodes what torch does
    encoder_pooled=2,
    **_SMALL | {"encoder": (Level(8, 1), Level(8, 3))},
)
PAPER = dataclasses.replace(
    paper("flux2", 32), name="tiny-paper", levels=(Level(8, 1), Level(8, 1), Level(8, 0)), **_SMALL
)
CONFIGS = {"edge": EDGE, "paper": PAPER}


def model(config: DecoderConfig, seed: int = 0) -> InfGen:
    """Random weights, larger than a new model's: every path from input to output matters, none is near the identity."""
    plain = tuple(dataclasses.replace(each, finish=0, polish=0) for each in config.enlargements)
    torch.manual_seed(seed)
    built = InfGen(dataclasses.replace(config, enlargements=plain)).eval().requires_grad_(False)
    for name, parameter in built.named_parameters():
        if name.startswith(("decode.upsampler.to_pixels", "refine.enlarger.leave")) and not parameter.any():
            parameter.add_(0.1 * torch.randn_like(parameter))  # what starts at zero hides what is before it
        elif name.endswith(("second.weight", "convolve.4.weight", "to_pixels.weight")):
            parameter.mul_(3.0)
        elif parameter.ndim == 1:
            parameter.add_(0.2 * torch.randn_like(parameter))
    if plain != config.enlargements:  # finish and polish come last, so that all other weights are the same without them
        shared, built = built.state_dict(), InfGen(config).eval().requires_grad_(False)
        built.load_state_dict(shared, strict=False)
        for name, parameter in built.named_parameters():
            if name not in shared:
                parameter.add_(0.05 * torch.randn_like(parameter))
    return built


def graph_names(model: InfGen, *shapes: FixedShape) -> list[str]:
    return [graph.name for graph in graphs_of(model, shapes)]


def tile(tokens: int) -> FixedShape:
    return recipes.tile(tokens, EDGE)


def decode_graph(model: InfGen, *shapes: FixedShape) -> Graph:
    """The first of them: that of the smallest enlargement."""
    return next(graph for graph in graphs_of(model, shapes) if graph.kind.name == "decode")


def latent(height: int, width: int, batch: int = 1, seed: int = 0) -> Tensor:
    return torch.randn(batch, 32, height, width, generator=torch.Generator().manual_seed(seed))


def decode(
    model: InfGen,
    context: Tensor,
    grid: coordinates.Grid,
    tokens: Box,
    radius: float | None,
    enlargement: Enlargement | None = None,
) -> Tensor:
    """Decodes some tokens as the runtime does: from a crop of the context."""
    cells = grid.context_of(tokens, radius)
    inputs = tile_inputs(grid, context.numpy()[:, :, *cells.slices], cells, tokens)
    tensors = {name: torch.from_numpy(value) for name, value in inputs.items()}
    return model.decode(tensors.pop("context"), Grid(**tensors), enlargement)
