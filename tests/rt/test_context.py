"""Contexts: made a tile at a time where they are needed, and what the whole latent at once gives."""

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import infgen_rt
from infgen_rt.bundle.folder import Bundle
from infgen_rt.bundle.graphs import REFINE
from infgen_rt.bundle.manifest import Enlargement
from infgen_rt.common.memory import GIB, MIB
from infgen_rt.geometry.shapes import Box, Size
from infgen_rt.geometry.tiling import HaloTiling, Tiling
from infgen_rt.nodes.context import ContextPlan, Contexts
from infgen_rt.nodes.latents import Given
from infgen_rt.nodes.moments import Gathering, Moments, merged
from infgen_rt.plan.contexts import plan_context
from infgen_rt.plan.making import CACHE
from infgen_runtimes.onnxruntime import Session

from . import tiny
from .watching import Run, on_runs

LATENT = tiny.random_latent(37, 53)
pytestmark = pytest.mark.filterwarnings("ignore::infgen_rt.InfGenWarning")


@pytest.fixture
def refined(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, int]]]:
    """Rows and columns of each piece of features that was refined."""
    seen: list[tuple[int, int]] = []

    def on_refine(run: Run, inputs: Mapping[str, Any], shared: bool) -> Any:
        seen.append(inputs["features"].shape[2:])
        return run()

    on_runs(monkeypatch, REFINE, on_refine)
    yield seen


def tiles_of(side: int, halo: int) -> HaloTiling:
    return HaloTiling(Tiling.of(Size(53, 37), Size(side, side)), halo)


def context_of(
    decoder: infgen_rt.Decoder, side: int, halo: int = tiny.REFINE, cache: int = MIB, parts: int = 60
) -> Contexts:
    context = Contexts(Given(LATENT, decoder._engine), decoder._engine)
    gathering = Gathering(tiles_of(parts, tiny.PREFILL), tiny.BLOCKS)
    context.plan(ContextPlan(tiles_of(side, halo), cache, gathering), tiny.ONE)
    return context


def cut(context: Contexts, box: Box) -> np.ndarray:
    return context.of(tiny.ONE).read(box)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_part_is_that_of_the_whole(decoder: infgen_rt.Decoder, data: st.DataObject) -> None:
    whole = decoder._engine.context(LATENT, tiny.ONE)
    sides, caches = st.integers(1, 60), st.sampled_from([0, MIB])
    parts = data.draw(st.integers(5, 60), "parts")
    context = context_of(decoder, data.draw(sides, "side"), cache=data.draw(caches), parts=parts)
    for _ in range(3):
        x, y = data.draw(st.integers(0, 52), "x"), data.draw(st.integers(0, 36), "y")
        box = Box(x, y, data.draw(st.integers(1, 53 - x)), data.draw(st.integers(1, 37 - y)))
        assert np.abs(cut(context, box) - whole[:, :, *box.slices]).max() < 1e-5


def test_the_tiny_model_needs_refines_halo(decoder: infgen_rt.Decoder) -> None:
    """Without this the test above could pass on a runtime that refines without a halo."""
    whole = decoder._engine.context(LATENT, tiny.ONE)
    part = cut(context_of(decoder, 16, tiny.REFINE - 1), Box(0, 0, 53, 37))
    assert np.abs(part - whole).max() > 1e-3


@pytest.mark.parametrize("halo", ["prefill", "refine"])
def test_the_tiny_model_needs_prefills_halo(tmp_path: Path, halo: str) -> None:
    """In tiles and in statistics, or the test above could pass without it."""
    opened = infgen_rt.open(tiny.write_bundle(tmp_path, prefill=tiny.PREFILL - 1))
    with opened as decoder:
        whole = cut(context_of(decoder, 60), Box(0, 0, 53, 37))
        if halo == "refine":
            context = context_of(decoder, 16)
        else:
            context = Contexts(Given(LATENT, decoder._engine), decoder._engine)
            gathering = Gathering(tiles_of(16, 1), tiny.BLOCKS)
            context.plan(ContextPlan(tiles_of(60, tiny.REFINE), MIB, gathering), tiny.ONE)
        assert np.abs(cut(context, Box(0, 0, 53, 37)) - whole).max() > 1e-3


def test_statistics_of_a_large_latent_take_a_pass_a_block(decoder: infgen_rt.Decoder) -> None:
    gathering = Gathering(tiles_of(16, tiny.PREFILL), tiny.BLOCKS)
    at_once = Gathering(tiles_of(60, tiny.PREFILL), tiny.BLOCKS)
    assert gathering.runs == 2 * 12 and at_once.runs == 1
    once, whole = (Moments(Given(LATENT, decoder._engine), each, decoder._engine) for each in (gathering, at_once))
    # Between two runs it can be stopped.
    assert list(once.prepare()) == ["prefill"] * (gathering.runs - 1) and list(whole.prepare()) == []
    assert np.allclose(*(each.read(each.size.box) for each in (once, whole)), atol=1e-6)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=6), st.integers(0, 2**32 - 1))
def test_moments_of_parts_are_merged_to_those_of_the_whole(counts: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    parts = [rng.normal(rng.normal(0, 10), 2, (3, count)).astype(np.float32) for count in counts]
    whole = np.concatenate(parts, axis=1).astype(np.float64)
    found = merged([np.stack([part.mean(1), part.var(1)]) for part in parts], counts)
    assert np.allclose(found, np.stack([whole.mean(1), whole.var(1)]), rtol=1e-4, atol=1e-4)


def test_only_what_is_needed_is_refined_and_once(decoder: infgen_rt.Decoder, refined: list[tuple[int, int]]) -> None:
    context = context_of(decoder, 16)
    cut(context, Box(3, 2, 5, 5))
    assert refined == [(14 + 3, 14 + 3)]  # the first of 3 by 4 tiles, with a halo on two sides
    cut(context, Box(0, 0, 13, 12))
    assert len(refined) == 1
    cut(context, Box(0, 0, 53, 37))
    assert len(refined) == 12


def test_tiles_that_are_not_kept_are_made_again(decoder: infgen_rt.Decoder, refined: list[tuple[int, int]]) -> None:
    context = context_of(decoder, 16, cache=0)
    for _ in range(2):
        cut(context, Box(3, 2, 5, 5))
    assert len(refined) == 2


def test_threads_share_the_work(decoder: infgen_rt.Decoder, refined: list[tuple[int, int]]) -> None:
    context, start = context_of(decoder, 16), threading.Barrier(4)

    def read(_: int) -> np.ndarray:
        start.wait()
        return cut(context, Box(0, 0, 53, 37))

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(read, range(4)))
    assert len(refined) == 12 and all(np.array_equal(result, results[0]) for result in results)


def test_a_picture_in_little_memory_is_the_same_picture(bundle: Path, refined: list[tuple[int, int]]) -> None:
    size = (640, 450)
    expected = tiny.decode_whole(LATENT, size)
    with infgen_rt.open(bundle, memory=8 * 10**6) as decoder:
        picture = decoder.picture(LATENT, size, tile=64)
        assert "context of 53x37 cells in" in str(picture.plan) and picture.plan.memory <= 8 * 10**6
        refined.clear()
        assert np.abs(picture.read(dtype=np.float32) - expected).max() < 1e-4
        made = picture.plan.stages[0].context
        assert made is not None and len(refined) == made.tiles.tiling.count > 1  # row by row: none twice
        assert made.gathering is not None and made.gathering.runs > 1
        assert np.abs(picture.at("x111").read((30, 20, 50, 60)).mean() - 255 * expected.mean()) < 60


def test_graphs_keep_their_memory_for_the_next_latent_of_the_same_size(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As long as there is room. If there is none, each graph gives its memory back at once."""
    released: list[Session] = []
    monkeypatch.setattr(Session, "release", lambda session: released.append(session))

    def graphs(*names: str) -> set[Session]:
        return {engine._sessions[name] for name in names} if names else set(engine._sessions.values())

    with infgen_rt.open(bundle, backend="onnxruntime", memory=GIB) as decoder:
        engine = decoder._engine
        decoder.picture(LATENT, "2x").read()
        released.clear()
        picture = decoder.picture(-LATENT, "2x")
        picture.read()
        assert picture.plan.stages[0].context.keeps and not released
        # Graphs of another size, or that encode, would need other amounts.
        for _ in decoder.picture(LATENT[:, :20], "2x")._stage.tiles.prepare():
            pass
        assert len(released) == len(graphs()) and set(released) == graphs()
        released.clear()
        decoder.encode(np.zeros((64, 64, 3), np.uint8))
        assert set(released) == graphs() and not engine._purpose.keeps
        two = decoder.picture(LATENT[:, :6, :7], "4x", stages=(2, 2))
        # Of several stages, only the last one's graphs keep theirs.
        assert [stage.context.keeps for stage in two.plan.stages] == [False, True]
        two.read()
        assert engine._purpose.keeps
        # A run that fails or is cancelled gives its memory back too.
        released.clear()

        def fail(_: Mapping[str, Any]) -> Any:
            raise infgen_rt.DecodeError("no more")

        monkeypatch.setattr(engine._sessions["refine"], "run", fail)
        with pytest.raises(infgen_rt.DecodeError, match="no more"):
            decoder.picture(LATENT[:, :6, :7], "4x", stages=(2, 2)).read()
        assert released[-1] == engine._sessions["refine"]


def test_graphs_give_their_memory_back_if_the_plan_has_no_room_to_keep_it(bundle: Path) -> None:
    with infgen_rt.open(bundle, memory=GIB) as decoder:
        roomy = decoder.picture(LATENT, "2x").plan
        figures = decoder.manifest.memory(decoder._engine.recipe)
    # What is kept is counted. Together with twice the cache of tiles, it is just too much here.
    limit = roomy.memory - roomy.cache + 2 * CACHE - 1
    for memory, keeps in ((limit, False), (limit + 1, True)):
        with infgen_rt.open(bundle, memory=memory) as decoder:
            plan = decoder.picture(LATENT, "2x").plan
            assert plan.stages[0].context.keeps == keeps and plan.memory <= memory
            assert roomy.memory - plan.memory >= (0 if keeps else figures.refine_per_cell * 37 * 53)


def test_a_later_picture_without_room_ends_the_keeping_of_memory(decoder: infgen_rt.Decoder) -> None:
    """Even if all tiles of its context are kept, so that no graph but decode runs for it."""
    engine = decoder._engine
    context, tiles = Contexts(Given(LATENT, engine), engine), tiles_of(60, tiny.REFINE)
    plan = ContextPlan(tiles, MIB, Gathering(tiles_of(60, tiny.PREFILL), tiny.BLOCKS), keeps=True)
    context.plan(plan, tiny.ONE)
    whole = cut(context, Box(0, 0, 53, 37))
    assert engine._purpose.keeps
    context.plan(replace(plan, keeps=False), tiny.ONE)
    assert np.array_equal(cut(context, Box(0, 0, 53, 37)), whole) and not engine._purpose.keeps
    context.plan(plan, tiny.ONE)  # the first picture may be read again, but memory is not kept again
    context._tiles.clear()
    assert np.array_equal(cut(context, Box(0, 0, 53, 37)), whole) and not engine._purpose.keeps


def test_small_parts_prepare_little_for_the_first_region(
    decoder: infgen_rt.Decoder, refined: list[tuple[int, int]]
) -> None:
    size = (640, 450)
    whole = decoder.picture(LATENT, size)
    expected = whole.read(dtype=np.float32)
    assert refined == [(37, 53)]
    refined.clear()
    picture = decoder.picture(LATENT, size, part=16)
    found = picture.read((20, 20, 40, 30), dtype=np.float32)
    assert len(refined) == 1 and max(refined[0]) <= 16 + 2 * tiny.REFINE
    assert np.abs(found - expected[20:50, 20:60]).max() < 1e-5
    assert np.abs(picture.read(dtype=np.float32) - expected).max() < 1e-5 and len(refined) == 12
    # Another size of the same latent keeps to it.
    assert max(decoder.picture(LATENT, "1x", part=16).at("2x").plan.stages[0].context.tiles.tiling.largest) <= 16
    with pytest.raises(infgen_rt.PlanError, match="part of 7 cells is not possible: expected 8 or more"):
        decoder.picture(LATENT, size, part=7)


@pytest.mark.parametrize("form", [1, 2, 3])
def test_bundles_of_earlier_formats_are_read(tmp_path: Path, form: int) -> None:
    """They have one context for all scales. Prefill sees the whole latent in two of them, and in the first makes it."""
    bundle = tiny.write_bundle(tmp_path)
    manifest = json.loads((bundle / "manifest.json").read_text()) | {"format": form}
    graphs = manifest["recipes"][0]["graphs"]
    del manifest["enlargements"]
    if form < 3:
        made = tiny.global_prefill_graph() if form == 2 else tiny.global_prefill_graph("context", tiny.CONTEXT)
        (bundle / graphs["prefill"]).write_bytes(made)
        manifest["files"][graphs["prefill"]] = {"sha256": hashlib.sha256(made).hexdigest(), "bytes": len(made)}
        del graphs["statistics"], manifest["moments"], manifest["halo"]["prefill"]
    if form == 1:
        del graphs["refine"], manifest["feature_channels"]
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    with infgen_rt.open(bundle) as decoder:
        whole, tiled = (decoder.picture(LATENT, "2x", tile=tile) for tile in (None, 64))
        assert (whole.plan.stages[0].context is None) == (form == 1)
        assert np.abs(whole.read(dtype=np.float32) - tiled.read(dtype=np.float32)).max() < 1e-5
        if form == 3:
            assert np.abs(whole.read(dtype=np.float32) - tiny.decode_whole(LATENT, whole.size)).max() < 1e-5


CONTEXTS = Bundle.open().manifest.contexts


@pytest.mark.parametrize("enlargement", CONTEXTS, ids=lambda each: f"x{each.factor}")
@pytest.mark.parametrize("megabytes", [600, 700, 1_000, 2_000, 4_000])
def test_a_large_latents_context_takes_half_of_the_memory_at_most(megabytes: int, enlargement: Enlargement) -> None:
    """With the figures of the model that ships."""
    manifest, cells, budget = Bundle.open().manifest, Size(256, 256), megabytes * 10**6
    recipe = manifest.recipes[0]
    plan, figures = plan_context(cells, enlargement, manifest, recipe, budget), manifest.memory(recipe)
    assert plan is not None and plan.tiles.halo == enlargement.halo and plan.gathering is not None
    room = (budget - figures.base) // 2
    assert plan.cache + figures.refine_per_cell * plan.refined.window.area <= room
    assert plan.cache + figures.trunk_per_cell * plan.tiles.window.area <= room
    assert figures.statistics_per_cell * plan.gathering.tiles.window.area <= room
    # What two rows of tiles touch is kept, so that a picture that is made row by row has nothing made twice.
    tile = 4 * enlargement.channels * plan.tiles.tiling.largest.area
    assert plan.cache >= min(plan.tiles.tiling.count, 2 * plan.tiles.tiling.across) * tile
