"""Planning: from sizes and a memory budget to tiles, before anything runs."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from .bundle import Manifest, Recipe
from .choice import Choice
from .errors import PlanError
from .geometry import Box, Size, split
from .grid import Grid
from .memory import MIB, format_bytes

# Larger tiles fall out of the processor's caches; smaller ones decode mostly halo.
LARGEST_TILE = 64
SMALLEST_TILE = 8
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
        columns: edges of the tile columns, in tokens.
        rows: edges of the tile rows, in tokens.
    """

    grid: Grid
    columns: tuple[int, ...]
    rows: tuple[int, ...]

    @property
    def tile(self) -> Size:
        """The largest tile, in tokens."""
        return Size(_longest(self.columns), _longest(self.rows))

    @property
    def count(self) -> int:
        """How many tiles there are."""
        return (len(self.columns) - 1) * (len(self.rows) - 1)

    @property
    def bands(self) -> int:
        """Bytes of two rows of tiles, of 8 bits: a writer compresses one while the next is decoded."""
        return 2 * 3 * self.grid.picture.width * min(self.tile.height * self.grid.patch, self.grid.picture.height)

    def __str__(self) -> str:
        pixels = Size(*(side * self.grid.patch for side in self.tile))
        tiles = "1 tile" if self.count == 1 else f"{self.count} tiles of {pixels} pixels at most"
        return f"latent {self.grid.cells} -> picture {self.grid.picture}, {tiles}"

    def resized(self, picture: Size) -> "StagePlan":
        """The plan for the same latent at another size, with tiles that are no larger."""
        grid, tile = Grid(self.grid.cells, picture, self.grid.patch), self.tile
        return StagePlan(grid, split(grid.tokens.width, tile.width), split(grid.tokens.height, tile.height))

    def tiles(self, region: Box) -> Iterator[Box]:
        """The tiles that a region touches.

        Args:
            region: in pixels, inside the picture.

        Yields:
            Whole tiles in pixels, row by row.
        """
        tokens = self.grid.tokens_of(region)
        for top, bottom in _parts(self.rows, tokens.y, tokens.bottom):
            for left, right in _parts(self.columns, tokens.x, tokens.right):
                yield self.grid.pixels_of(Box(left, top, right - left, bottom - top))


@dataclass(frozen=True)
class Plan:
    """What a decode will do; print it to see.

    Attributes:
        stages: the decodes, first to last.
        runs: what runs it, in what precision and why.
        budget: bytes the decode may use.
        memory: bytes it is expected to use at most, output band and cache included.
        cache: bytes of `memory` that hold decoded tiles for reuse.
    """

    stages: tuple[StagePlan, ...]
    runs: Choice
    budget: int
    memory: int
    cache: int

    def __str__(self) -> str:
        lines = [f"stage {number}: {stage}" for number, stage in enumerate(self.stages, start=1)]
        lines.append(f"memory: about {format_bytes(self.memory)} of {format_bytes(self.budget)}")
        lines.append(f"backend: {self.runs}")
        return "\n".join(lines)


def make_plan(
    grid: Grid, manifest: Manifest, recipe: Recipe, *, runs: Choice, budget: int, tile: int | None = None
) -> Plan:
    """Plan one decode.

    Args:
        grid: the latent and the picture.
        manifest: the model's bounds and halos.
        recipe: the recipe that will run, for its memory figures and its shapes.
        runs: what will run it.
        budget: bytes that may be used.
        tile: the largest tile's side in pixels, a multiple of the patch; None to let the budget decide.

    Raises:
        PlanError: the latent or the picture is out of bounds, or the budget is too small.
    """
    _check_bounds(grid, manifest)
    if tile is None:
        # Fixed shapes may leave room for small tiles only.
        least = 1 if recipe.shapes else SMALLEST_TILE
        sides = range(min(LARGEST_TILE, _largest_tile(manifest, recipe)), least - 1, -1)
    else:
        sides = range(_tile_tokens(tile, grid.patch, manifest, recipe), 0, -1)[:1]
    memory = None
    for side in sides:
        stage = StagePlan(grid, split(grid.tokens.width, side), split(grid.tokens.height, side))
        if not _fits_a_shape(stage, manifest, recipe):
            continue
        memory = estimate_memory(stage, manifest, recipe)
        if memory <= budget:
            cache = min(CACHE, budget - memory, 3 * _FLOAT * grid.picture.area)
            return Plan((stage,), runs, budget, memory + cache, cache)
    if memory is None:
        raise PlanError(f"the fixed shapes of {recipe.name!r} hold no tile of a {grid.picture} picture at this scale")
    raise PlanError(
        f"memory of {format_bytes(budget)} is too small: a {grid.picture} picture from a {grid.cells} latent "
        f"needs at least {format_bytes(memory)}" + (f" with tiles of {tile} pixels" if tile else "")
    )


def estimate_memory(stage: StagePlan, manifest: Manifest, recipe: Recipe) -> int:
    """Bytes that a stage is expected to use at most, without its tile cache."""
    grid, tile, figures = stage.grid, stage.tile, manifest.memory(recipe)
    context = manifest.context_channels * _FLOAT * grid.cells.area
    prefill = figures.prefill_per_cell * grid.cells.area
    handling = _HANDLING * tile.area * grid.patch**2
    decode = context + figures.decode_per_token * _padded(stage, manifest).area + handling + stage.bands
    return figures.base + max(prefill, decode)


def _check_bounds(grid: Grid, manifest: Manifest) -> None:
    low, high = manifest.shapes.latent
    if min(grid.cells) < low or max(grid.cells) > high:
        raise PlanError(f"latent of {grid.cells} cells is out of bounds: the model takes {low} to {high} a side")
    if min(grid.scale) < LEAST_SCALE:
        least = Size(*(-(-side * grid.patch // round(1 / LEAST_SCALE)) for side in grid.cells))
        raise PlanError(f"size {grid.picture} is too small for a latent of {grid.cells} cells: at least {least}")


def _largest_tile(manifest: Manifest, recipe: Recipe) -> int:
    side = max((min(shape.tokens) for shape in recipe.shapes), default=manifest.shapes.tokens[1])
    return max(1, side - 2 * manifest.halo.tokens)


def _fits_a_shape(stage: StagePlan, manifest: Manifest, recipe: Recipe) -> bool:
    """Whether any region of a tile's size, halo and context included, fits a shape of the recipe, if it has any."""
    padded = _padded(stage, manifest)
    context = stage.grid.most_context(padded, manifest.halo.cells)
    return not recipe.shapes or any(
        all(
            need <= side
            for need, side in zip((*padded, *context), (*shape.tokens[::-1], *shape.context[::-1]), strict=True)
        )
        for shape in recipe.shapes
    )


def _padded(stage: StagePlan, manifest: Manifest) -> Size:
    """Tokens of the largest tile with its halo."""
    halo, tokens = manifest.halo.tokens, stage.grid.tokens
    return Size(min(stage.tile.width + 2 * halo, tokens.width), min(stage.tile.height + 2 * halo, tokens.height))


def _tile_tokens(tile: int, patch: int, manifest: Manifest, recipe: Recipe) -> int:
    largest = _largest_tile(manifest, recipe) * patch
    if tile % patch or not patch <= tile <= largest:
        raise PlanError(f"tile of {tile} pixels is not possible: expected a multiple of {patch}, up to {largest}")
    return tile // patch


def _longest(edges: tuple[int, ...]) -> int:
    return max(stop - start for start, stop in pairwise(edges))


def _parts(edges: tuple[int, ...], start: int, stop: int) -> Iterator[tuple[int, int]]:
    """The parts between edges that the half-open range start to stop touches."""
    return pairwise(edges[bisect_right(edges, start) - 1 : bisect_left(edges, stop) + 1])
