"""The cost of a chain of nodes in bytes, steps and time, which follows from the costs of its nodes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from infgen_rt.backend.measuring import Speed
from infgen_rt.bundle.graphs import DECODE, ENCODE, PREFILL, REFINE
from infgen_rt.bundle.manifest import Manifest, Recipe
from infgen_rt.geometry.tiling import HaloTiling
from infgen_rt.nodes.context import context_costs
from infgen_rt.nodes.decoded import Decoded
from infgen_rt.nodes.encoding import encoding_costs
from infgen_rt.nodes.latents import Given
from infgen_rt.nodes.node import Cost
from infgen_rt.nodes.tiles import Tiles
from infgen_rt.plan.plan import StagePlan

Chain = tuple[tuple[Cost, ...], ...]
"""The costs of the nodes of each stage, from its latent to its tiles."""


@dataclass(frozen=True)
class Writing:
    """The memory for writing a picture while it is decoded.

    Attributes:
        encoder: the bytes that the file format's encoder needs.
        wide: the size of the rows of tiles that the writer holds, relative to 8 bits per channel. It is 2 for 16 bits.
    """

    encoder: int = 0
    wide: int = 1

    def extra(self, stage: StagePlan) -> int:
        """The additional bytes for writing a stage's picture, compared with 8-bit PNG."""
        return self.encoder + (self.wide - 1) * stage.bands


PLAIN = Writing()
"""The memory for writing 8-bit PNG, which every plan includes."""


def chain_costs(
    stages: Sequence[StagePlan],
    encodings: Sequence[HaloTiling],
    manifest: Manifest,
    recipe: Recipe,
    workers: int = 1,
    writing: Writing = PLAIN,
) -> Chain:
    """The costs of the nodes of all stages, as `nodes.chain` links them.

    Args:
        stages: the stages, first to last.
        encodings: the tiles in which each stage's picture, except the last, is encoded for the next stage.
        manifest: the model's manifest.
        recipe: the recipe that will run.
        workers: the number of tiles that are decoded at the same time.
        writing: the memory for writing the last picture.
    """
    figures = manifest.memory(recipe)
    chain: list[tuple[Cost, ...]] = []
    for number, stage in enumerate(stages):
        if number:
            latent = tuple(encoding_costs(encodings[number - 1], stages[number - 1], manifest, figures))
        else:
            latent = (Given.cost(stage.grid.cells, manifest),)
        chain.append((*latent, *_stage_costs(stage, manifest, recipe, workers)))
    # A writer holds two rows of the last picture's tiles.
    chain[-1] = (*chain[-1], Cost(held=stages[-1].bands + writing.extra(stages[-1])))
    return tuple(chain)


def peaks(chain: Chain, base: int) -> tuple[int, ...]:
    """The expected peak memory in bytes during each stage, without the caches of tiles.

    The memory of a stage is held until the features of the next stage are complete.

    Args:
        chain: the costs of the chain.
        base: the bytes of the loaded graphs.
    """
    needs: list[int] = []
    before = arena = 0
    for nodes in chain:
        held = most = 0
        for node in nodes:
            most = max(most, before + held + node.making)
            held = node.held if node.alone else held + node.held
        # The working memory of decode is kept between runs, also from one stage to the next.
        arena = max(arena, *(node.arena for node in nodes))
        before = held + arena + max(node.reading for node in nodes)
        needs.append(base + max(most, before))
    return tuple(needs)


def preparation(chain: Chain) -> int:
    """The number of steps before the first pixel."""
    return sum(node.steps for nodes in chain for node in nodes)


def seconds(chain: Chain, speed: Speed | None) -> float | None:
    """The expected seconds for computing the last stage's picture. None if one of the speeds was not measured."""
    every = [node for nodes in chain for node in nodes]
    encoded = sum(node.encoded for node in every)
    if speed is None or (encoded and speed.encode is None):
        return None
    computed = speed.context * sum(node.cells for node in every) + (speed.encode or 0.0) * encoded
    return computed / 1e3 + speed.decode * sum(node.pixels for node in every) / 1e6


def multiply_adds(chain: Chain, manifest: Manifest) -> float:
    """The estimated number of multiply-adds for computing the last stage's picture.

    For contexts, the manifest has the number. Without it, each parameter counts as used once per cell. Decode and
    encode work at several resolutions between cells and pixels, so they use a parameter 1 to `patch**2` times per token
    or cell. The estimate is the geometric mean, which is `patch`.
    """
    every, parameters = [node for nodes in chain for node in nodes], manifest.model.parameters
    context = manifest.contexts[0].work or parameters.get(PREFILL.name, 0) + parameters.get(REFINE.name, 0)
    decode, encode = (manifest.patch * parameters.get(kind.name, 0) for kind in (DECODE, ENCODE))
    tokens = sum(node.pixels for node in every) / manifest.patch**2
    return context * sum(node.cells for node in every) + decode * tokens + encode * sum(node.encoded for node in every)


def _stage_costs(stage: StagePlan, manifest: Manifest, recipe: Recipe, workers: int) -> Iterator[Cost]:
    figures, at_once = manifest.memory(recipe), min(workers, stage.count)
    yield from context_costs(stage.context, stage.grid.cells, stage.enlargement, manifest, recipe)
    yield Decoded.cost(stage.windows, stage.decoded_tile, stage.count, at_once, manifest.patch, figures)
    yield Tiles.cost(stage, at_once)
