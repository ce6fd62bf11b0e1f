"""Planning: from sizes and a memory budget to tiles, before anything runs."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import ceil

from infgen_rt.backend.choice import Choice
from infgen_rt.backend.measuring import Speed
from infgen_rt.bundle.manifest import Enlargement, Manifest, Recipe
from infgen_rt.common.memory import MIB, format_bytes
from infgen_rt.errors import PlanError
from infgen_rt.geometry.grid import Grid
from infgen_rt.geometry.shapes import Box, Size
from infgen_rt.geometry.tiling import (
    LARGEST_SHARED_TILE,
    LARGEST_TILE,
    SMALLEST_SHARED_TILE,
    SMALLEST_TILE,
    HaloTiling,
    Tiling,
)
from infgen_rt.nodes.context import ContextPlan
from infgen_rt.nodes.moments import Gathering
from infgen_rt.nodes.resample import SUPPORT

# Where what is decoded is enlarged, tiles are larger by as much, up to so many times.
_ENLARGED = 2
# Encode looks further than decode: the side of its tiles, over that of decode's.
_ENCODED = 2
# Sides in cells of the tiles in which a context is made: the smaller they are, the more of the work is halo.
_CONTEXT_TILES = (128, 96, 64, 48, 32, 24, 16, 8)
# Below this a picture has fewer pixels than a latent has detail, and its last token lies outside the latent.
LEAST_SCALE = 0.25
CACHE = 64 * MIB
_FLOAT = 4
# Bytes a pixel of a tile on its way out: decoded, kept, handed over and being rounded, three floats each.
_HANDLING = 4 * 3 * _FLOAT


@dataclass(frozen=True)
class StagePlan:
    """How one stage decodes one latent to one size.

    Attributes:
        grid: the stage's geometry.
        tiling: of its picture, in tokens.
        enlargement: what the context is refined for.
        context: how the latent's is made; None if prefill gives it whole.
        scales: the smallest and the largest scale that are decoded; beyond them, that picture is resampled. None for
            any.
    """

    grid: Grid
    tiling: Tiling
    enlargement: Enlargement
    context: ContextPlan | None = None
    scales: tuple[float, float] | None = None

    @property
    def decoded(self) -> Grid:
        """The geometry of what is decoded: the stage's own, or that of the picture that is resampled to it."""
        return Grid(self.grid.cells, _decoded(self.grid, self.scales), self.grid.patch)

    @property
    def tile(self) -> Size:
        """The largest tile, in tokens."""
        return self.tiling.largest

    @property
    def count(self) -> int:
        """How many tiles there are."""
        return self.tiling.count

    @property
    def bands(self) -> int:
        """Bytes of two rows of tiles, of 8 bits: a writer compresses one while the next is decoded."""
        return 2 * 3 * self.grid.picture.width * min(self.tile.height * self.grid.patch, self.grid.picture.height)

    def __str__(self) -> str:
        pixels = Size(*(side * self.grid.patch for side in self.tile))
        tiles = "1 tile" if self.count == 1 else f"{self.count} tiles of {pixels} pixels at most"
        way = f"-> {self.decoded.picture}, by Lanczos " if self.decoded != self.grid else ""
        made = self.context.tiles if self.context else None
        parts = f" (context of {made})" if made and made.tiling.count > 1 else ""
        return f"latent {self.grid.cells}{parts} {way}-> picture {self.grid.picture}, {tiles}"

    def resized(self, picture: Size) -> "StagePlan":
        """The plan for the same latent at another size, of the same context, with tiles that are no larger."""
        grid = Grid(self.grid.cells, picture, self.grid.patch)
        return replace(self, grid=grid, tiling=Tiling.of(grid.tokens, self.tile))

    def tiles(self, region: Box) -> Iterator[Box]:
        """The tiles that a region touches.

        Args:
            region: in pixels, inside the picture.

        Yields:
            Whole tiles in pixels, row by row.
        """
        for tile in self.tiling.touching(self.grid.tokens_of(region)):
            yield self.grid.pixels_of(tile)

    def fits_a_tile(self, box: Box) -> bool:
        """Whether a box of pixels can be decoded at once within the plan's memory."""
        tokens, tile = self.grid.tokens_of(box), self.tile
        return tokens.width <= tile.width and tokens.height <= tile.height

    def parts(self, box: Box) -> Iterator[Box]:
        """What a box of pixels is decoded in: itself if it fits in a tile, else cut at the tiles' edges, row by row."""
        if self.fits_a_tile(box):
            yield box
        else:
            yield from (tile.intersect(box) for tile in self.tiles(box))


@dataclass(frozen=True)
class Plan:
    """What a decode will do; print it to see.

    Attributes:
        stages: the decodes, first to last.
        encodings: how the picture of each stage but the last is encoded for the next.
        runs: what runs it, in what precision and why.
        budget: bytes the decode may use.
        memory: bytes it is expected to use at most, output band and cache included.
        cache: bytes of `memory` that hold decoded tiles for reuse.
        workers: tiles that are decoded at the same time.
        seconds: that computing all of the last picture is expected to take, without resampling and writing; None where
            the backend's speed was not measured.
    """

    stages: tuple[StagePlan, ...]
    encodings: tuple[HaloTiling, ...]
    runs: Choice
    budget: int
    memory: int
    cache: int
    workers: int = 1
    seconds: float | None = None

    @property
    def preparation(self) -> int:
        """Steps before the first pixel: see `context.Step`."""
        gatherings = (stage.context.gathering if stage.context else None for stage in self.stages)
        steps = sum(gathering.runs if gathering else 1 for gathering in gatherings)
        for stage, encoding in zip(self.stages, self.encodings, strict=False):
            for _, window in encoding.windows():
                steps += 1 + sum(1 for _ in stage.parts(stage.grid.pixels_of(window)))
        return steps

    def __str__(self) -> str:
        lines = []
        for number, stage in enumerate(self.stages, start=1):
            if number > 1:
                lines.append(f"picture {number - 1} encoded: latent of {self.encodings[number - 2]}")
            lines.append(f"stage {number}: {stage}" + (f", {self.workers} at a time" if self.workers > 1 else ""))
        lines.append(f"memory: about {format_bytes(self.memory)} of {format_bytes(self.budget)}")
        unknown = "not measured here: infgen-rt devices --measure"
        lines.append(f"time: {unknown if self.seconds is None else f'about {self.seconds:.1f} s of computing'}")
        lines.append(f"backend: {self.runs}")
        return "\n".join(lines)


def make_plan(
    grids: Sequence[Grid],
    manifest: Manifest,
    recipe: Recipe,
    *,
    runs: Choice,
    budget: int,
    tile: int | None = None,
    scales: tuple[float, float] | None = None,
    made: Callable[[Enlargement], ContextPlan | None] = lambda _: None,
    workers: int = 1,
) -> Plan:
    """Plan one decode.

    Args:
        grids: the latent and the picture of each stage, first to last (see `chain.chain`).
        manifest: the model's bounds and halos.
        recipe: the recipe that will run, for its memory figures and its shapes.
        runs: what will run it.
        budget: bytes that may be used.
        tile: the largest tile's side in pixels, a multiple of the patch; None to let the budget decide. Between two
            stages, tiles of twice the side are encoded.
        scales: the smallest and the largest scale that a stage decodes; what is beyond is resampled by Lanczos. None
            for any.
        made: how the first latent's context for an enlargement is made already, if it is.
        workers: tiles that are best decoded at the same time, if memory allows.

    Raises:
        PlanError: a latent or a picture is out of bounds, the recipe cannot encode for a second stage, or the budget
            is too small.
    """
    for number, grid in enumerate(grids, start=1):
        _check_bounds(grid, manifest, f"stage {number}: " if len(grids) > 1 else "")
    if len(grids) > 1:
        _check_encodes(recipe, len(grids))
    if tile is None:
        # Fixed shapes may leave room for small tiles only.
        least = 1 if recipe.shapes else SMALLEST_TILE
        sides = range(min(LARGEST_TILE, _largest_tile(manifest, recipe)), least - 1, -1)
    else:
        sides = range(_tile_tokens(tile, grids[0].patch, manifest, recipe), 0, -1)[:1]
    # With what the budget allows, then with the least there is.
    enlargements = [manifest.context_for(Grid(g.cells, _decoded(g, scales), g.patch).scale) for g in grids]
    ways: list[tuple[ContextPlan | None, ...]] = [
        tuple(
            (made(enlargement) if number == 0 else None)
            or plan_context(grid.cells, enlargement, manifest, recipe, amount)
            for number, (grid, enlargement) in enumerate(zip(grids, enlargements, strict=True))
        )
        for amount in (budget, 0)
    ]
    needs: tuple[int, ...] = ()
    for contexts, count, side in product(dict.fromkeys(ways), dict.fromkeys((workers, workers // 2 or 1, 1)), sides):
        if count > 1 and tile is None and not SMALLEST_SHARED_TILE <= side <= LARGEST_SHARED_TILE:
            continue
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
        if not all(_fits_a_shape(stage, manifest, recipe) for stage in stages):
            continue
        longest = Size(_ENCODED * side, _ENCODED * side)
        encodings = tuple(HaloTiling(Tiling.of(grid.cells, longest), manifest.encode_halo) for grid in grids[1:])
        needs = estimate_memory(stages, encodings, manifest, recipe, count)
        memory = max(needs)
        if memory <= budget:
            largest = max(grid.picture.area for grid in grids)
            # The other half of what is left is for what the system does not give back.
            cache = min(CACHE, (budget - memory) // 2, 3 * _FLOAT * largest)
            seconds = estimate_seconds(stages, encodings, manifest, runs.speed)
            return Plan(stages, encodings, runs, budget, memory + cache, cache, count, seconds)
    if not needs:
        pictures = " or ".join(str(grid.picture) for grid in grids)
        raise PlanError(f"the fixed shapes of {recipe.name!r} hold no tile of a {pictures} picture at this scale")
    number = needs.index(max(needs))
    which = f"stage {number + 1}, " if len(grids) > 1 else ""
    raise PlanError(
        f"memory of {format_bytes(budget)} is too small: {which}a {grids[number].picture} picture from a "
        f"{grids[number].cells} latent needs at least {format_bytes(needs[number])}"
        + (f" with tiles of {tile} pixels" if tile else "")
    )


def plan_context(
    cells: Size, enlargement: Enlargement, manifest: Manifest, recipe: Recipe, budget: int
) -> ContextPlan | None:
    """Plan how a latent's context is made.

    Args:
        cells: the latent's width and height.
        enlargement: what it is for.
        manifest: the model's halos and channels.
        recipe: the recipe that will run.
        budget: bytes that may be used. This takes up to half of what loaded graphs leave, or as little as it can.

    Returns:
        None if the recipe has no graphs for it: prefill's features of the whole latent are the context.
    """
    if recipe.graphs.keys().isdisjoint(("statistics", enlargement.graph("refine"))):
        return None
    figures = manifest.memory(recipe)
    room = (budget - figures.base) // 2
    gathering = None
    if "statistics" in recipe.graphs and manifest.moments:
        # At once if there is room for it: parts take a pass for each of prefill's blocks.
        for side in (max(cells), *_CONTEXT_TILES):
            parts = HaloTiling(Tiling.of(cells, Size(side, side)), manifest.halo.prefill)
            if figures.statistics_per_cell * parts.window.area <= room:
                break
        gathering = Gathering(parts, manifest.moments[0])
    for side in _CONTEXT_TILES:
        tiles = HaloTiling(Tiling.of(cells, Size(side, side)), enlargement.halo)
        tile = enlargement.channels * _FLOAT * tiles.tiling.largest.area
        # All of them, or for a picture that is decoded row by row those that two rows of tiles touch.
        for kept in sorted({tiles.tiling.count, min(tiles.tiling.count, 2 * tiles.tiling.across)}, reverse=True):
            plan = ContextPlan(tiles, kept * tile, gathering)
            if plan.cache + _working(plan, enlargement, manifest, recipe) <= room:
                return plan
    return plan


def _working(plan: ContextPlan, enlargement: Enlargement, manifest: Manifest, recipe: Recipe) -> int:
    """Bytes that making a tile of a context takes."""
    figures, window = manifest.memory(recipe), plan.tiles.window
    needs = [figures.refine_per_cell * window.area if enlargement.graph("refine") in recipe.graphs else 0]
    if plan.gathering is not None:
        seen = replace(plan.tiles, halo=plan.tiles.halo + manifest.halo.prefill).window
        needs.append(figures.prefill_per_cell * seen.area)
    return max(needs)


def estimate_memory(
    stages: Sequence[StagePlan],
    encodings: Sequence[HaloTiling],
    manifest: Manifest,
    recipe: Recipe,
    workers: int = 1,
) -> tuple[int, ...]:
    """Bytes that are expected to be used at most until each stage is done, from the one before it on; no tile caches.

    A stage is held until the next one's prefill is done. So many workers decode a tile each.
    """
    figures = manifest.memory(recipe)
    needs: list[int] = []
    held = working = 0
    for number, stage in enumerate(stages):
        cells, plan = stage.grid.cells.area, stage.context
        # The first is there twice: the caller's own, and as it was taken over.
        latent = (1 if number else 2) * manifest.latent_channels * _FLOAT * cells
        held += latent
        making = 0
        if number:
            window = encodings[number - 1].window.area
            making = held + (3 * _FLOAT * stage.grid.patch**2 + figures.encode_per_cell) * window
        if plan is not None and plan.gathering is not None:
            prefill, kept = figures.statistics_per_cell * plan.gathering.tiles.window.area, latent
        elif plan is not None:
            # Twice the features: a backend's arena holds on to what a run's result was in.
            prefill, kept = figures.prefill_per_cell * cells, 2 * (manifest.feature_channels or 0) * _FLOAT * cells
        else:
            prefill, kept = figures.prefill_per_cell * cells, stage.enlargement.channels * _FLOAT * cells
        # What decode works in is kept from run to run, and from stage to stage.
        count = min(workers, stage.count)
        working = max(working, count * figures.decode_per_token * _padded(stage, manifest).area)
        handling = count * _HANDLING * stage.tile.area * stage.grid.patch**2
        refining = _working(plan, stage.enlargement, manifest, recipe) if plan else 0
        decoding = kept + (plan.cache if plan else 0) + working + max(handling, refining)
        bands = stage.bands if stage is stages[-1] else 0
        needs.append(figures.base + max(making, held + prefill, decoding + bands))
        held = decoding
    return tuple(needs)


def estimate_seconds(
    stages: Sequence[StagePlan], encodings: Sequence[HaloTiling], manifest: Manifest, speed: Speed | None
) -> float | None:
    """Seconds that computing the last stage's picture is expected to take; None where something was not measured."""
    if speed is None or (encodings and speed.encode is None):
        return None
    made = (
        (stage.context.tiles.computed if stage.context else stage.grid.cells.area)
        * _effort(stage.enlargement, manifest)
        for stage in stages
    )
    decoded = (stage.count * _padded(stage, manifest).area * manifest.patch**2 for stage in stages)
    encoded = (speed.encode or 0.0) * sum(encoding.computed for encoding in encodings)
    return (speed.context * sum(made) + encoded) / 1e3 + speed.decode * sum(decoded) / 1e6


def _effort(enlargement: Enlargement, manifest: Manifest) -> float:
    """How much more there is to multiply for a context than for the smallest enlargement's, which is measured."""
    measured = manifest.contexts[0].work
    return enlargement.work / measured if enlargement.work and measured else 1.0


def _decoded(grid: Grid, scales: tuple[float, float] | None) -> Size:
    """The picture that is decoded for a grid's, which is resampled from it beyond some scales."""
    if scales is None:
        return grid.picture
    low, high = scales
    native = (grid.patch * side for side in grid.cells)
    sides = zip(grid.picture, native, strict=True)
    return Size(*(min(max(side, round(low * own)), round(high * own)) for side, own in sides))


def _longest(side: int, grid: Grid, scales: tuple[float, float] | None) -> Size:
    """Largest tile of a picture of which so many tokens a side are decoded."""
    resampled = zip(grid.picture, _decoded(grid, scales), strict=True)
    return Size(*(int(side * max(1.0, min(_ENLARGED, whole / made))) for whole, made in resampled))


def _check_bounds(grid: Grid, manifest: Manifest, which: str) -> None:
    low, high = manifest.shapes.latent
    if min(grid.cells) < low or max(grid.cells) > high:
        raise PlanError(f"{which}latent of {grid.cells} cells is out of bounds: the model takes {low} to {high} a side")
    if min(grid.scale) < LEAST_SCALE:
        least = Size(*(-(-side * grid.patch // round(1 / LEAST_SCALE)) for side in grid.cells))
        raise PlanError(f"{which}size {grid.picture} is too small for a latent of {grid.cells} cells: at least {least}")


def _check_encodes(recipe: Recipe, stages: int) -> None:
    if "encode" not in recipe.graphs:
        raise PlanError(f"{stages} stages need an encode graph, and the recipe {recipe.name!r} has none: use one stage")
    if recipe.shapes:
        # A picture cannot be padded to a shape without changing its latent.
        raise PlanError(f"{stages} stages need shapes of any size, and {recipe.name!r} has fixed ones: use one stage")


def _largest_tile(manifest: Manifest, recipe: Recipe) -> int:
    side = max((min(shape.tokens) for shape in recipe.shapes), default=manifest.shapes.tokens[1])
    return max(1, side - 2 * manifest.halo.tokens)


def _fits_a_shape(stage: StagePlan, manifest: Manifest, recipe: Recipe) -> bool:
    """Whether any region of a tile's size, halo and context included, fits a shape of the recipe, if it has any."""
    padded = _padded(stage, manifest)
    context = stage.decoded.most_context(padded, manifest.halo.cells)
    return not recipe.shapes or any(
        all(
            need <= side
            for need, side in zip((*padded, *context), (*shape.tokens[::-1], *shape.context[::-1]), strict=True)
        )
        for shape in recipe.shapes
    )


def _padded(stage: StagePlan, manifest: Manifest) -> Size:
    """Tokens that are decoded for the largest tile, its halo and what resampling needs included."""
    halo, decoded = manifest.halo.tokens, stage.decoded
    sides = []
    for tile, whole, made, tokens in zip(stage.tile, stage.grid.picture, decoded.picture, decoded.tokens, strict=True):
        if made != whole:
            tile = ceil((tile + 1) * made / whole + 2 * SUPPORT * max(1.0, made / whole) / decoded.patch) + 1
        sides.append(min(tile + 2 * halo, tokens))
    return Size(*sides)


def _tile_tokens(tile: int, patch: int, manifest: Manifest, recipe: Recipe) -> int:
    largest = _largest_tile(manifest, recipe) * patch
    if tile % patch or not patch <= tile <= largest:
        raise PlanError(f"tile of {tile} pixels is not possible: expected a multiple of {patch}, up to {largest}")
    return tile // patch
