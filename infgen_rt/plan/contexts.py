"""Plans how the contexts of latents are computed, in parts that a memory budget has room for."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

from infgen_rt.bundle.graphs import REFINE, STATISTICS
from infgen_rt.bundle.manifest import Enlargement, Manifest, Recipe
from infgen_rt.geometry.grid import Grid
from infgen_rt.geometry.shapes import Size
from infgen_rt.geometry.tiling import HaloTiling, Tiling
from infgen_rt.nodes.context import ContextPlan, context_costs
from infgen_rt.nodes.moments import Gathering
from infgen_rt.nodes.node import FLOAT

# The sides in cells of the parts in which a context is computed. In smaller parts, more of the work is for halos.
_PARTS = (128, 96, 64, 48, 32, 24, 16, 8)
# The largest number of cells that are computed for each cell of a context if memory is to spare.
_HALOS = 3.0

LEAST_PART = _PARTS[-1]
"""The smallest side in cells of a part."""

Made = Callable[[Enlargement], ContextPlan | None]
"""Returns the existing plan of a latent's context for an enlargement, or None if there is none."""


def ways(
    grids: Sequence[Grid],
    enlargements: Sequence[Enlargement],
    manifest: Manifest,
    recipe: Recipe,
    budget: int,
    part: int | None,
    made: Made,
    writes: bool,
) -> Collection[tuple[ContextPlan | None, ...]]:
    """The ways of computing the contexts of all stages, in the order in which they should be tried.

    The first has the memory that the budget allows, and the others as little as possible.

    Args:
        grids: the latent and the picture of each stage.
        enlargements: the enlargement of each stage.
        manifest: the model's manifest.
        recipe: the recipe that will run.
        budget: the number of bytes that may be used.
        part: the side in cells of the largest part. None to let the budget decide.
        made: the existing plans for the first latent.
        writes: whether an existing context may be computed again in smaller parts, to leave memory for writing.
    """
    found: list[tuple[ContextPlan | None, ...]] = [
        tuple(
            (_made(made, enlargement) if number == 0 else None)
            or plan_context(grid.cells, enlargement, manifest, recipe, amount, part)
            for number, (grid, enlargement) in enumerate(zip(grids, enlargements, strict=True))
        )
        for amount in (budget, 0)
    ]
    if writes and (first := found[-1][0]) is not None:
        # The statistics of its latent stay the same.
        smallest = plan_context(grids[0].cells, enlargements[0], manifest, recipe, 0, part)
        found.append((replace(smallest, gathering=first.gathering) if smallest else None, *found[-1][1:]))
    return dict.fromkeys(found)


def _made(made: Made, enlargement: Enlargement) -> ContextPlan | None:
    """An existing plan of a context, without memory that graphs keep. Whether there is room for it is decided anew."""
    plan = made(enlargement)
    return plan and replace(plan, keeps=False)


def plan_context(
    cells: Size,
    enlargement: Enlargement,
    manifest: Manifest,
    recipe: Recipe,
    budget: int,
    part: int | None = None,
) -> ContextPlan | None:
    """Plan how a latent's context is computed.

    Args:
        cells: the latent's width and height.
        enlargement: the context's enlargement.
        manifest: the model's manifest, for its halos and channels.
        recipe: the recipe that will run.
        budget: the number of bytes that may be used. The context gets half of the bytes that the loaded graphs leave.
            If that is too little, it gets as little as possible.
        part: the side in cells of its largest part. None to let the budget decide.

    Returns:
        The plan. None if the recipe has neither statistics nor refine: prefill then computes the context as a whole.
    """
    if not recipe.has(STATISTICS) and not recipe.has(REFINE, enlargement):
        return None
    figures = manifest.memory(recipe)
    room = (budget - figures.base) // 2
    gathering = None
    if recipe.has(STATISTICS) and manifest.moments:
        # If there is room, all statistics are gathered at once, because parts need one pass per block of prefill.
        for side in (max(cells), *_PARTS):
            parts = HaloTiling(Tiling.of(cells, Size(side, side)), manifest.halo.prefill)
            if figures.statistics_per_cell * parts.window.area <= room:
                break
        gathering = Gathering(parts, manifest.moments[0])
    for longest in _PARTS:
        side = min(longest, part or longest)
        tiles = HaloTiling(Tiling.of(cells, Size(side, side)), enlargement.halo)
        tile = enlargement.channels * FLOAT * tiles.tiling.largest.area
        # Keep all tiles. If there is too little room, keep two rows of them, which is enough for a picture that is
        # decoded row by row.
        for kept in sorted({tiles.tiling.count, min(tiles.tiling.count, 2 * tiles.tiling.across)}, reverse=True):
            refine_halo = manifest.refine_halo(enlargement)
            plan = ContextPlan(tiles, kept * tile, gathering, manifest.prefill_is_local, refine_halo)
            costs = context_costs(plan, cells, enlargement, manifest, recipe)
            if plan.cache + max(cost.reading for cost in costs) <= room:
                return plan
    return plan


def is_mostly_halo(plan: ContextPlan | None) -> bool:
    """Whether more than two thirds of the work for a context would be for the halos of its parts."""
    return plan is not None and plan.tiles.computed > _HALOS * plan.tiles.tiling.box.size.area
