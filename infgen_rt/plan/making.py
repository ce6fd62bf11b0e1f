"""Makes plans: chooses tiles for given sizes and a memory budget, before anything runs."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from itertools import product

from infgen_rt.backend.choice import Choice
from infgen_rt.bundle.graphs import ENCODE, REFINE, STATISTICS
from infgen_rt.bundle.manifest import Enlargement, Manifest, Recipe
from infgen_rt.common.memory import MIB, enough, format_bytes
from infgen_rt.errors import PlanError
from infgen_rt.geometry.grid import Grid
from infgen_rt.geometry.shapes import Size
from infgen_rt.geometry.tiling import (
    ENCODED,
    LARGEST_SHARED_TILE,
    LARGEST_TILE,
    SMALLEST_SHARED_TILE,
    SMALLEST_TILE,
    HaloTiling,
    Tiling,
)
from infgen_rt.nodes.context import ContextPlan, context_costs
from infgen_rt.nodes.moments import Gathering
from infgen_rt.nodes.node import FLOAT
from infgen_rt.plan.costs import PLAIN, Chain, Writing, chain_costs, multiply_adds, peaks, preparation, seconds
from infgen_rt.plan.fixed import fits_a_shape, largest_tile, what_fits
from infgen_rt.plan.plan import LEAST_SCALE, Plan, StagePlan, decoded_grid

# If a decoded picture is enlarged by resampling, its tiles are enlarged by the same factor, but at most by this one.
_ENLARGED = 2
# The sides in cells of the tiles in which a context is computed. In smaller tiles, more of the work is for halos.
_CONTEXT_TILES = (128, 96, 64, 48, 32, 24, 16, 8)
# The largest number of cells that are computed for each cell of a context if memory is to spare.
_HALOS = 3.0

CACHE = 64 * MIB
"""The maximum number of bytes of decoded tiles to keep."""


_LARGEST_FACTOR = 16
"""A height in pixels up to this one is probably meant as a factor."""


class TooLittleMemory(PlanError):
    """No tile fits in the memory budget.

    Attributes:
        needed: a number of bytes that would be enough.
    """

    def __init__(self, text: str, needed: int = 0) -> None:
        super().__init__(text)
        self.needed = needed


def make_plan(
    grids: Sequence[Grid],
    manifest: Manifest,
    recipe: Recipe,
    *,
    runs: Choice,
    budget: int,
    tile: int | None = None,
    part: int | None = None,
    scales: tuple[float, float] | None = None,
    made: Callable[[Enlargement], ContextPlan | None] = lambda _: None,
    workers: int = 1,
    writing: Writing = PLAIN,
    spares: bool = False,
) -> Plan:
    """Plan one decode.

    Args:
        grids: the latent and the picture of each stage, first to last (see `geometry.stages.chain`).
        manifest: the model's manifest, for its bounds and halos.
        recipe: the recipe that will run, for its memory figures and its shapes.
        runs: how the recipe is run, with the speed if it was measured.
        budget: the number of bytes that may be used.
        tile: the side of the largest tile in pixels, a multiple of the patch. None to let the budget decide. Between
            two stages, encoding uses tiles of twice this side.
        part: the side in cells of the largest part in which a context is computed. None to let the budget decide.
        scales: the smallest and largest scale that a stage decodes. Beyond them, its picture is resampled by Lanczos.
            None for any scale.
        made: returns the existing plan of the first latent's context for an enlargement, or None if there is none.
        workers: the best number of tiles to decode at the same time. Fewer are planned if there is too little memory.
        writing: the memory for writing the last picture.
        spares: whether to raise `TooLittleMemory` instead of planning small tiles or parts of contexts, with which most
            of the work would be for halos. Tiles and parts that the user chooses may be small.

    Raises:
        PlanError: a latent or a picture is out of bounds, the tile or the part is not possible, no tile fits the
            recipe's fixed shapes, or the recipe cannot encode for a second stage.
        TooLittleMemory: the budget is too small.
    """
    for number, grid in enumerate(grids, start=1):
        _check_bounds(grid, manifest, f"stage {number}: " if len(grids) > 1 else "")
    if len(grids) > 1:
        _check_encodes(recipe, len(grids))
    if part is not None and part < (least := _CONTEXT_TILES[-1]):
        raise PlanError(f"part of {part} cells is not possible: expected {least} or more")
    if tile is None:
        # Fixed shapes may have room for very small tiles only.
        least = 1 if recipe.shapes else SMALLEST_SHARED_TILE if spares else SMALLEST_TILE
        largest = min(LARGEST_TILE, largest_tile(manifest, recipe))
        sides = range(largest, min(least, largest) - 1, -1)
    else:
        sides = range(_tile_tokens(tile, grids[0].patch, manifest, recipe), 0, -1)[:1]
    enlargements = [manifest.context_for(decoded_grid(g, scales).scale) for g in grids]
    ways = list(_ways(grids, enlargements, manifest, recipe, budget, part, made, writing))
    if spares:
        # The first way has the largest parts for the budget.
        ways = [way for way in ways[:1] if part is not None or not any(map(_is_mostly_halo, way))]
        if not ways:
            raise TooLittleMemory(f"memory of {format_bytes(budget)} is too small for them (memory, --memory)")

    def tried(
        contexts: tuple[ContextPlan | None, ...], count: int, side: int
    ) -> tuple[tuple[StagePlan, ...], tuple[HaloTiling, ...], Chain] | None:
        """The stages, the tiles for encoding, and the costs. None if a tile fits no shape of the recipe."""
        stages = tuple(
            StagePlan(
                grid,
                Tiling.of(grid.tokens, _longest(side, grid, scales if tile is None else None)),
                enlargement,
                context,
                scales,
            )
            for grid, enlargement, context in zip(grids, enlargements, contexts, strict=True)
        )
        if not all(fits_a_shape(stage, manifest, recipe) for stage in stages):
            return None
        longest = Size(ENCODED * side, ENCODED * side)
        encodings = tuple(HaloTiling(Tiling.of(grid.cells, longest), manifest.encode_halo) for grid in grids[1:])
        return stages, encodings, chain_costs(stages, encodings, manifest, recipe, count, writing)

    base = manifest.memory(recipe).loaded(len(grids))
    # The smallest tile comes first, because most of the time would otherwise be for budgets that are too small.
    least_needs = [peaks(found[2], base) for way in ways if (found := tried(way, 1, sides[-1]))]
    if least_needs and all(max(each) > budget for each in least_needs):
        raise _too_little(grids, budget, tile, least_needs[-1])
    for contexts, count, side in product(ways, dict.fromkeys((workers, workers // 2 or 1, 1)), sides):
        if count > 1 and tile is None and not SMALLEST_SHARED_TILE <= side <= LARGEST_SHARED_TILE:
            continue
        if (found := tried(contexts, count, side)) is None:
            continue
        stages, encodings, chain = found
        memory = max(peaks(chain, base))
        if memory <= budget:
            kept = 0
            if (keeping := _keeping(stages)) != stages:
                costs = chain_costs(keeping, encodings, manifest, recipe, count, writing)
                more = max(peaks(costs, base))
                # The cache of tiles comes first.
                if more + 2 * CACHE <= budget:
                    stages, chain, memory, kept = keeping, costs, more, more - memory
            area = max(grid.picture.area for grid in grids)
            # The cache takes half of the remaining memory. The other half is a reserve for memory that is freed, but
            # not returned to the system.
            cache = min(CACHE, (budget - memory) // 2, 3 * FLOAT * area)
            work, took = multiply_adds(chain, manifest), seconds(chain, runs.speed)
            steps, written = preparation(chain), writing.extra(stages[-1])
            most = memory + cache
            return Plan(stages, encodings, runs, steps, budget, most, cache, count, work, took, written, kept)
    pictures = " or ".join(str(grid.picture) for grid in grids)
    tokens = None if tile is None else tile // grids[0].patch
    remedy = what_fits(grids[0], tokens, manifest, recipe, scales)
    raise PlanError(f"the fixed shapes of {recipe.name!r} hold no tile of a {pictures} picture: {remedy}")


def _too_little(grids: Sequence[Grid], budget: int, tile: int | None, needs: Sequence[int]) -> TooLittleMemory:
    """The error for a budget that is below the needs of the stages with the smallest tiles."""
    number = needs.index(max(needs))
    which = f"stage {number + 1}, " if len(grids) > 1 else ""
    return TooLittleMemory(
        f"memory of {format_bytes(budget)} is too small: {which}a {grids[number].picture} picture from a "
        f"{grids[number].cells} latent needs at least {enough(needs[number])} (memory, --memory)"
        + (f" with tiles of {tile} pixels" if tile else ""),
        needs[number],
    )


def _ways(
    grids: Sequence[Grid],
    enlargements: Sequence[Enlargement],
    manifest: Manifest,
    recipe: Recipe,
    budget: int,
    part: int | None,
    made: Callable[[Enlargement], ContextPlan | None],
    writing: Writing,
) -> Collection[tuple[ContextPlan | None, ...]]:
    """The ways of computing the contexts of all stages, in the order in which they should be tried.

    The first has the memory that the budget allows, and the others as little as possible. For the arguments, see
    `make_plan`.
    """
    ways: list[tuple[ContextPlan | None, ...]] = [
        tuple(
            (_made(made, enlargement) if number == 0 else None)
            or plan_context(grid.cells, enlargement, manifest, recipe, amount, part)
            for number, (grid, enlargement) in enumerate(zip(grids, enlargements, strict=True))
        )
        for amount in (budget, 0)
    ]
    if writing != PLAIN and (first := ways[-1][0]) is not None:
        # An existing context may be computed again in smaller parts. The statistics of its latent stay the same.
        smallest = plan_context(grids[0].cells, enlargements[0], manifest, recipe, 0, part)
        ways.append((replace(smallest, gathering=first.gathering) if smallest else None, *ways[-1][1:]))
    return dict.fromkeys(ways)


def _is_mostly_halo(plan: ContextPlan | None) -> bool:
    """Whether more than two thirds of the work for a context would be for the halos of its parts."""
    return plan is not None and plan.tiles.computed > _HALOS * plan.tiles.tiling.box.size.area


def _keeping(stages: tuple[StagePlan, ...]) -> tuple[StagePlan, ...]:
    """The same stages with graphs that keep their working memory during the last one."""
    *before, last = stages
    return stages if last.context is None else (*before, replace(last, context=replace(last.context, keeps=True)))


def _made(made: Callable[[Enlargement], ContextPlan | None], enlargement: Enlargement) -> ContextPlan | None:
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
    if recipe.graphs.keys().isdisjoint((STATISTICS.name, enlargement.graph(REFINE.name))):
        return None
    figures = manifest.memory(recipe)
    room = (budget - figures.base) // 2
    gathering = None
    if STATISTICS.name in recipe.graphs and manifest.moments:
        # If there is room, all statistics are gathered at once, because parts need one pass per block of prefill.
        for side in (max(cells), *_CONTEXT_TILES):
            parts = HaloTiling(Tiling.of(cells, Size(side, side)), manifest.halo.prefill)
            if figures.statistics_per_cell * parts.window.area <= room:
                break
        gathering = Gathering(parts, manifest.moments[0])
    for longest in _CONTEXT_TILES:
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


def _longest(side: int, grid: Grid, scales: tuple[float, float] | None) -> Size:
    """The size of a picture's largest tile, in tokens, if `side` tokens per side are decoded for it."""
    resampled = zip(grid.picture, decoded_grid(grid, scales).picture, strict=True)
    return Size(*(int(side * max(1.0, min(_ENLARGED, whole / made))) for whole, made in resampled))


def _check_bounds(grid: Grid, manifest: Manifest, which: str) -> None:
    low, high = manifest.shapes.latent
    if min(grid.cells) < low or max(grid.cells) > high:
        raise PlanError(f"{which}latent of {grid.cells} cells is out of bounds: the model takes {low} to {high} a side")
    if min(grid.scale) < LEAST_SCALE:
        least = Size(*(-(-side * grid.patch // round(1 / LEAST_SCALE)) for side in grid.cells))
        # Other programs write a factor as x2, which is a height here.
        hint = f", or did you mean {grid.picture.height}x?" if grid.picture.height <= _LARGEST_FACTOR else ""
        raise PlanError(
            f"{which}size {grid.picture} is too small for a latent of {grid.cells} cells: at least {least}{hint}"
        )


def _check_encodes(recipe: Recipe, stages: int) -> None:
    if ENCODE.name not in recipe.graphs:
        raise PlanError(f"{stages} stages need an encode graph, and the recipe {recipe.name!r} has none: use one stage")
    if recipe.shapes:
        # A picture cannot be padded to a shape without changing its latent.
        raise PlanError(f"{stages} stages need shapes of any size, and {recipe.name!r} has fixed ones: use one stage")


def _tile_tokens(tile: int, patch: int, manifest: Manifest, recipe: Recipe) -> int:
    largest = largest_tile(manifest, recipe) * patch
    if tile % patch or not patch <= tile <= largest:
        raise PlanError(f"tile of {tile} pixels is not possible: expected a multiple of {patch}, up to {largest}")
    return tile // patch
