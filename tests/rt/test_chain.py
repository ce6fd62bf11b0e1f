from itertools import pairwise
from math import ceil, inf, log

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infgen_rt.errors import PlanError
from infgen_rt.geometry.grid import Grid
from infgen_rt.geometry.shapes import Size
from infgen_rt.geometry.stages import chain

SIDE = st.integers(1, 300)


def check_links(whole: Grid, grids: tuple[Grid, ...]) -> None:
    """From the latent to exactly the picture, and every picture between is whole cells of the next latent."""
    assert grids[0].cells == whole.cells and grids[-1].picture == whole.picture
    for before, after in pairwise(grids):
        assert before.picture == tuple(8 * side for side in after.cells) and before.tokens == after.cells


@given(SIDE, SIDE, st.lists(st.floats(0.5, 4), min_size=1, max_size=4), st.floats(0.99, 1.01))
def test_scales_multiply_to_the_size(width: int, height: int, scales: list[float], rounding: float) -> None:
    product = 1.0
    for scale in scales:
        product *= scale
    picture = Size(*(max(1, round(8 * side * product * rounding)) for side in (width, height)))
    whole = Grid(Size(width, height), picture, 8)
    try:
        grids = chain(whole, scales)
    except PlanError:
        # So small that a whole pixel is more than rounding.
        assert min(picture) < 100
        return
    check_links(whole, grids)
    assert len(grids) == len(scales)
    product = 1.0
    for scale, grid in zip(scales, grids[:-1], strict=False):
        product *= scale
        for side, cells in zip((width, height), grid.tokens, strict=True):
            assert abs(cells - max(1, side * product)) <= 0.51


@given(SIDE, SIDE, st.floats(0.3, 40), st.floats(0.3, 40), st.floats(1.2, 8))
def test_max_scale_takes_the_fewest_stages(width: int, height: int, across: float, down: float, most: float) -> None:
    picture = Size(max(1, round(8 * width * across)), max(1, round(8 * height * down)))
    whole = Grid(Size(width, height), picture, 8)
    grids = chain(whole, max_scale=most)
    check_links(whole, grids)
    assert len(grids) == max(1, ceil(log(max(whole.scale)) / log(most) - 1e-9))
    for axis in (0, 1):
        total = whole.scale[1 - axis]
        for number, grid in enumerate(grids[:-1], start=1):
            exact = whole.cells[axis] * total ** (number / len(grids))
            assert abs(grid.tokens[axis] - max(1, exact)) <= 0.51


def test_without_either_there_is_one_stage() -> None:
    whole = Grid(Size(10, 10), Size(640, 640), 8)
    assert chain(whole) == chain(whole, (8,)) == chain(whole, max_scale=8) == chain(whole, max_scale=inf) == (whole,)
    assert [grid.scale for grid in chain(Grid(Size(7, 9), Size(896, 1152), 8), max_scale=4)] == [(4, 4), (4, 4)]


def test_the_last_stage_takes_a_stretch() -> None:
    whole = Grid(Size(10, 10), Size(480, 320), 8)
    assert [grid.scale for grid in chain(whole, (2, 2.5))] == [(2, 2), (2, 3)]


@pytest.mark.parametrize(
    ("stages", "max_scale", "text"),
    [
        ((2, 2), None, "2 x 2 multiply to 4, and 640x512 needs 8: make the last one 4"),
        ((2, 3, 2), None, "multiply to 12, and 640x512 needs 8: make the last one 1.333"),
        ((4, 4), None, "multiply to 16, and 640x512 needs 8: make the last one 2"),
        ((4, 4, 4), None, "multiply to 64, and 640x512 needs 8: pass a size of 64x, or smaller scales"),
        ((), None, "numbers above 0"),
        ((2, 0), None, "numbers above 0"),
        ((-2, -4), None, "numbers above 0"),
        ((2, float("nan")), None, "numbers above 0"),
        (4, None, "numbers above 0"),
        ("ab", None, "numbers above 0"),
        (None, 1.0, "expected 1.1 or more"),
        (None, float("nan"), "expected 1.1 or more"),
        ((8,), 4.0, "exclude each other"),
    ],
)
def test_impossible_chains_are_refused(stages: tuple[float, ...] | None, max_scale: float | None, text: str) -> None:
    with pytest.raises(PlanError, match=text):
        chain(Grid(Size(10, 8), Size(640, 512), 8), stages, max_scale)
