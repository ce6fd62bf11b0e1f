import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infgen_rt.geometry.grid import Grid
from infgen_rt.geometry.shapes import Box, Size

sides = st.integers(1, 40)


@st.composite
def grids(draw: st.DrawFn) -> Grid:
    cells = Size(draw(sides), draw(sides))
    picture = Size(*(max(1, round(side * 8 * draw(st.floats(0.25, 5)))) for side in cells))
    return Grid(cells, picture, 8)


@st.composite
def boxes(draw: st.DrawFn, within: Size) -> Box:
    x, y = draw(st.integers(0, within.width - 1)), draw(st.integers(0, within.height - 1))
    return Box(x, y, draw(st.integers(1, within.width - x)), draw(st.integers(1, within.height - y)))


@given(st.data())
def test_tokens_cover_a_box_and_nothing_is_left_over(data: st.DataObject) -> None:
    grid = data.draw(grids())
    box = data.draw(boxes(grid.picture))
    tokens = grid.tokens_of(box)
    assert tokens.intersect(grid.tokens.box) == tokens
    assert grid.pixels_of(tokens).intersect(box) == box
    assert tokens.x * 8 + 8 > box.x and (tokens.right - 1) * 8 < box.right
    assert tokens.y * 8 + 8 > box.y and (tokens.bottom - 1) * 8 < box.bottom


@given(st.data(), st.floats(0, 4))
def test_context_has_every_cell_within_the_radius_and_the_bilinear_neighbours(
    data: st.DataObject, radius: float
) -> None:
    grid = data.draw(grids())
    tokens = data.draw(boxes(grid.tokens))
    crop = grid.context_of(tokens, radius)
    assert crop.size.area > 0 and crop.intersect(grid.cells.box) == crop
    for start, stop, low, high, cells, picture in (
        (tokens.x, tokens.right, crop.x, crop.right, grid.cells.width, grid.picture.width),
        (tokens.y, tokens.bottom, crop.y, crop.bottom, grid.cells.height, grid.picture.height),
    ):
        for token in range(start, stop):
            centre = (token + 0.5) * 8 * cells / picture
            near = {cell for cell in range(cells) if abs(cell + 0.5 - centre) <= radius}
            # Both neighbours of anything that lies under the token.
            under = [(token + share) * 8 * cells / picture for share in (0.0, 0.5, 1.0)]
            places = [int(np.floor(place - 0.5)) + one for place in under for one in (0, 1)]
            assert near | {min(max(place, 0), cells - 1) for place in places} <= set(range(low, high))


def test_whole_context_when_the_model_looks_everywhere() -> None:
    assert Grid(Size(30, 20), Size(240, 160), 8).context_of(Box(3, 3, 1, 1), None) == (0, 0, 30, 20)


def test_coordinates() -> None:
    grid = Grid(Size(30, 20), Size(1001, 777), 8)
    assert grid.tokens == (126, 98)
    assert grid.scale == (777 / 160, 1001 / 240)
    y, x = grid.token_centres(Box(125, 7, 1, 2))
    assert y.dtype == x.dtype == np.float32
    assert y == pytest.approx([7.5 * 8 * 20 / 777, 8.5 * 8 * 20 / 777], rel=1e-7)
    assert x == pytest.approx([125.5 * 8 * 30 / 1001], rel=1e-7)
    key_y, key_x = grid.cell_centres(Box(4, 2, 3, 1))
    assert key_y.tolist() == [2.5] and key_x.tolist() == [4.5, 5.5, 6.5]


def test_a_tile_is_fed_the_coordinates_of_the_whole_picture() -> None:
    grid = Grid(Size(97, 61), Size(7001, 5003), 8)
    whole_y, whole_x = grid.token_centres(grid.tokens.box)
    tile_y, tile_x = grid.token_centres(Box(500, 400, 64, 64))
    assert np.array_equal(tile_y, whole_y[400:464]) and np.array_equal(tile_x, whole_x[500:564])
