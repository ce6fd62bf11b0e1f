"""Chains of stages, by which iterative extrapolation reaches a large size."""

from collections.abc import Iterable, Sequence
from itertools import accumulate
from math import ceil, isfinite, log, prod
from operator import mul

from infgen_rt.errors import PlanError
from infgen_rt.geometry.grid import Grid
from infgen_rt.geometry.shapes import Size, in_order

LEAST_MAX_SCALE = 1.1
"""The smallest `max_scale`. With less, a chain would have very many stages."""
# Rounding to whole cells and pixels may change a picture's sides by up to this factor, which is not visible.
_ROUNDING = 1.02


def chain(whole: Grid, stages: Sequence[float] | None = None, max_scale: float | None = None) -> tuple[Grid, ...]:
    """Divide the decode of a latent to a picture into stages.

    Every picture except the last consists of whole cells of the next latent. The last picture has exactly the requested
    size. Its stage therefore also corrects the rounding of the earlier ones, and stretches the picture if that was
    requested.

    Args:
        whole: the decode as one stage, which is the result if neither of the other arguments is given.
        stages: the scales of the stages, which multiply to the whole scale.
        max_scale: the largest scale of a stage, apart from the rounding of sizes to whole cells. The chain then has as
            few stages as possible, with equal scales. Infinity gives one stage.

    Returns:
        The grids of the stages, first to last. Every picture except the last has `patch` pixels per cell of the next
        latent, in both directions.

    Raises:
        PlanError: both `stages` and `max_scale` are given, one of them is not usable, or the scales do not multiply to
            the whole scale.
    """
    if stages is not None and max_scale is not None:
        raise PlanError("stages and max_scale exclude each other: expected one of them")
    if stages is not None:
        return _by_scales(whole, stages)
    if max_scale is not None:
        return _by_largest(whole, max_scale)
    return (whole,)


def two_stages(whole: Grid, first: float) -> tuple[Grid, ...]:
    """Divide the decode of a latent to a picture into two stages.

    Args:
        whole: the decode as one stage.
        first: the scale of the first stage. A side that the picture enlarges less is enlarged in this stage only.
    """
    down, across = (min(first, max(1.0, scale)) for scale in whole.scale)
    return _through(whole, ((across, down),))


def _by_scales(whole: Grid, stages: Sequence[float]) -> tuple[Grid, ...]:
    try:
        scales = [float(scale) for scale in in_order(stages)] if not isinstance(stages, str) else []
    except (TypeError, ValueError, OverflowError):
        scales = []
    product = prod(scales)
    # The product is checked too, because it may be 0 or infinite although each scale is usable by itself.
    if not scales or not all(isfinite(each) and each > 0 for each in (*scales, product)):
        raise PlanError(f"stages {stages!r} are not usable: expected their scales, numbers above 0, as (2, 2)")
    low, high = sorted(whole.scale)
    if not low / _ROUNDING <= product <= high * _ROUNDING:
        needed = f"{low:.4g}" if high - low < 5e-4 * low else f"{low:.4g} to {high:.4g}"
        last = (low * high) ** 0.5 * scales[-1] / product
        text = " x ".join(f"{scale:g}" for scale in scales)
        mismatch = f"stages {text} multiply to {product:.4g}, and {whole.picture} needs {needed}"
        if last > 1:
            raise PlanError(f"{mismatch}: make the last one {last:.4g}")
        # A last stage that reduces the picture is possible, and almost never what is wanted.
        raise PlanError(f"{mismatch}: pass a size of {product:.4g}x, or smaller scales")
    factors = list(accumulate(scales[:-1], mul))
    return _through(whole, zip(factors, factors, strict=True))


def _by_largest(whole: Grid, largest: float) -> tuple[Grid, ...]:
    if not largest >= LEAST_MAX_SCALE:
        raise PlanError(f"max_scale {largest:g} is not usable: expected {LEAST_MAX_SCALE:g} or more")
    down, across = whole.scale
    # Slightly less, so that a scale of 16 with at most 4 per stage gives two stages despite rounding.
    count = max(1, ceil(log(max(down, across)) / log(largest) - 1e-9))
    shares = [number / count for number in range(1, count)]
    return _through(whole, ((across**share, down**share) for share in shares))


def _through(whole: Grid, factors: Iterable[tuple[float, float]]) -> tuple[Grid, ...]:
    """The chain through latents whose width and height are the first one's times the given factors."""
    latents = [whole.cells]
    for pair in factors:
        # Half a cell is always rounded up. Python's `round` would round it to the next even number.
        sides = (max(1, int(side * factor + 0.5)) for side, factor in zip(whole.cells, pair, strict=True))
        latents.append(Size(*sides))
    pictures = [Size(*(side * whole.patch for side in cells)) for cells in latents[1:]]
    return tuple(
        Grid(cells, picture, whole.patch) for cells, picture in zip(latents, [*pictures, whole.picture], strict=True)
    )
