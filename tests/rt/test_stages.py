"""Iterative extrapolation: a chain of stages must give what it gives when each picture is made whole."""

from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import infgen_rt
from infgen_rt.bundle.graphs import DECODE, ENCODE, PREFILL
from infgen_rt.errors import BundleError, Cancelled, DecodeError, OutputError, PlanError

from . import tiny
from .watching import Run, on_runs

LATENT = tiny.random_latent(7, 13)
pytestmark = pytest.mark.filterwarnings("ignore::infgen_rt.InfGenWarning")


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, int]]]:
    """Each graph that was run, and its input's size: cells, tokens or cells."""
    seen: list[tuple[str, int]] = []

    def on_prefill(run: Run, inputs: Mapping[str, Any], shared: bool) -> Any:
        seen.append(("prefill", inputs["latent"][0, 0].size))
        return run()

    def on_decode(run: Run, inputs: Mapping[str, Any], shared: bool) -> Any:
        seen.append(("decode", len(inputs["token_y"]) * len(inputs["token_x"])))
        return run()

    def on_encode(run: Run, inputs: Mapping[str, Any], shared: bool) -> Any:
        image = inputs["image"]
        assert image.min() >= 0 and image.max() <= 1
        seen.append(("encode", image[0, 0].size // 64))
        return run()

    for kind, instead in ((PREFILL, on_prefill), (DECODE, on_decode), (ENCODE, on_encode)):
        on_runs(monkeypatch, kind, instead)
    yield seen


@pytest.fixture
def picture(decoder: infgen_rt.Decoder) -> infgen_rt.Picture:
    """Seven cells by thirteen, to 26 by 14, to 399x219 pixels."""
    return decoder.picture(LATENT, (399, 219), stages=(2, 1.93), tile=40)


SIZES = [(208, 112), (399, 219)]


@pytest.mark.parametrize("tile", [None, 64, 24, 8])
@pytest.mark.parametrize(
    ("stages", "sizes"),
    [((2, 1.93), SIZES), ((1.5, 1.5), [(160, 88), (234, 126)]), ((2, 0.7, 2), [(208, 112), (144, 80), (291, 157)])],
)
def test_any_tiling_gives_what_whole_pictures_give(
    decoder: infgen_rt.Decoder, stages: tuple[float, ...], sizes: list[tuple[int, int]], tile: int | None
) -> None:
    picture = decoder.picture(LATENT, sizes[-1], stages=stages, tile=tile)
    assert [stage.grid.picture for stage in picture.plan.stages] == sizes
    expected = tiny.decode_stages(LATENT, sizes)
    assert np.abs(picture.read(dtype=np.float32) - expected).max() < 1e-4
    assert np.abs(picture.read().astype(int) - np.floor(expected * 255 + 0.5)).max() <= 1


@pytest.mark.parametrize("pixels", [0, 8])
def test_the_tiny_model_needs_encodes_halo(tmp_path: Path, pixels: int) -> None:
    """Without this the test above could pass on a runtime that encodes without a halo, or one that rounds it down."""
    with infgen_rt.open(tiny.write_bundle(tmp_path, encode_pixels=pixels)) as decoder:
        actual = decoder.picture(LATENT, SIZES[-1], stages=(2, 1.93), tile=24).read(dtype=np.float32)
    assert np.abs(actual - tiny.decode_stages(LATENT, SIZES)).max() > 1e-3


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_region_of_any_chain(decoder: infgen_rt.Decoder, data: st.DataObject) -> None:
    width, height = data.draw(st.integers(60, 430), "width"), data.draw(st.integers(40, 240), "height")
    most = data.draw(st.sampled_from([1.3, 1.7, 2.5]), "max_scale")
    tile = data.draw(st.sampled_from([None, 16, 64, 120]), "tile")
    picture = decoder.picture(LATENT, (width, height), max_scale=most, tile=tile)
    expected = tiny.decode_stages(LATENT, [stage.grid.picture for stage in picture.plan.stages])
    for _ in range(2):
        x, y = data.draw(st.integers(0, width - 1), "x"), data.draw(st.integers(0, height - 1), "y")
        across, down = data.draw(st.integers(1, width - x)), data.draw(st.integers(1, height - y))
        region = picture.read((x, y, across, down)).astype(int)
        assert np.abs(region - np.floor(expected[y : y + down, x : x + across] * 255 + 0.5)).max() <= 1


def test_stages_run_when_they_are_wanted_and_once(
    runs: list[tuple[str, int]], decoder: infgen_rt.Decoder, picture: infgen_rt.Picture
) -> None:
    assert not runs
    picture.read((0, 0, 8, 8))
    encodes = picture.plan.encodings[0].tiling.count
    assert Counter(kind for kind, _ in runs)["encode"] == encodes > 1
    assert [run for run in runs if run[0] == "prefill"] == [("prefill", 7 * 13), ("prefill", 14 * 26)]
    runs.clear()
    picture.read()
    assert {kind for kind, _ in runs} == {"decode"}


def test_no_more_of_an_earlier_picture_is_held_than_a_tile_needs(
    runs: list[tuple[str, int]], decoder: infgen_rt.Decoder
) -> None:
    picture = decoder.picture(tiny.random_latent(20, 30), "4x", stages=(2, 2), tile=40)
    (encoding,) = picture.plan.encodings
    picture.read((0, 0, 8, 8))
    sizes = [cells for kind, cells in runs if kind == "encode"]
    # Ten cells of a tile, and two on each side that 9 pixels reach into.
    assert encoding.window == (14, 14) and max(sizes) == 14 * 14 < 40 * 60 / 10
    assert len(sizes) == encoding.tiling.count == 24


def test_whole_tiles_of_an_earlier_stage_are_kept(runs: list[tuple[str, int]], picture: infgen_rt.Picture) -> None:
    first = picture.plan.stages[0]
    picture.read((0, 0, 8, 8))
    tokens = sum(size for kind, size in runs if kind == "decode")
    wanted = [first.grid.pixels_of(window) for _, window in picture.plan.encodings[0].windows()]
    assert sum(len(list(first.tiles(box))) for box in wanted) > first.count
    # Every part by itself, with the halo of 2 tokens that only the picture's edges cut.
    without = [
        first.grid.tokens_of(part).grow(2, first.grid.tokens.box).size.area
        for box in wanted
        for part in first.parts(box)
    ]
    assert tokens < sum(without)


def test_progress_counts_all_stages(picture: infgen_rt.Picture, tmp_path: Path) -> None:
    steps: list[infgen_rt.Progress] = []
    picture.save(tmp_path / "a.png", progress=steps.append)
    assert [step.done for step in steps] == list(range(1, steps[0].total + 1))
    kinds = [step.stage for step in steps]
    preparation = picture.plan.preparation
    assert kinds[0] == kinds[preparation - 1] == "prefill" and kinds.count("prefill") == 2
    assert kinds.count("reencode") == kinds[:preparation].count("reencode") == picture.plan.encodings[0].tiling.count
    assert kinds[1] == "decode" and kinds[-1] == "encode"
    again: list[infgen_rt.Progress] = []
    picture.save(tmp_path / "b.png", progress=again.append)
    assert [step.done for step in again] == list(range(preparation, again[0].total + 1))


def test_cancelling_stops_every_stage_after_the_step_it_is_at(
    runs: list[tuple[str, int]], decoder: infgen_rt.Decoder, tmp_path: Path
) -> None:
    total = decoder.picture(LATENT, (399, 219), stages=(2, 1.93), tile=40).plan.preparation
    for last in range(total):
        picture = decoder.picture(LATENT, (399, 219), stages=(2, 1.93), tile=40)
        steps: list[infgen_rt.Progress] = []
        runs.clear()
        with pytest.raises(Cancelled):
            picture.save(tmp_path / "a.png", progress=steps.append, cancel=lambda: len(steps) >= last)  # noqa: B023
        assert len(steps) == last
        # A step is one run of a graph at most, and tiles are read ahead, of this picture and the one before.
        workers = picture.plan.workers
        assert len(runs) <= last + (2 * workers if workers > 1 else 0) and not list(tmp_path.iterdir())
    # What was cancelled can be gone on with.
    expected = np.floor(tiny.decode_stages(LATENT, SIZES) * 255 + 0.5)
    assert np.abs(picture.read().astype(int) - expected).max() <= 1


def test_several_threads_share_the_work(runs: list[tuple[str, int]], picture: infgen_rt.Picture) -> None:
    expected = np.floor(tiny.decode_stages(LATENT, SIZES) * 255 + 0.5)
    boxes = [(x, y, 199, 109) for x in (0, 200) for y in (0, 110)] * 3
    with ThreadPoolExecutor(6) as pool:
        for (x, y, width, height), pixels in zip(boxes, pool.map(picture.read, boxes), strict=True):
            assert np.abs(pixels.astype(int) - expected[y : y + height, x : x + width]).max() <= 1
    counts = Counter(kind for kind, _ in runs)
    assert counts["encode"] == picture.plan.encodings[0].tiling.count and counts["prefill"] == 2


def test_a_step_that_failed_is_tried_again(picture: infgen_rt.Picture, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(run: Run, inputs: Mapping[str, Any], shared: bool) -> Any:
        raise DecodeError("out of luck")

    with monkeypatch.context() as patch:
        on_runs(patch, ENCODE, fail)
        with pytest.raises(DecodeError, match="out of luck"):
            picture.read()
    expected = np.floor(tiny.decode_stages(LATENT, SIZES) * 255 + 0.5)
    assert np.abs(picture.read().astype(int) - expected).max() <= 1


def test_a_plan_shows_each_stage(picture: infgen_rt.Picture) -> None:
    lines = str(picture.plan).splitlines()
    # How many at a time depends on the machine.
    assert lines[0].startswith("stage 1: latent 13x7 -> picture 208x112, 28 tiles of 32x32 pixels at most")
    assert lines[1] == "picture 1 encoded: latent of 26x14 cells in 6 tiles"
    assert lines[2].startswith("stage 2: latent 26x14 -> picture 399x219, ")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("scale", [5.05, 8])
def test_two_stages_are_the_default_above_5_times(decoder: infgen_rt.Decoder, scale: float) -> None:
    picture = decoder.picture(LATENT, scale, normalisation="model")
    chosen = decoder.picture(LATENT, picture.size, stages=(2, scale / 2), normalisation="model")
    sizes = [tuple(stage.grid.picture) for stage in picture.plan.stages]
    assert sizes == [(208, 112), picture.size] == [tuple(stage.grid.picture) for stage in chosen.plan.stages]
    assert np.abs(picture.read(dtype=np.float32) - tiny.decode_stages(LATENT, sizes)).max() < 1e-4


@pytest.mark.parametrize(("scale", "options"), [(5, {}), (8, {"max_scale": inf})])
def test_other_sizes_have_one_stage(decoder: infgen_rt.Decoder, scale: float, options: dict[str, Any]) -> None:
    with pytest.warns(infgen_rt.InfGenWarning, match="enlarged by Lanczos; 416x224 is within that$"):
        (stage,) = decoder.picture(LATENT, scale, normalisation="model", **options).plan.stages
    assert stage.decoded.picture == (416, 224)


def test_a_side_that_is_not_enlarged_twice_is_not_reduced_again(decoder: infgen_rt.Decoder) -> None:
    plan = decoder.picture(LATENT, (8 * 104, 56), normalisation="model").plan
    assert [stage.grid.picture for stage in plan.stages] == [(208, 56), (832, 56)]


def test_saving_for_which_two_stages_leave_too_little_memory_names_one_stage(bundle: Path, tmp_path: Path) -> None:
    with infgen_rt.open(bundle, memory="200MiB") as decoder:
        picture = decoder.picture(LATENT, "60x", normalisation="model")
        assert len(picture.plan.stages) == 2
        with pytest.raises(
            OutputError, match=r"needs at least .*, or decode in one stage \(max_scale=inf, --max-scale"
        ):
            picture.check_save(tmp_path / "a.avif")


def test_beyond_two_stages_the_picture_is_enlarged_by_lanczos(decoder: infgen_rt.Decoder) -> None:
    warned = pytest.warns(
        infgen_rt.InfGenWarning, match=r"stage 2: 1248x672 is 6\.00x6\.00 times 208x112; .*; 832x448 is within that$"
    )
    with warned:
        picture = decoder.picture(LATENT, 12, normalisation="model")
    expected = decoder.picture(LATENT, 8, stages=(2, 4), normalisation="model").read(dtype=np.float32)
    planes = (Image.fromarray(plane) for plane in np.ascontiguousarray(expected.transpose(2, 0, 1)))
    enlarged = np.stack([plane.resize(picture.size, Image.Resampling.LANCZOS) for plane in planes], -1)
    assert [stage.decoded.picture for stage in picture.plan.stages] == [(208, 112), (832, 448)]
    assert np.abs(picture.read(dtype=np.float32) - np.clip(enlarged, 0, 1)).max() < 1e-4


def least_memory(bundle: Path, size: str, **options: Any) -> str:
    with infgen_rt.open(bundle, memory="1MB") as decoder, pytest.raises(PlanError) as error:
        decoder.picture(LATENT, size, **options)
    return f"{float(str(error.value).split('at least ')[1].split()[0]) + 0.1}MiB"


def test_what_is_impossible_in_two_stages_is_made_in_one_with_a_warning(bundle: Path, tmp_path: Path) -> None:
    for options in ({"max_scale": inf}, {"stages": (2, 3)}):
        with infgen_rt.open(bundle, memory=least_memory(bundle, "6x", **options)) as decoder:
            # A warning that has been given for another picture does not hide this one.
            decoder.picture(LATENT, "5x")
            reason = "416x224 is within that; two stages would be better, but memory of .* is too small.*--memory"
            with pytest.warns(infgen_rt.InfGenWarning, match=reason):
                picture = decoder.picture(LATENT, "6x")
            # Two stages would fit in the second memory, but most of their work would be for halos.
            assert len(picture.plan.stages) == 1 and picture.read().any()
    graphs = {name: f"onnx-fp32/{name}.onnx" for name in tiny.GRAPHS if name != "encode"}
    recipe = {"name": "onnx-fp32", "target": "onnx", "precision": "fp32", "graphs": graphs, "memory": None}
    tiny.write_bundle(tmp_path)
    tiny.edit_manifest(tmp_path, recipes=[recipe])
    reason = "is within that; two stages would be better, but 2 stages need an encode graph, and .* has none$"
    warned = pytest.warns(infgen_rt.InfGenWarning, match=reason)
    with infgen_rt.open(tmp_path) as decoder, warned:
        assert len(decoder.picture(LATENT, "6x").plan.stages) == 1


def test_each_stage_is_warned_of(decoder: infgen_rt.Decoder) -> None:
    with pytest.warns(
        infgen_rt.InfGenWarning, match=r"^stage 2: 520x280 is 5.00x5.00 times 104x56; the model was"
    ) as r:
        decoder.picture(LATENT, "5x", stages=(1, 5), normalisation="model")
    assert len(r) == 1


def test_a_recipe_that_cannot_encode_is_refused(tmp_path: Path) -> None:
    tiny.write_bundle(tmp_path)
    graphs = {name: f"onnx-fp32/{name}.onnx" for name in tiny.GRAPHS if name != "encode"}
    recipe = {"name": "onnx-fp32", "target": "onnx", "precision": "fp32", "graphs": graphs, "memory": None}
    tiny.edit_manifest(tmp_path, recipes=[recipe])
    with infgen_rt.open(tmp_path) as decoder:
        assert decoder.picture(LATENT, "2x").read().any()
        with pytest.raises(PlanError, match="2 stages need an encode graph, and the recipe 'onnx-fp32' has none"):
            decoder.picture(LATENT, "4x", stages=(2, 2))


def test_encode_is_loaded_for_several_stages_only(tmp_path: Path) -> None:
    file = tiny.write_bundle(tmp_path) / "onnx-fp32" / "encode.onnx"
    file.write_bytes(bytes(len(file.read_bytes())))
    with infgen_rt.open(tmp_path) as decoder:
        assert decoder.picture(LATENT, "2x").read().any()
        with pytest.raises(BundleError, match=r"sha256 of onnx-fp32/encode.onnx"):
            decoder.picture(LATENT, "4x", stages=(2, 2))


def test_a_latent_between_stages_is_checked(decoder: infgen_rt.Decoder) -> None:
    with pytest.raises(PlanError, match="stage 2: latent of 130x70 cells is out of bounds: the model takes 1 to 128"):
        decoder.picture(LATENT, "20x", stages=(10, 2))
    with pytest.raises(PlanError, match=r"stage 2: size 104x56 is too small for a latent of 65x35 cells"):
        decoder.picture(LATENT, "1x", stages=(5, 0.2))


def test_memory_is_planned_for_the_stage_that_needs_most(bundle: Path) -> None:
    message = "too small: stage 2, a 416x224 picture from a 26x14 latent needs"
    with infgen_rt.open(bundle, memory="1MB") as decoder, pytest.raises(PlanError, match=message) as error:
        decoder.picture(LATENT, "4x", stages=(2, 2))
    needed = float(str(error.value).split("at least ")[1].split()[0]) + 0.1
    with infgen_rt.open(bundle, memory=f"{needed}MiB") as decoder:
        small = decoder.picture(LATENT, "4x", stages=(2, 2)).plan
    with infgen_rt.open(bundle) as decoder:
        large = decoder.picture(LATENT, "4x", stages=(2, 2)).plan
    assert small.memory <= small.budget and large.memory <= large.budget
    assert small.encodings[0].window.area < large.encodings[0].window.area
