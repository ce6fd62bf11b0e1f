"""Plans how a caller's picture is encoded into a latent."""

from infgen_rt.bundle.graphs import ENCODE
from infgen_rt.bundle.manifest import Manifest, Recipe
from infgen_rt.common.memory import format_bytes
from infgen_rt.errors import PlanError
from infgen_rt.geometry.shapes import Size
from infgen_rt.geometry.tiling import ENCODED, LARGEST_TILE, SMALLEST_TILE, HaloTiling, Tiling
from infgen_rt.nodes.encoding import encoding_costs
from infgen_rt.plan.costs import peaks


def plan_encoding(picture: Size, manifest: Manifest, recipe: Recipe, budget: int) -> HaloTiling:
    """Plan the tiles of a picture's latent.

    Args:
        picture: the picture's width and height in pixels.
        manifest: the model's manifest, for its bounds and the reach of encode.
        recipe: the recipe that will run, for its memory figures.
        budget: the number of bytes that may be used.

    Returns:
        The tiles of the latent in cells, which are as large as the budget allows.

    Raises:
        PlanError: the recipe cannot encode pictures, a side of the picture is not a whole number of cells or is out of
            bounds, or the budget is too small.
    """
    if not recipe.has(ENCODE):
        if able := [each.name for each in manifest.recipes if ENCODE.name in each.graphs]:
            raise PlanError(
                f"the recipe {recipe.name!r} for {manifest.latent_space} latents has no encode graph, but "
                f"{', '.join(able)} has: open the model with a backend for that recipe (infgen-rt devices lists them)"
            )
        raise PlanError(
            f"the recipe {recipe.name!r} for {manifest.latent_space} latents has no encode graph: encode the picture "
            "with the VAE of the diffusion model, or pass a bundle that has an encoder"
        )
    if recipe.shapes:
        raise PlanError(f"{recipe.name!r} has fixed shapes and cannot encode pictures: use another backend")
    if picture.width % manifest.patch or picture.height % manifest.patch:
        raise PlanError(
            f"a picture of {picture} is not whole cells: expected sides that are multiples of {manifest.patch} pixels"
        )
    cells = Size(*(side // manifest.patch for side in picture))
    low, high = manifest.shapes.latent
    if min(cells) < low or max(cells) > high:
        raise PlanError(
            f"a picture of {picture} has a latent of {cells} cells, and the model takes {low} to {high} a side"
        )
    figures = manifest.memory(recipe)
    base = figures.base + figures.stages  # those for pictures, and the encoder's
    for side in range(ENCODED * LARGEST_TILE, SMALLEST_TILE - 1, -SMALLEST_TILE):
        tiles = HaloTiling(Tiling.of(cells, Size(side, side)), manifest.encode_halo)
        (needed,) = peaks((tuple(encoding_costs(tiles, None, manifest, figures)),), base)
        if needed <= budget:
            return tiles
    raise PlanError(
        f"memory of {format_bytes(budget)} is too small: encoding a {picture} picture needs at least "
        f"{format_bytes(needed)}"
    )
