import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import infgen_rt
from infgen_rt.backend.choice import Choice
from infgen_rt.backend.measuring import Speed
from infgen_rt.bundle.folder import Bundle
from infgen_rt.bundle.manifest import FixedShape, Manifest
from infgen_rt.common.memory import GIB, MIB
from infgen_rt.errors import InfGenWarning, PlanError
from infgen_rt.geometry.grid import Grid
from infgen_rt.geometry.shapes import Box, Size
from infgen_rt.geometry.tiling import LARGEST_SHARED_TILE, LARGEST_TILE, SMALLEST_TILE, HaloTiling, Tiling
from infgen_rt.nodes.encoding import encoding_costs
from infgen_rt.plan import estimates
from infgen_rt.plan.making import Limits, make_plan
from infgen_rt.plan.plan import Plan

from . import tiny

CELLS = Size(30, 20)
RUNS = Choice("any", "cpu", "CPU", "onnx-fp32", "fp32", None, None, "the only one that suits")


@pytest.fixture(scope="module")
def manifest(bundle: Path) -> Manifest:
    return Bundle.open(bundle).manifest


def plan(manifest: Manifest, picture: Size, budget: int = GIB, cells: Size = CELLS, tile: int | None = None) -> Plan:
    return make_plan((Grid(cells, picture, 8),), manifest, manifest.recipes[0], RUNS, Limits(budget, tile))


@given(width=st.integers(60, 9000), height=st.integers(40, 9000), budget=st.integers(8 * MIB, 200 * MIB))
def test_tiles_partition_the_picture_within_the_budget(
    manifest: Manifest, width: int, height: int, budget: int
) -> None:
    picture = Size(width, height)
    try:
        made = plan(manifest, picture, budget)
    except PlanError:
        with pytest.raises(PlanError):
            plan(manifest, picture, budget, tile=SMALLEST_TILE * 8)
        return
    stage = made.stages[0]
    tiles = list(stage.tiles(picture.box))
    assert made.memory <= budget
    assert len(tiles) == stage.count == len(set(tiles))
    assert sum(tile.size.area for tile in tiles) == picture.area
    assert all(tile.intersect(picture.box) == tile for tile in tiles)
    assert max(stage.tile) <= LARGEST_TILE
    for edges in (stage.tiling.columns, stage.tiling.rows):
        parts = [stop - start for start, stop in zip(edges, edges[1:], strict=False)]
        assert max(parts) - min(parts) <= 3


@given(st.data())
def test_tiles_of_a_region_are_those_it_touches(manifest: Manifest, data: st.DataObject) -> None:
    picture = Size(1001, 777)
    stage = plan(manifest, picture, tile=data.draw(st.sampled_from([8, 64, 200]))).stages[0]
    x, y = data.draw(st.integers(0, 1000)), data.draw(st.integers(0, 776))
    region = infgen_rt.Box(x, y, data.draw(st.integers(1, 1001 - x)), data.draw(st.integers(1, 777 - y)))
    touched = [tile for tile in stage.tiles(picture.box) if tile.intersect(region).size.area]
    assert list(stage.tiles(region)) == touched


def test_a_backend_may_want_larger_tiles_and_every_thread_gets_one(manifest: Manifest) -> None:
    def tiling(picture: Size, limits: Limits) -> Tiling:
        return make_plan((Grid(CELLS, picture, 8),), manifest, manifest.recipes[0], RUNS, limits).stages[0].tiling

    large = Size(4096, 4096)
    assert tiling(large, Limits(8 * GIB)).largest == Size(LARGEST_TILE, LARGEST_TILE)
    assert max(tiling(large, Limits(8 * GIB, workers=2)).largest) <= LARGEST_SHARED_TILE
    assert tiling(large, Limits(8 * GIB, largest=(96, 96))).largest == Size(86, 86)
    assert tiling(large, Limits(8 * GIB, workers=2, largest=(96, 96))).largest == Size(86, 86)
    # With tiles of 96 tokens, there would be one for two threads, and four for eight.
    assert tiling(Size(640, 640), Limits(8 * GIB, workers=2, largest=(96, 96))).count == 4
    assert tiling(Size(1024, 1024), Limits(8 * GIB, workers=8, largest=(96, 96))).count == 9
    assert tiling(Size(256, 256), Limits(8 * GIB, workers=8, largest=(96, 96))).count == 1


def test_one_tile_when_it_fits(manifest: Manifest) -> None:
    assert plan(manifest, Size(512, 512)).stages[0].count == 1
    assert plan(manifest, Size(520, 512)).stages[0].count == 2


def test_memory_shrinks_tiles_and_never_grows_with_them(manifest: Manifest) -> None:
    plans = [plan(manifest, Size(3000, 2000), budget * MIB) for budget in (200, 25, 15, 8)]
    areas = [made.stages[0].tile.area for made in plans]
    assert areas == sorted(areas, reverse=True) and areas[0] > areas[-1]


def test_a_budget_too_small_says_how_much_is_needed(manifest: Manifest) -> None:
    with pytest.raises(PlanError, match=r"memory of 1\.0 MiB is too small.*needs at least (\d+\.\d) MiB") as caught:
        plan(manifest, Size(3000, 2000), MIB)
    needed = float(str(caught.value).split("at least ")[1].split()[0])
    assert plan(manifest, Size(3000, 2000), int((needed + 0.1) * MIB)).stages[0].tile.width == SMALLEST_TILE


@pytest.mark.parametrize("tile", [-8, 0, 4, 100, 10**6])
def test_impossible_tiles_are_refused(manifest: Manifest, tile: int) -> None:
    with pytest.raises(PlanError, match="tile of"):
        plan(manifest, Size(300, 200), tile=tile)


def test_a_latent_out_of_bounds_is_refused(manifest: Manifest) -> None:
    with pytest.raises(PlanError, match="1 to 128 a side"):
        plan(manifest, Size(3000, 200), cells=Size(129, 20))


def test_a_picture_with_less_than_a_quarter_of_the_latents_size_is_refused(manifest: Manifest) -> None:
    with pytest.raises(PlanError, match="too small for a latent of 30x20 cells: at least 60x40"):
        plan(manifest, Size(59, 160))
    with pytest.raises(PlanError, match=r"at least 60x40, or did you mean 2x\?"):
        plan(manifest, Size(3, 2))  # of the size x2
    assert plan(manifest, Size(60, 40)).stages[0].count == 1


def test_plans_print_what_will_happen(manifest: Manifest) -> None:
    text = str(plan(manifest, Size(1001, 777), tile=256))
    assert "latent 30x20 -> picture 1001x777, 16 tiles of 256x208 pixels at most" in text
    assert "of 1.00 GiB" in text and "backend: any on CPU, fp32 (the only one that suits)" in text


def test_scales_outside_the_trained_range_and_stretches_are_warned_of(decoder: infgen_rt.Decoder) -> None:
    latent = tiny.random_latent(10, 10)
    with pytest.warns(InfGenWarning, match="trained for 0.5 to 4 times"):
        decoder.picture(latent, "5x")
    with pytest.warns(InfGenWarning, match=r"stretches .* by 1\.50 .*80x80 would keep"):
        decoder.picture(latent, (120, 80))


def test_the_size_that_would_keep_the_shape_is_possible_too(decoder: infgen_rt.Decoder) -> None:
    with pytest.warns(InfGenWarning, match=r"stretches .* by 1\.53 .*262144x131072 would keep"):
        decoder.picture(tiny.random_latent(4, 8), (262_144, 200_000))


@given(
    cells=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    scale=st.tuples(st.floats(0.3, 4.5), st.floats(0.3, 4.5)),
    data=st.data(),
)
def test_what_fits_a_tile_fits_the_recipe_s_shape(
    manifest: Manifest, cells: tuple[int, int], scale: tuple[float, float], data: st.DataObject
) -> None:
    """Halo and context included, for any region of a tile's size and wherever it lies."""
    shape = FixedShape((24, 32), (20, 40), (192, 256))
    recipe = replace(manifest.recipes[0], shapes=(shape,))
    picture = Size(*(max(8, round(8 * side * factor)) for side, factor in zip(cells, scale, strict=True)))
    grid = Grid(Size(*cells), picture, 8)
    try:
        stage = make_plan((grid,), manifest, recipe, RUNS, Limits(GIB)).stages[0]
    except PlanError as error:
        assume("is too small" not in str(error) and "hold no tile" not in str(error))
        raise
    for _ in range(3):
        side = [data.draw(st.integers(1, most)) for most in stage.tile]
        place = [data.draw(st.integers(0, whole - part)) for whole, part in zip(grid.tokens, side, strict=True)]
        tokens = Box(*place, *side).grow(manifest.halo.tokens, grid.tokens.box)
        context = grid.context_of(tokens, manifest.halo.cells)
        assert tokens.height <= shape.tokens[0] and tokens.width <= shape.tokens[1]
        assert context.height <= shape.context[0] and context.width <= shape.context[1]


@pytest.mark.parametrize(("scale", "tile"), [(1.0, 128), (0.3, None)])
def test_a_refusal_of_fixed_shapes_names_what_would_do(manifest: Manifest, scale: float, tile: int | None) -> None:
    recipe = replace(manifest.recipes[0], shapes=(FixedShape((40, 40), (12, 12), (320, 320)),))
    picture = Size(*(round(8 * side * scale) for side in (90, 60)))

    def planned(picture: Size, tile: int | None) -> Plan:
        return make_plan((Grid(Size(90, 60), picture, 8),), manifest, recipe, RUNS, Limits(GIB, tile))

    with pytest.raises(PlanError, match="hold no tile") as caught:
        planned(picture, tile)
    if tile is not None:
        found = re.search(r"pass a tile of (\d+) pixels or less \(--tile", str(caught.value))
        assert found is not None and planned(picture, int(found[1])).stages[0].count > 1
    else:
        found = re.search(r"pass a size of (\d+)x(\d+) or more \(--size", str(caught.value))
        assert found is not None and planned(Size(int(found[1]), int(found[2])), None)


def test_time_is_that_of_the_measured_speed(manifest: Manifest) -> None:
    grids, recipe = (Grid(CELLS, Size(240, 160), 8),), manifest.recipes[0]
    runs = replace(RUNS, speed=Speed(decode=50.0, context=10.0, encode=None))
    whole = make_plan(grids, manifest, recipe, runs, Limits(GIB))
    assert whole.seconds == pytest.approx(10 * 0.6 + 50 * 0.0384) and not whole.estimated
    assert "time: about 7.9 s for the model to compute the whole picture, and more to write it\n" in str(whole)
    # Tiles are decoded with halos.
    assert make_plan(grids, manifest, recipe, runs, Limits(GIB, 64)).seconds > 1.1 * whole.seconds
    # Encoding is a part of it, and here its speed is not known.
    chain = (Grid(CELLS, Size(480, 320), 8), Grid(Size(60, 40), Size(960, 640), 8))
    assert make_plan(chain, manifest, recipe, runs, Limits(GIB)).estimated
    known = replace(RUNS, speed=Speed(decode=50.0, context=10.0, encode=5.0))
    seconds = make_plan(chain, manifest, recipe, known, Limits(GIB)).seconds
    assert seconds == pytest.approx(10 * (0.6 + 2.4) + 5 * 2.4 + 50 * (0.1536 + 0.6144), rel=0.15)


def test_time_that_was_not_measured_is_estimated_and_marked(
    manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = plan(manifest, Size(240, 160))
    assert made.estimated and 0 < made.seconds < float("inf")
    monkeypatch.setattr(estimates, "rate", lambda: made.work)
    assert made.seconds == pytest.approx(1 / 0.7)
    assert "and more to write it, estimated for this CPU; measured by: infgen-rt devices" in str(made)


def test_the_work_is_that_of_the_contexts_the_tokens_and_the_encoded_cells(tmp_path: Path) -> None:
    """Contexts by what the manifest counted, the others by their parameters, and halos are a part of it."""
    manifest = Bundle.open(tiny.write_bundle(tmp_path, tiny.ENLARGEMENTS)).manifest
    parameters = {"prefill": 40, "refine": 60, "decode": 100, "encode": 200}
    manifest = replace(manifest, model=replace(manifest.model, parameters=parameters))

    def work(manifest: Manifest, *pictures: Size, tile: int | None = None) -> float:
        cells = (CELLS, *(Size(*(side // 8 for side in picture)) for picture in pictures))
        grids = [Grid(own, picture, 8) for own, picture in zip(cells, pictures, strict=False)]
        return make_plan(grids, manifest, manifest.recipes[0], RUNS, Limits(GIB, tile)).work

    small, large = Size(240, 160), Size(480, 320)
    assert work(manifest, small) == 600 * 1_000 + 8 * 100 * 600
    assert work(manifest, large) == 600 * 3_000 + 8 * 100 * 2_400
    assert work(manifest, small, tile=64) > work(manifest, small)
    encoded = work(manifest, large, large) - work(manifest, large) - (2_400 * 1_000 + 8 * 100 * 2_400)
    assert encoded == pytest.approx(8 * 200 * 2_400, rel=0.15)
    nothing = tuple(replace(each, work=0) for each in tiny.ENLARGEMENTS)
    assert work(replace(manifest, enlargements=nothing), small) == 600 * (40 + 60) + 8 * 100 * 600


def test_an_encoder_with_statistics_takes_more_steps_and_memory(manifest: Manifest) -> None:
    """What it encodes is kept for all cells, then gathered with a pass for each of two blocks, then made a latent."""
    halo = replace(manifest.halo, encode_latent=3)
    graphs = manifest.recipes[0].graphs
    graphs = graphs | dict.fromkeys(("encode_statistics", "encode_latent"), graphs["encode"])
    recipes = (replace(manifest.recipes[0], graphs=graphs),)
    pooled = replace(manifest, encoder_channels=100, encoder_moments=(2, 1), halo=halo, recipes=recipes)
    grids = [Grid(cells, Size(8 * cells.width, 8 * cells.height), 8) for cells in (CELLS, CELLS)]
    before, after = (make_plan(grids, each, each.recipes[0], RUNS, Limits(GIB, 64)) for each in (manifest, pooled))
    count = after.encodings[0].tiling.count
    assert count == before.encodings[0].tiling.count > 1
    assert after.preparation - before.preparation == (2 + 1) * count
    figures, encode = manifest.memory(manifest.recipes[0]), before.encodings[0].window.area
    made, costs = CELLS.area * 4 * 100, (*encoding_costs(after.encodings[0], before.stages[0], pooled, figures),)
    assert [cost.held for cost in costs] == [made, 0, CELLS.area * 4 * 32]
    encoding = (3 * 4 * 64 + figures.encode_per_cell) * encode
    assert costs[0].making == made + encoding
    window = HaloTiling(after.encodings[0].tiling, 3).window.area
    gathering, last = figures.encode_statistics_per_cell * window, figures.encode_latent_per_cell * window
    # The graphs before it keep their working memory.
    assert costs[1].making == encoding + gathering
    assert costs[2].making == encoding + gathering + costs[2].held + last and costs[2].alone


def test_several_stages_also_need_room_for_the_graphs_that_only_they_use(manifest: Manifest) -> None:
    (recipe,) = manifest.recipes
    assert recipe.memory is not None
    more = replace(recipe, memory=replace(recipe.memory, stages=7_000_000))
    grids = [Grid(cells, Size(8 * cells.width, 8 * cells.height), 8) for cells in (CELLS, CELLS)]
    for count, extra in ((1, 0), (2, 7_000_000)):
        before, after = (
            make_plan(grids[:count], manifest, each, RUNS, Limits(GIB, 64)).memory for each in (recipe, more)
        )
        assert after - before == extra


def test_a_larger_enlargement_takes_as_much_longer_as_it_has_more_to_multiply(tmp_path: Path) -> None:
    """What was measured is the smallest; where nothing was counted all are taken to be alike."""
    manifest = Bundle.open(tiny.write_bundle(tmp_path, tiny.ENLARGEMENTS)).manifest
    runs = replace(RUNS, speed=Speed(decode=0.0, context=10.0, encode=1.0))

    def seconds(manifest: Manifest, *scales: int) -> float | None:
        grids, cells = [], CELLS
        for scale in scales:
            after = Size(*(scale * side for side in cells))
            grids.append(Grid(cells, Size(*(8 * side for side in after)), 8))
            cells = after
        return make_plan(grids, manifest, manifest.recipes[0], runs, Limits(GIB)).seconds

    assert seconds(manifest, 1) == pytest.approx(10 * 0.6)
    assert seconds(manifest, 2) == seconds(manifest, 4) == pytest.approx(10 * 0.6 * 3)
    assert seconds(manifest, 1, 2) == pytest.approx(10 * 0.6 * (1 + 3), rel=0.2)
    for first, second in ((0, 3_000), (1_000, 0), (0, 0)):
        works = (replace(each, work=work) for each, work in zip(tiny.ENLARGEMENTS, (first, second), strict=True))
        assert seconds(replace(manifest, enlargements=tuple(works)), 4) == pytest.approx(10 * 0.6)
