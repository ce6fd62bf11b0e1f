"""Tiles for graphs that take only the shapes of their recipe, as for Apple's Neural Engine."""

from collections.abc import Sequence
from math import ceil

from infgen_rt.bundle.manifest import Manifest, Recipe
from infgen_rt.geometry.grid import Grid
from infgen_rt.geometry.shapes import MAX_SIDE, Size
from infgen_rt.geometry.tiling import Tiling
from infgen_rt.plan.plan import StagePlan, decoded_grid

# Larger pictures are tried in steps of this factor. So many steps make the sides 16 times as long.
_STEP, _STEPS = 1.05, 57


def largest_tile(manifest: Manifest, recipe: Recipe) -> int:
    """The side of the largest tile in tokens, without its halo."""
    side = max((min(shape.tokens) for shape in recipe.shapes), default=manifest.shapes.tokens[1])
    return max(1, side - 2 * manifest.halo.tokens)


def fits_a_shape(stage: StagePlan, manifest: Manifest, recipe: Recipe) -> bool:
    """Whether every region of a tile's size, with its halo and context, fits one of the recipe's shapes.

    A recipe without shapes takes everything.
    """
    padded = stage.windows.largest(stage.decoded_tile)
    context = stage.decoded.most_context(padded, manifest.halo.cells)
    return not recipe.shapes or any(
        all(
            need <= side
            for need, side in zip((*padded, *context), (*shape.tokens[::-1], *shape.context[::-1]), strict=True)
        )
        for shape in recipe.shapes
    )


def what_fits(
    grid: Grid, tile: int | None, manifest: Manifest, recipe: Recipe, scales: tuple[float, float] | None
) -> str:
    """What a user can pass instead of a picture or a tile that fits none of the recipe's shapes, as part of a message.

    Args:
        grid: the picture.
        tile: the side of the largest tile in tokens, if the user has chosen it.
        manifest: the model's manifest.
        recipe: the recipe with the shapes.
        scales: as for `Limits`.
    """

    def fits(picture: Size, side: int) -> bool:
        larger = Grid(grid.cells, picture, grid.patch)
        enlargement = manifest.context_for(decoded_grid(larger, scales).scale)
        stage = StagePlan(larger, Tiling.of(larger.tokens, Size(side, side)), enlargement, None, scales, manifest.halo)
        return fits_a_shape(stage, manifest, recipe)

    for side in range((tile or 1) - 1, 0, -1):
        if fits(grid.picture, side):
            return f"pass a tile of {side * grid.patch} pixels or less (--tile {side * grid.patch})"
    for picture in _larger(grid.picture):
        if fits(picture, 1):
            return f"pass a size of {picture} or more (--size {picture}), or another backend or device"
    return "pass another backend or device (--backend, --device)"


def _larger(picture: Size) -> Sequence[Size]:
    sizes = (Size(*(ceil(side * _STEP**step) for side in picture)) for step in range(1, _STEPS))
    return [size for size in sizes if max(size) <= MAX_SIDE]
