"""Models with several enlargements: a picture's scale chooses one, and all of the picture is made with it."""

import json
from collections.abc import Iterator
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import infgen_rt
from infgen_rt.backend.engine import Engine
from infgen_rt.bundle.folder import Bundle
from infgen_rt.bundle.graphs import Kind
from infgen_rt.bundle.manifest import Enlargement
from infgen_rt.bundle.several import read_models
from infgen_rt.common.pixels import FloatArray
from infgen_rt.errors import BundleError, DecodeError
from infgen_rt.geometry.shapes import Size

from . import tiny
from .test_bundle import changed

ONCE, FOUR = tiny.ENLARGEMENTS
LATENT = tiny.random_latent(7, 13)
LARGE = tiny.random_latent(37, 53)
NATIVE = (104, 56)
pytestmark = pytest.mark.filterwarnings("ignore::infgen_rt.InfGenWarning")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With enlargements by 1 and by 4; not to be changed."""
    return tiny.write_bundle(tmp_path_factory.mktemp("enlarged"), tiny.ENLARGEMENTS)


@pytest.fixture
def decoder(bundle: Path) -> Iterator[infgen_rt.Decoder]:
    with infgen_rt.open(bundle) as decoder:
        yield decoder


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Each graph that was run, by its name."""
    seen: list[str] = []
    run = Engine.run

    def on_run(engine: Engine, kind: Kind, inputs: Any, enlargement: Any = None, shared: bool = False) -> Any:
        seen.append(enlargement.graph(kind.name) if kind.enlarged else kind.name)
        return run(engine, kind, inputs, enlargement, shared)

    monkeypatch.setattr(Engine, "run", on_run)
    return seen


def loaded(decoder: infgen_rt.Decoder) -> set[str]:
    return {name.removeprefix("shared ") for name in decoder._engine._sessions}


def scaled(scale: float) -> tuple[int, int]:
    return round(NATIVE[0] * scale), round(NATIVE[1] * scale)


def error(pixels: FloatArray, expected: FloatArray) -> float:
    return float(np.abs(pixels - expected).max())


# Which one.


CHOSEN = {
    "the latent's own size": (NATIVE, ONCE),
    "smaller": (scaled(0.5), ONCE),
    "a pixel more": ((104, 57), FOUR),
    "half as large again": (scaled(1.5), FOUR),
    "the largest": (scaled(4), FOUR),
    "narrower and taller": ((60, 112), FOUR),
}


@pytest.mark.parametrize("case", CHOSEN)
def test_the_least_that_a_scale_is_not_beyond_is_taken(decoder: infgen_rt.Decoder, ran: list[str], case: str) -> None:
    size, chosen = CHOSEN[case]
    picture = decoder.picture(LATENT, size)
    assert picture.plan.stages[0].enlargement == chosen
    assert error(picture.read(dtype=np.float32), tiny.decode_whole(LATENT, size, chosen)) < 1e-5
    assert set(ran) == {"statistics", "prefill", "trunk", chosen.graph("refine"), chosen.graph("decode")}


def test_the_enlargements_give_different_pictures() -> None:
    """Without this the tests here could pass on a runtime that takes any of them."""
    once, four = (tiny.decode_whole(LATENT, scaled(2), each) for each in (ONCE, FOUR))
    assert np.abs(once - four).mean() > 0.02


def test_what_is_resampled_is_decoded_with_the_enlargement_of_what_is_decoded(
    decoder: infgen_rt.Decoder, ran: list[str]
) -> None:
    """Beyond the trained scales, on either side; what was asked for in stages is beyond the largest."""
    tenth = decoder.picture(LATENT, scaled(0.4))
    tenfold = decoder.picture(LATENT, scaled(10), max_scale=inf)
    assert [each.plan.stages[0].enlargement for each in (tenth, tenfold)] == [ONCE, FOUR]
    whole = tiny.decode_whole(LATENT, scaled(4), FOUR).transpose(2, 0, 1)
    planes = [Image.fromarray(plane).resize(tenfold.size, Image.Resampling.LANCZOS) for plane in whole.copy()]
    expected = np.clip(np.stack([np.asarray(plane) for plane in planes], -1), 0, 1)
    assert error(tenfold.read((200, 100, 90, 80), np.float32), expected[100:180, 200:290]) < 1e-4
    direct = decoder.picture(LATENT, scaled(6), stages=(6,))
    assert error(direct.read(dtype=np.float32), tiny.decode_whole(LATENT, scaled(6), FOUR)) < 1e-5
    assert "decode1" not in ran


def test_each_stage_has_its_own(decoder: infgen_rt.Decoder, ran: list[str]) -> None:
    encode = tiny.session(tiny.encode_graph())
    first = tiny.decode_whole(LATENT, NATIVE, ONCE).clip(0, 1).transpose(2, 0, 1)
    again = encode.run(None, {"image": np.ascontiguousarray(first[None])})[0][0]
    expected = tiny.decode_whole(again, scaled(3), FOUR)
    for tile in (None, 40):
        picture = decoder.picture(LATENT, scaled(3), stages=(1, 3), tile=tile)
        assert [stage.enlargement for stage in picture.plan.stages] == [ONCE, FOUR]
        assert error(picture.read(dtype=np.float32), expected) < 1e-4
    assert {"refine1", "decode1", "refine4", "decode4"} < set(ran)


def test_a_bundle_from_before_there_was_a_trunk(tmp_path: Path, ran: list[str]) -> None:
    bundle = tiny.write_bundle(tmp_path, tiny.ENLARGEMENTS, trunk=False)
    tiny.edit_manifest(bundle, format=4)
    with infgen_rt.open(bundle) as decoder:
        pixels = decoder.picture(LATENT, scaled(2), tile=24).read(dtype=np.float32)
    assert error(pixels, tiny.decode_whole(LATENT, scaled(2), FOUR, trunk=False)) < 1e-5
    assert set(ran) == {"statistics", "prefill", "refine4", "decode4"}


# Exact.


@pytest.mark.parametrize("size", [NATIVE, (52, 28), (101, 56), scaled(1.5), (333, 201), scaled(4)])
@pytest.mark.parametrize("tile", [None, 64, 24, 8])
def test_any_tiling_gives_the_picture_decoded_at_once(
    decoder: infgen_rt.Decoder, size: tuple[int, int], tile: int | None
) -> None:
    chosen = ONCE if size[0] <= NATIVE[0] else FOUR
    pixels = decoder.picture(LATENT, size, tile=tile).read(dtype=np.float32)
    assert error(pixels, tiny.decode_whole(LATENT, size, chosen)) < 1e-5


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_region_at_any_scale(decoder: infgen_rt.Decoder, data: st.DataObject) -> None:
    size = (data.draw(st.integers(52, 380), "width"), data.draw(st.integers(28, 224), "height"))
    picture = decoder.picture(LATENT, size, tile=data.draw(st.sampled_from([None, 16, 64, 120]), "tile"))
    chosen = ONCE if size[0] <= NATIVE[0] and size[1] <= NATIVE[1] else FOUR
    whole = tiny.decode_whole(LATENT, size, chosen)
    x, y = data.draw(st.integers(0, size[0] - 1), "x"), data.draw(st.integers(0, size[1] - 1), "y")
    width, height = data.draw(st.integers(1, size[0] - x)), data.draw(st.integers(1, size[1] - y))
    region = picture.read((x, y, width, height), dtype=np.float32)
    assert error(region, whole[y : y + height, x : x + width]) < 1e-5


@pytest.mark.parametrize(("size", "chosen"), [((424, 296), ONCE), ((640, 450), FOUR)])
def test_contexts_are_made_in_tiles_with_their_own_halo(
    bundle: Path, tmp_path: Path, size: tuple[int, int], chosen: Enlargement
) -> None:
    expected = tiny.decode_whole(LARGE, size, chosen)
    less = [vars(each) | {"halo": each.halo - 1} for each in tiny.ENLARGEMENTS]
    # Without halos that are too small, the test could pass on a runtime that has none, or more than it needs.
    blind, narrow = (tiny.write_bundle(tmp_path / name, tiny.ENLARGEMENTS) for name in ("blind", "narrow"))
    tiny.edit_manifest(blind, enlargements=less)
    halo = json.loads((narrow / "manifest.json").read_text())["halo"]
    tiny.edit_manifest(narrow, halo=halo | {"refine": tiny.TRUNK + 1})
    for path, whole, refined in (
        (bundle, chosen.halo, chosen.halo - tiny.TRUNK),
        (blind, chosen.halo - 1, chosen.halo - 1 - tiny.TRUNK),
        (narrow, chosen.halo, chosen.halo - tiny.TRUNK - 1),
    ):
        with infgen_rt.open(path, memory=8 * 10**6) as decoder:
            picture = decoder.picture(LARGE, size, tile=64)
            made = picture.plan.stages[0].context
            assert made is not None and made.tiles.tiling.count > 1
            assert (made.tiles.halo, made.refined.halo) == (whole, refined)
            found = error(picture.read(dtype=np.float32), expected)
            assert found < 1e-4 if path == bundle else found > 1e-3


# Several at once.


def test_other_sizes_have_their_own_context_of_the_same_features(decoder: infgen_rt.Decoder, ran: list[str]) -> None:
    picture = decoder.picture(LATENT, scaled(4))
    four = picture.read(dtype=np.float32)
    other = picture.at("1x")
    once = other.read(dtype=np.float32)
    assert error(four, tiny.decode_whole(LATENT, scaled(4), FOUR)) < 1e-5
    assert error(once, tiny.decode_whole(LATENT, NATIVE, ONCE)) < 1e-5
    # The latent is seen once, and with one tile a context each of them is made once, whatever is read in what order.
    third = picture.at("3x").read(dtype=np.float32)
    assert error(third, tiny.decode_whole(LATENT, scaled(3), FOUR)) < 1e-5
    assert np.array_equal(other.at("4x").read(dtype=np.float32), four)
    assert [ran.count(name) for name in ("statistics", "refine1", "refine4")] == [1, 1, 1]


def test_contexts_of_one_latent_share_what_memory_the_largest_was_planned_with(bundle: Path) -> None:
    """A preview and the picture after it keep to the budget together."""
    with infgen_rt.open(bundle, memory=8 * 10**6) as decoder:
        picture = decoder.picture(LARGE, (1060, 740), tile=64)
        other = picture.at("1x")
        context = picture._stage.contexts
        assert context is other._stage.contexts
        caches = [each.plan.stages[0].context.cache for each in (picture, other)]
        for each in (other, picture, other):
            each.read((0, 0, 300, 200))
            each.read()
            assert 0 < context._tiles._size < sum(caches)
            own = each.plan.stages[0].context.cache
            assert context._tiles._size <= max(*caches, own + each.plan.budget - each.plan.memory)
        assert error(other.read(dtype=np.float32), tiny.decode_whole(LARGE, (424, 296), ONCE)) < 1e-4


def test_the_smaller_sizes_of_a_pyramid_keep_their_pictures_enlargement(
    decoder: infgen_rt.Decoder, ran: list[str], tmp_path: Path
) -> None:
    """Its context is there: to make another for them would cost more than they do."""
    picture = decoder.picture(LATENT, scaled(4))
    for size in (scaled(2), NATIVE, (52, 28)):
        smaller = picture._stage.resized(Size(*size))
        assert smaller is not None and smaller.plan.enlargement == FOUR
        pixels = smaller.tiles.read(smaller.tiles.size.box, np.float32).transpose(1, 2, 0)
        assert error(pixels, tiny.decode_whole(LATENT, size, FOUR)) < 1e-5
    picture.save(tmp_path / "a.dzi", tile_format="png")
    levels = sorted((tmp_path / "a_files").iterdir(), key=lambda level: int(level.name))
    native = np.asarray(Image.open(levels[-3] / "0_0.png")).astype(int)
    assert native.shape == (56, 104, 3)
    assert np.abs(native - np.floor(255 * tiny.decode_whole(LATENT, NATIVE, FOUR) + 0.5)).max() <= 1
    assert set(ran) == {"statistics", "prefill", "trunk", "refine4", "decode4"}


def test_several_threads_decode_with_what_was_chosen(bundle: Path, ran: list[str]) -> None:
    with infgen_rt.open(bundle, "onnxruntime", threads=3, memory="1GB") as decoder:
        picture = decoder.picture(LARGE, (848, 592), tile=256)
        assert picture.plan.workers == 3
        assert error(picture.read(dtype=np.float32), tiny.decode_whole(LARGE, (848, 592), FOUR)) < 1e-5
        assert "shared decode4" in decoder._engine._sessions
    assert "decode1" not in ran


# Graphs.


def test_graphs_are_loaded_when_a_picture_wants_them(decoder: infgen_rt.Decoder) -> None:
    first = {"statistics", "prefill", "trunk"}
    assert loaded(decoder) == first
    picture = decoder.picture(LATENT)
    assert loaded(decoder) == first | {"refine1"}
    picture.read()
    assert loaded(decoder) == first | {"refine1", "decode1"}
    picture.at("2x")
    assert loaded(decoder) == first | {"refine1", "decode1", "refine4"}
    picture.at("2x").read()
    assert loaded(decoder) == first | {"refine1", "decode1", "refine4", "decode4"}


def test_a_damaged_graph_is_told_of_when_it_is_wanted(tmp_path: Path) -> None:
    file = tiny.write_bundle(tmp_path, tiny.ENLARGEMENTS) / "onnx-fp32" / "decode4.onnx"
    file.write_bytes(bytes(len(file.read_bytes())))
    with infgen_rt.open(tmp_path) as decoder:
        picture = decoder.picture(LATENT)
        for make in (lambda: decoder.picture(LATENT, "2x"), lambda: picture.at("2x")):
            with pytest.raises(BundleError, match=r"sha256 of onnx-fp32/decode4.onnx does not match"):
                make()
        assert error(picture.read(dtype=np.float32), tiny.decode_whole(LATENT, NATIVE, ONCE)) < 1e-5


def test_a_closed_decoder_says_so(bundle: Path) -> None:
    with infgen_rt.open(bundle) as decoder:
        picture = decoder.picture(LATENT)
        picture.read()
    for read in (picture.read, lambda: picture.at("2x")):
        with pytest.raises(DecodeError, match="the decoder is closed"):
            read()
    context = picture._stage.contexts
    assert context._features is None and context._latent is None and not context._tiles._tiles


# The manifest.


def test_a_manifest_survives_json(bundle: Path) -> None:
    manifest = Bundle.open(bundle).manifest
    assert manifest.contexts == manifest.enlargements == tiny.ENLARGEMENTS
    assert read_models(manifest.to_json()) == (manifest,)


def test_scales_are_compared_by_the_larger_side_and_with_some_room(bundle: Path) -> None:
    manifest = Bundle.open(bundle).manifest
    scales = {(1.0, 1.0): ONCE, (0.2, 0.9): ONCE, (1.0 + 1e-9, 1.0): ONCE, (1.001, 0.5): FOUR, (9.0, 1.0): FOUR}
    assert {scale: manifest.context_for(scale) for scale in scales} == scales


def files(*names: str) -> dict[str, str]:
    return {name: f"onnx-fp32/{name}.onnx" for name in names}


ALL = ("statistics", "prefill", "refine1", "refine4", "decode1", "decode4", "encode")
DAMAGED = {
    "no decode": (
        "recipes/0/graphs",
        files(*(n for n in ALL if n != "decode4")),
        "'onnx-fp32' lacks the graph 'decode4'",
    ),
    "no refine": (
        "recipes/0/graphs",
        files(*(n for n in ALL if n != "refine4")),
        "'onnx-fp32' lacks the graph 'refine4'",
    ),
    "none at all": ("recipes/0/graphs", files(*(n for n in ALL if "refine" not in n)), "lacks the graph 'refine1'"),
    "plain decode": ("recipes/0/graphs", files("prefill", "decode"), "lacks the graph 'decode1'"),
    "falling": ("enlargements", [vars(FOUR), vars(ONCE)], r"enlargements must have rising factors, not \[4, 1\]"),
    "twice the same": ("enlargements", [vars(ONCE)] * 2, r"rising factors, not \[1, 1\]"),
    "no factor": ("enlargements/0/factor", None, r"rising factors, not \[None, 4\]"),
    "nothing": ("enlargements/0/factor", 0, "lacks the graph 'decode0'"),
    "half a factor": ("enlargements/1/factor", 2.5, r"enlargements\[1\].factor is float"),
    "a missing field": ("enlargements", [{"factor": 1, "channels": 5}], r"enlargements\[0\] lacks 'halo'"),
    "no channels": ("enlargements/1/channels", 0, "above 0"),
    "a negative halo": ("enlargements/1/halo", -1, "negative"),
    "no features": ("feature_channels", None, "'onnx-fp32' refines, and 'feature_channels' is missing"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_manifests_are_refused(bundle: Path, name: str) -> None:
    path, value, text = DAMAGED[name]
    manifest = json.loads((bundle / "manifest.json").read_text())
    with pytest.raises(BundleError, match=text):
        read_models(json.dumps(changed(manifest, path, value)))
