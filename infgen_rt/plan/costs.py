"""What a chain of nodes takes: bytes, steps and seconds, added up from what each node says of itself."""

from collections.abc import Iterator, Sequence
from math import ceil

from infgen_rt.backend.measuring import Speed
from infgen_rt.bundle.manifest import Manifest, Recipe
from infgen_rt.geometry.shapes import Size
from infgen_rt.geometry.tiling import HaloTiling
from infgen_rt.nodes.context import effort
from infgen_rt.nodes.decoded import Decoded
from infgen_rt.nodes.features import LocalFeatures, WholeFeatures
from infgen_rt.nodes.latents import Given, Reencoded
from infgen_rt.nodes.node import Cost
from infgen_rt.nodes.resampled import SUPPORT
from infgen_rt.nodes.tiles import Tiles
from infgen_rt.plan.plan import StagePlan

Chain = tuple[tuple[Cost, ...], ...]
"""Of each stage, what its nodes take, from the latent to the tiles."""


def chain_costs(
    stages: Sequence[StagePlan],
    encodings: Sequence[HaloTiling],
    manifest: Manifest,
    recipe: Recipe,
    workers: int = 1,
) -> Chain:
    """What the nodes of all stages take, as `nodes.chain` links them.

    Args:
        stages: first to last.
        encodings: how the picture of each stage but the last is encoded for the next.
        manifest: the model's.
        recipe: that will run.
        workers: tiles that are decoded at the same time.
    """
    figures = manifest.memory(recipe)
    chain = []
    for number, stage in enumerate(stages):
        if number:
            latent = Reencoded.cost(encodings[number - 1], stages[number - 1], manifest, figures)
        else:
            latent = Given.cost(stage.grid.cells, manifest)
        chain.append((latent, *_stage_costs(stage, manifest, recipe, workers)))
    # Two rows of the last picture's tiles are with a writer.
    chain[-1] = (*chain[-1], Cost(held=stages[-1].bands))
    return tuple(chain)


def peaks(chain: Chain, base: int) -> tuple[int, ...]:
    """Bytes that are expected to be used at most until each stage is done, from the one before it on; no tile caches.

    A stage is held until the next one's features are there.

    Args:
        chain: what its nodes take.
        base: bytes of what is loaded.
    """
    needs: list[int] = []
    before = arena = 0
    for nodes in chain:
        held = most = 0
        for node in nodes:
            most = max(most, before + held + node.making)
            held = node.held if node.alone else held + node.held
        # What decode works in is kept from run to run, and from stage to stage.
        arena = max(arena, *(node.arena for node in nodes))
        before = held + arena + max(node.reading for node in nodes)
        needs.append(base + max(most, before))
    return tuple(needs)


def preparation(chain: Chain) -> int:
    """Steps before the first pixel."""
    return sum(node.steps for nodes in chain for node in nodes)


def seconds(chain: Chain, speed: Speed | None) -> float | None:
    """Seconds that computing the last stage's picture is expected to take; None where something was not measured."""
    every = [node for nodes in chain for node in nodes]
    encoded = sum(node.encoded for node in every)
    if speed is None or (encoded and speed.encode is None):
        return None
    computed = speed.context * sum(node.cells for node in every) + (speed.encode or 0.0) * encoded
    return computed / 1e3 + speed.decode * sum(node.pixels for node in every) / 1e6


def padded_tokens(stage: StagePlan, manifest: Manifest) -> Size:
    """Tokens that are decoded for the largest tile, its halo and what resampling needs included."""
    halo, decoded = manifest.halo.tokens, stage.decoded
    sides = []
    for tile, whole, made, tokens in zip(stage.tile, stage.grid.picture, decoded.picture, decoded.tokens, strict=True):
        if made != whole:
            tile = ceil((tile + 1) * made / whole + 2 * SUPPORT * max(1.0, made / whole) / decoded.patch) + 1
        sides.append(min(tile + 2 * halo, tokens))
    return Size(*sides)


def _stage_costs(stage: StagePlan, manifest: Manifest, recipe: Recipe, workers: int) -> Iterator[Cost]:
    plan, figures, at_once = stage.context, manifest.memory(recipe), min(workers, stage.count)
    if plan is not None and plan.gathering is not None:
        yield plan.gathering.cost(figures)
        yield LocalFeatures.cost(plan.tiles, manifest, figures)
    else:
        yield WholeFeatures.cost(stage.grid.cells, plan is not None, stage.enlargement, manifest, figures)
    if plan is not None:
        refines = stage.enlargement.graph("refine") in recipe.graphs
        yield plan.cost(stage.enlargement, refines, manifest, figures)
    else:
        yield Cost(cells=stage.grid.cells.area * effort(stage.enlargement, manifest))
    tokens = padded_tokens(stage, manifest)
    yield Decoded.cost(tokens, stage.count, at_once, manifest.patch, figures)
    yield Tiles.cost(stage, at_once)
