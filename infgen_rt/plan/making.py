"""Makes plans: chooses tiles for given sizes and a memory budget, before anything runs."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

from infgen_rt.backend.choice import Choice
from infgen_rt.bundle.graphs import DECODE_CELLS, ENCODE
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
from infgen_rt.nodes.context import ContextPlan
from infgen_rt.nodes.node import FLOAT
from infgen_rt.plan.contexts import LEAST_PART, Made, is_mostly_halo, ways
from infgen_rt.plan.costs import PLAIN, Chain, Writing, chain_costs, multiply_adds, peaks, preparation, seconds
from infgen_rt.plan.fixed import fits_a_shape, largest_tile, what_fits
from infgen_rt.plan.plan import LEAST_SCALE, Plan, StagePlan, decoded_grid

# If a decoded picture is enlarged by resampling, its tiles are enlarged by the same factor, but at most by this one.
_ENLARGED = 2

# Decoding whole cells takes 0.5 to 0.65 of the time per token, but with a larger halo. It is worth it up to this number
# of tokens, relative to those of tiles with a halo of tokens.
_WORTH = 1.6

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


@dataclass(frozen=True)
class Limits:
    """What a plan keeps to.

    Attributes:
        budget: the number of bytes that may be used.
        tile: the side of the largest tile in pixels, a multiple of the patch. None to let the budget decide. Between
            two stages, encoding uses tiles of twice this side.
        part: the side in cells of the largest part in which a context is computed. None to let the budget decide.
        workers: the best number of tiles to decode at the same time. Fewer are planned if there is too little memory.
        largest: the sides in tokens above which larger tiles are not faster: of a tile that is decoded alone, and of
            one that is decoded at the same time as others.
        scales: the smallest and largest scale that a stage decodes. Beyond them, its picture is resampled by Lanczos.
            None for any scale.
        spares: whether to raise `TooLittleMemory` instead of planning small tiles or parts of contexts, with which most
            of the work would be for halos. Tiles and parts that the user chooses may be small.
    """

    budget: int
    tile: int | None = None
    part: int | None = None
    workers: int = 1
    largest: tuple[int, int] = (LARGEST_TILE, LARGEST_SHARED_TILE)
    scales: tuple[float, float] | None = None
    spares: bool = False

    def allows(self, side: int, count: int) -> bool:
        """Whether tiles of this side in tokens are worth decoding, `count` at a time. Those that the user chose are."""
        if self.tile is not None:
            return True
        alone, shared = self.largest
        return side <= alone if count == 1 else SMALLEST_SHARED_TILE <= side <= shared


def make_plan(
    grids: Sequence[Grid],
    manifest: Manifest,
    recipe: Recipe,
    runs: Choice,
    limits: Limits,
    *,
    made: Made = lambda _: None,
    writing: Writing = PLAIN,
) -> Plan:
    """Plan one decode.

    Args:
        grids: the latent and the picture of each stage, first to last (see `geometry.stages.chain`).
        manifest: the model's manifest, for its bounds and halos.
        recipe: the recipe that will run, for its memory figures and its shapes.
        runs: how the recipe is run, with the speed if it was measured.
        limits: what the plan keeps to.
        made: the existing plans for contexts of the first latent.
        writing: the memory for writing the last picture.

    Raises:
        PlanError: a latent or a picture is out of bounds, the tile or the part is not possible, no tile fits the
            recipe's fixed shapes, or the recipe cannot encode for a second stage.
        TooLittleMemory: the budget is too small.
    """
    _check(grids, manifest, recipe, limits)
    search = _Search(grids, manifest, recipe, limits, writing)
    contexts, sides = search.contexts(made), search.sides()
    # The smallest tile comes first, because most of the time would otherwise be for budgets that are too small.
    least_needs = [search.needs(attempt) for attempt in search.attempts(contexts, (1,), sides[-1:])]
    if least_needs and all(max(each) > limits.budget for each in least_needs):
        raise _too_little(grids, limits, least_needs[-1])
    counts = tuple(dict.fromkeys((limits.workers, limits.workers // 2 or 1, 1)))
    for attempt in search.attempts(contexts, counts, sides):
        memory = max(search.needs(attempt))
        if memory <= limits.budget:
            return search.finished(attempt, memory, runs)
    pictures = " or ".join(str(grid.picture) for grid in grids)
    tokens = None if limits.tile is None else limits.tile // grids[0].patch
    remedy = what_fits(grids[0], tokens, manifest, recipe, limits.scales)
    raise PlanError(f"the fixed shapes of {recipe.name!r} hold no tile of a {pictures} picture: {remedy}")


def _area(stage: StagePlan) -> int:
    """The number of tokens that are decoded for a stage's largest tile."""
    return stage.windows.largest(stage.decoded_tile).area


@dataclass(frozen=True)
class _Attempt:
    """A plan whose memory is not known yet.

    Attributes:
        stages: the stages.
        encodings: the tiles for encoding between them.
        workers: the number of tiles that are decoded at the same time.
    """

    stages: tuple[StagePlan, ...]
    encodings: tuple[HaloTiling, ...]
    workers: int

    def keeping(self) -> "_Attempt":
        """The same with graphs that keep their working memory during the last stage."""
        *before, last = self.stages
        if last.context is None:
            return self
        return replace(self, stages=(*before, replace(last, context=replace(last.context, keeps=True))))


@dataclass(frozen=True)
class _Search:
    """The plans that are possible for one decode, and the memory that they need. See `make_plan` for the attributes."""

    grids: Sequence[Grid]
    manifest: Manifest
    recipe: Recipe
    limits: Limits
    writing: Writing

    @property
    def base(self) -> int:
        """The bytes of the loaded graphs."""
        return self.manifest.memory(self.recipe).loaded(len(self.grids))

    def contexts(self, made: Made) -> Sequence[tuple[ContextPlan | None, ...]]:
        """The ways of computing the contexts of all stages, in the order in which they should be tried."""
        grids, manifest, recipe, limits = self.grids, self.manifest, self.recipe, self.limits
        enlargements = [self._enlargement(grid) for grid in grids]
        # Contexts are planned for the graphs of one stage.
        room = limits.budget - (self.base - manifest.memory(recipe).base)
        writes = self.writing != PLAIN
        found = list(ways(grids, enlargements, manifest, recipe, room, limits.part, made, writes))
        if not limits.spares:
            return found
        # The first way has the largest parts for the budget.
        found = [way for way in found[:1] if limits.part is not None or not any(map(is_mostly_halo, way))]
        if not found:
            raise TooLittleMemory(f"memory of {format_bytes(limits.budget)} is too small for them (memory, --memory)")
        return found

    def sides(self) -> Sequence[int]:
        """The sides in tokens of the largest tiles to try, the largest first."""
        if self.limits.tile is not None:
            return (self.limits.tile // self.grids[0].patch,)
        # Fixed shapes may have room for very small tiles only.
        least = 1 if self.recipe.shapes else SMALLEST_SHARED_TILE if self.limits.spares else SMALLEST_TILE
        largest = min(max(self.limits.largest), largest_tile(self.manifest, self.recipe))
        return range(largest, min(least, largest) - 1, -1)

    def attempts(
        self, contexts: Sequence[tuple[ContextPlan | None, ...]], counts: Sequence[int], sides: Sequence[int]
    ) -> Iterator[_Attempt]:
        """All combinations of contexts, tiles at the same time and sides of tiles that the recipe can run."""
        chosen = self.limits.tile is not None
        for way, count, side in product(contexts, counts, sides):
            if not self.limits.allows(side, count):
                continue
            stages = tuple(self._stage(side, grid, context) for grid, context in zip(self.grids, way, strict=True))
            if not chosen and stages[-1].tiling.count < count and side > SMALLEST_SHARED_TILE:
                # With smaller tiles, there is one for every thread.
                continue
            if all(fits_a_shape(stage, self.manifest, self.recipe) for stage in stages):
                longest, halo = Size(ENCODED * side, ENCODED * side), self.manifest.encode_halo
                encodings = tuple(HaloTiling(Tiling.of(grid.cells, longest), halo) for grid in self.grids[1:])
                yield _Attempt(stages, encodings, count)

    def needs(self, attempt: _Attempt) -> Sequence[int]:
        """The bytes that each stage of an attempt needs at most."""
        return peaks(self._costs(attempt), self.base)

    def finished(self, attempt: _Attempt, memory: int, runs: Choice) -> Plan:
        """The plan of an attempt, with caches in what it leaves of the budget.

        Args:
            attempt: the attempt.
            memory: the bytes that it needs.
            runs: how the recipe is run.
        """
        budget, kept = self.limits.budget, 0
        if (keeping := attempt.keeping()) != attempt:
            more = max(self.needs(keeping))
            # The cache of tiles comes first.
            if more + 2 * CACHE <= budget:
                attempt, memory, kept = keeping, more, more - memory
        chain = self._costs(attempt)
        area = max(grid.picture.area for grid in self.grids)
        # The cache takes half of the remaining memory. The other half is a reserve for memory that is freed, but not
        # returned to the system.
        cache = min(CACHE, (budget - memory) // 2, 3 * FLOAT * area)
        return Plan(
            stages=attempt.stages,
            encodings=attempt.encodings,
            runs=runs,
            preparation=preparation(chain),
            budget=budget,
            memory=memory + cache,
            cache=cache,
            workers=attempt.workers,
            work=multiply_adds(chain, self.manifest),
            measured=seconds(chain, runs.speed),
            writing=self.writing.extra(attempt.stages[-1]),
            kept=kept,
        )

    def _enlargement(self, grid: Grid) -> Enlargement:
        return self.manifest.context_for(decoded_grid(grid, self.limits.scales).scale)

    def _stage(self, side: int, grid: Grid, context: ContextPlan | None) -> StagePlan:
        """A stage for which at most `side` tokens per side are decoded at a time."""
        scales, longest = self.limits.scales, Size(side, side)
        if self.limits.tile is None:
            resampled = zip(grid.picture, decoded_grid(grid, scales).picture, strict=True)
            longest = Size(*(int(side * max(1.0, min(_ENLARGED, whole / made))) for whole, made in resampled))
        enlargement = self._enlargement(grid)
        stage = StagePlan(grid, Tiling.of(grid.tokens, longest), enlargement, context, scales, self.manifest.halo)
        by_cells = replace(stage, by_cells=True)
        has = self.recipe.has(DECODE_CELLS, enlargement)
        return by_cells if has and _area(by_cells) <= _WORTH * _area(stage) else stage

    def _costs(self, attempt: _Attempt) -> Chain:
        stages, encodings, workers = attempt.stages, attempt.encodings, attempt.workers
        return chain_costs(stages, encodings, self.manifest, self.recipe, workers, self.writing)


def _too_little(grids: Sequence[Grid], limits: Limits, needs: Sequence[int]) -> TooLittleMemory:
    """The error for a budget that is below the needs of the stages with the smallest tiles."""
    number = needs.index(max(needs))
    which = f"stage {number + 1}, " if len(grids) > 1 else ""
    return TooLittleMemory(
        f"memory of {format_bytes(limits.budget)} is too small: {which}a {grids[number].picture} picture from a "
        f"{grids[number].cells} latent needs at least {enough(needs[number])} (memory, --memory)"
        + (f" with tiles of {limits.tile} pixels" if limits.tile else ""),
        needs[number],
    )


def _check(grids: Sequence[Grid], manifest: Manifest, recipe: Recipe, limits: Limits) -> None:
    """Raise a PlanError if the model cannot take the sizes, whatever the budget is."""
    for number, grid in enumerate(grids, start=1):
        _check_bounds(grid, manifest, f"stage {number}: " if len(grids) > 1 else "")
    if len(grids) > 1:
        _check_encodes(recipe, len(grids))
    if limits.part is not None and limits.part < LEAST_PART:
        raise PlanError(f"part of {limits.part} cells is not possible: expected {LEAST_PART} or more")
    if limits.tile is not None:
        _check_tile(limits.tile, grids[0].patch, manifest, recipe)


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
    if not recipe.has(ENCODE):
        raise PlanError(f"{stages} stages need an encode graph, and the recipe {recipe.name!r} has none: use one stage")
    if recipe.shapes:
        # A picture cannot be padded to a shape without changing its latent.
        raise PlanError(f"{stages} stages need shapes of any size, and {recipe.name!r} has fixed ones: use one stage")


def _check_tile(tile: int, patch: int, manifest: Manifest, recipe: Recipe) -> None:
    largest = largest_tile(manifest, recipe) * patch
    if tile % patch or not patch <= tile <= largest:
        raise PlanError(f"tile of {tile} pixels is not possible: expected a multiple of {patch}, up to {largest}")
