"""What a viewer needs, without a window."""

import sys
import threading
from collections.abc import Iterator, Mapping
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import infgen_rt
from infgen_rt.bundle.graphs import DECODE
from infgen_rt.cli.main import main
from infgen_rt.geometry.shapes import Box, Size
from infgen_rt.viewing import Frame, Level, Opener, Pyramid, Request, Tile, TileReader, Viewport, levels_of, opening

from . import tiny
from .watching import Run, on_runs

LATENT = tiny.random_latent(9, 12)
TILE = 64
SECONDS = 60


@pytest.fixture
def picture(decoder: infgen_rt.Decoder) -> infgen_rt.Picture:
    return decoder.picture(LATENT, "4x", normalisation="model")  # 384x288


@pytest.fixture
def reader(picture: infgen_rt.Picture) -> Iterator[TileReader]:
    with TileReader(picture, tile=TILE) as reader:
        yield reader


class Held:
    """Holds decodes until they are let go, and counts them."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.begun, self.go, self.count = threading.Event(), threading.Event(), 0
        on_runs(patch, DECODE, self._run)

    def _run(self, run: Run, inputs: Mapping[str, Any], shared: bool) -> Any:
        self.count += 1
        self.begun.set()
        assert self.go.wait(SECONDS)
        return run()


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[Held]:
    held = Held(monkeypatch)
    yield held
    held.go.set()


SIDES = st.integers(1, 5000)


@given(SIDES, SIDES, st.sampled_from([64, 256, 1024]))
def test_levels_go_from_one_tile_to_the_picture_by_halves(width: int, height: int, tile: int) -> None:
    levels = levels_of(Size(width, height), tile)
    assert (levels[0].columns, levels[0].rows) == (1, 1) and levels[-1].size == (width, height)
    assert [level.number for level in levels] == list(range(len(levels)))
    for small, large in zip(levels, levels[1:], strict=False):
        assert small.size == tuple(-(-side // 2) for side in large.size)
        assert max(large.size) > tile


@given(SIDES, SIDES, st.data())
def test_the_tiles_of_a_level_cover_a_box_once(width: int, height: int, data: st.DataObject) -> None:
    level = data.draw(st.sampled_from(levels_of(Size(width, height), 512)))
    x, y = data.draw(st.integers(-99, level.size.width)), data.draw(st.integers(-99, level.size.height))
    box = Box(x, y, data.draw(st.integers(1, 2000)), data.draw(st.integers(1, 2000)))
    seen = box.intersect(level.size.box)
    tiles = [level.box(tile.column, tile.row) for tile in level.touching(box)]
    assert sum(tile.intersect(seen).size.area for tile in tiles) == seen.size.area
    assert all(tile.intersect(seen).size.area for tile in tiles)


def alike(pixels: np.ndarray, others: np.ndarray) -> bool:
    """Within a level of 255. On some processors, the order in which sums are made depends on the tile's size."""
    return bool(np.abs(pixels.astype(int) - others).max() <= 1)


def test_every_tile_of_every_level_is_what_the_picture_of_that_size_has(picture: infgen_rt.Picture) -> None:
    pyramid = Pyramid(picture, TILE)
    assert [level.size for level in pyramid.levels] == [(48, 36), (96, 72), (192, 144), (384, 288)]
    assert picture.levels == levels_of(picture.size)
    for level in pyramid.levels:
        whole = picture.at(level.size).read()
        for tile in level.touching(level.size.box):
            assert alike(pyramid.read(tile).pixels, whole[level.box(tile.column, tile.row).slices])
    assert alike(pyramid.read(Tile(3, 1, 2)).pixels, picture.read((64, 128, 64, 64)))


def test_no_level_of_a_picture_of_one_stage_has_two(decoder: infgen_rt.Decoder) -> None:
    """Otherwise, a viewer would wait for the tiles of a level between, and it would look different."""
    picture = decoder.picture(LATENT, "20x", normalisation="model", max_scale=inf)
    pyramid = Pyramid(picture, TILE)
    scales = [level.size.width / 96 for level in pyramid.levels]
    assert any(5 < scale < 20 for scale in scales)
    made = [pyramid._picture(number) for number in range(len(scales))]
    assert [len(each.plan.stages) for each in made if each] == [1] * sum(each is not None for each in made)
    assert len(picture.at("8x").plan.stages) == 1


def test_levels_that_are_too_small_for_the_model_are_reduced(decoder: infgen_rt.Decoder) -> None:
    picture = decoder.picture(LATENT, "1x", normalisation="model")  # 96x72; it can be decoded down to 24x18
    pyramid = Pyramid(picture, 8)
    sizes = [level.size for level in pyramid.levels]
    assert sizes == [(6, 5), (12, 9), (24, 18), (48, 36), (96, 72)]
    decoded = picture.at((24, 18)).read().astype(float)
    means = decoded.reshape(9, 2, 12, 2, 3).mean((1, 3))
    reduced = pyramid.region(1, Box(0, 0, 12, 9)).pixels
    assert np.abs(reduced - means).max() <= 0.5
    assert pyramid.read(Tile(0, 0, 0)).size == (6, 5)


@pytest.mark.parametrize("tile", [Tile(4, 0, 0), Tile(-1, 0, 0), Tile(3, 6, 0), Tile(3, 0, -1)])
def test_a_tile_that_is_not_there_is_refused(reader: TileReader, tile: Tile) -> None:
    for ask in (reader.read, reader.request):
        with pytest.raises(infgen_rt.PlanError, match="there is no tile"):
            ask(tile)


def test_frames_have_the_bytes_that_toolkits_take(picture: infgen_rt.Picture) -> None:
    pixels = picture.read((10, 20, 61, 30))
    pyramid, box = Pyramid(picture, TILE), Box(10, 20, 61, 30)
    rgb, bgra = pyramid.region(3, box), pyramid.region(3, box, "bgra")
    assert rgb.stride == 184 and bgra.stride == 244
    assert rgb.rows.flags.c_contiguous and bgra.rows.flags.c_contiguous
    assert np.array_equal(rgb.rows[:, :183].reshape(30, 61, 3), pixels)
    words = bgra.rows.reshape(30, 61, 4)
    assert np.array_equal(words[..., 2::-1], pixels) and (words[..., 3] == 255).all()
    assert np.array_equal(bgra.pixels, pixels) and np.shares_memory(bgra.pixels, bgra.rows)


def test_a_region_is_read_into_an_array_of_the_caller(picture: infgen_rt.Picture) -> None:
    canvas = np.zeros((100, 100, 3), np.uint8)
    part = canvas[10:40, 5:65]
    assert picture.read((10, 20, 60, 30), out=part) is part
    assert np.array_equal(part, picture.read((10, 20, 60, 30))) and canvas.any(-1).sum() <= 60 * 30
    floats = np.empty((30, 60, 3), np.float32)
    picture.read((10, 20, 60, 30), dtype=np.float32, out=floats)
    assert np.array_equal(floats, picture.read((10, 20, 60, 30), dtype=np.float32))
    for wrong in (canvas, floats):
        with pytest.raises(infgen_rt.PlanError, match="out is"):
            picture.read((10, 20, 60, 31), out=wrong)  # type: ignore[call-overload]


def test_requests_are_taken_by_priority_which_may_change(picture: infgen_rt.Picture, held: Held) -> None:
    order: list[Tile] = []

    def done(request: Request) -> None:
        order.append(request.tile)

    # With one thread, requests are done in the order in which they are taken.
    with TileReader(picture, tile=TILE, workers=1) as reader:
        first = reader.request(Tile(3, 0, 0))  # this keeps the thread busy
        assert held.begun.wait(SECONDS)
        later = [reader.request(Tile(3, column, 1), 10 - column, done) for column in range(4)]
        later[0].priority = -1.0
        assert reader.open_requests == 5
        held.go.set()
        for request in (first, *later):
            request.result(SECONDS)
    assert order == [later[number].tile for number in (0, 3, 2, 1)]


def test_each_request_can_be_cancelled_before_and_while_it_runs(reader: TileReader, held: Held) -> None:
    called: list[Request] = []
    running = reader.request(Tile(3, 0, 0), 0, called.append)
    assert held.begun.wait(SECONDS)
    waiting = [reader.request(Tile(3, column, 1), 1, called.append) for column in range(3)]
    running.cancel()
    waiting[1].cancel()
    held.go.set()
    for request in (running, waiting[1]):
        with pytest.raises(infgen_rt.Cancelled):
            request.result(SECONDS)
    for request in (waiting[0], waiting[2]):
        assert isinstance(request.result(SECONDS), Frame)
    assert {id(each) for each in called} <= {id(waiting[0]), id(waiting[2])}
    assert reader.cached(Tile(3, 1, 1)) is None


def test_what_has_scrolled_away_is_dropped_and_nothing_is_decoded_twice(reader: TileReader, held: Held) -> None:
    reader.want([Tile(3, column, 0) for column in range(6)])
    assert held.begun.wait(SECONDS)
    there = threading.Barrier(3)
    before = held.count
    seen = [Tile(3, 5, 3), Tile(3, 4, 3), Tile(3, 5, 3)]
    for _ in range(3):  # a viewer asks again at each move
        reader.want(seen, done=lambda request: there.wait(SECONDS))
    assert reader.open_requests <= 4  # two that were running, and the two that are seen
    held.go.set()
    there.wait(SECONDS)
    assert reader.cached(Tile(3, 4, 0)) is None and reader.cached(Tile(3, 3, 0)) is None
    assert before <= 2 and held.count <= 4
    reader.want(seen)
    assert all(reader.cached(tile) is not None for tile in seen)


def test_another_level_stops_what_is_being_decoded(reader: TileReader, held: Held) -> None:
    request = reader.request(Tile(3, 0, 0))
    assert held.begun.wait(SECONDS)
    reader.want([Tile(3, 5, 0)])
    assert not request.cancelled.is_set()
    reader.want([Tile(2, 0, 0)])
    assert request.cancelled.is_set()
    held.go.set()
    with pytest.raises(infgen_rt.Cancelled):
        request.result(SECONDS)


def test_one_tile_that_is_asked_for_twice_is_decoded_once(reader: TileReader, held: Held) -> None:
    requests = [reader.request(Tile(3, 2, 2)) for _ in range(4)]
    assert held.begun.wait(SECONDS)
    held.go.set()
    frames = {id(request.result(SECONDS)) for request in requests}
    assert len(frames) == 1 and held.count == 1


def test_the_memory_of_tiles_is_bounded_and_the_oldest_is_forgotten(picture: infgen_rt.Picture) -> None:
    size = TILE * TILE * 4
    with TileReader(picture, tile=TILE, cache=3 * size + 1) as reader:
        for column in range(5):
            reader.read(Tile(3, column, 0))
            assert reader.memory <= 3 * size
        assert reader.cached(Tile(3, 1, 0)) is None and reader.cached(Tile(3, 2, 0)) is not None


def test_closing_cancels_all_and_later_requests_end_at_once(picture: infgen_rt.Picture, held: Held) -> None:
    reader = TileReader(picture, tile=TILE)
    requests = [reader.request(Tile(3, column, 0)) for column in range(4)]
    assert held.begun.wait(SECONDS)
    held.go.set()
    reader.close()
    requests.append(reader.request(Tile(3, 0, 0)))
    assert all(request.cancelled.is_set() for request in requests)
    with pytest.raises(infgen_rt.Cancelled):
        requests[-1].result(SECONDS)


def test_a_request_may_close_the_reader_when_it_is_done(picture: infgen_rt.Picture) -> None:
    reader, ended = TileReader(picture, tile=TILE), threading.Event()
    threads = [thread for thread in threading.enumerate() if thread.name.startswith("infgen-view")]

    def done(request: Request) -> None:
        reader.close()
        ended.set()

    reader.request(Tile(3, 0, 0), done=done)
    assert ended.wait(SECONDS)
    for thread in threads:
        thread.join(SECONDS)
    assert not any(thread.is_alive() for thread in threads) and reader.memory == 0


def test_two_requests_may_close_the_reader_at_once(picture: infgen_rt.Picture) -> None:
    reader, both, ended = TileReader(picture, tile=TILE), threading.Barrier(2), threading.Semaphore(0)

    def done(request: Request) -> None:
        both.wait(SECONDS)
        reader.close()
        ended.release()

    for column in range(2):
        reader.request(Tile(3, column, 0), done=done)
    assert ended.acquire(timeout=SECONDS) and ended.acquire(timeout=SECONDS)
    reader.close()


def test_what_a_caller_raises_when_a_tile_is_there_is_told_and_the_reader_goes_on(
    reader: TileReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", told.append)

    def done(request: Request) -> None:
        raise ValueError("my own mistake")

    for column in range(4):  # more than the reader has threads
        reader.request(Tile(3, column, 0), done=done).result(SECONDS)
    assert reader.request(Tile(3, 0, 1)).result(SECONDS).size == (TILE, TILE)
    assert [str(each.exc_value) for each in told] == ["my own mistake"] * 4


def test_all_tiles_are_in_the_cache_of_the_reader_and_none_after_it_is_closed(picture: infgen_rt.Picture) -> None:
    with TileReader(picture, tile=TILE, cache=10**6) as reader:
        frames = [reader.read(Tile(3, column, 0)) for column in range(5)]
        assert reader.memory == sum(frame.rows.nbytes for frame in frames)
        assert picture._stage.tiles._cache.size == 0
    reader.read(Tile(3, 0, 1))
    assert reader.memory == 0


def test_a_frame_that_others_get_too_cannot_be_changed(reader: TileReader) -> None:
    for frame in (reader.read(Tile(3, 0, 0)), reader.request(Tile(3, 0, 0)).result(SECONDS)):
        with pytest.raises(ValueError, match="read-only"):
            frame.pixels[:] = 0


def test_a_request_that_was_cancelled_last_of_all_calls_nobody() -> None:
    told: list[Request] = []
    request = Request(Tile(0, 0, 0), 0.0, told.append)
    request.cancel()
    request.finish(Frame.empty(Size(2, 2), "rgb"), None)
    assert not told and request.result(0).size == (2, 2)


def test_a_failure_is_told_to_who_asked_and_the_reader_goes_on(
    reader: TileReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(run: Run, inputs: Mapping[str, Any], shared: bool) -> Any:
        raise infgen_rt.DecodeError("the device is gone")

    with monkeypatch.context() as patch:
        on_runs(patch, DECODE, fail)
        with pytest.raises(infgen_rt.DecodeError, match="the device is gone"):
            reader.request(Tile(3, 0, 0)).result(SECONDS)
    assert reader.request(Tile(3, 0, 0)).result(SECONDS).size == (TILE, TILE)


# The geometry of a window.

LEVELS = levels_of(Size(4000, 3000))
VIEW = Viewport.fitting(Size(4000, 3000), Size(800, 800))
MOVES = st.lists(
    st.one_of(
        st.tuples(st.just("zoomed"), st.floats(0.001, 100), st.tuples(st.floats(0, 800), st.floats(0, 800))),
        st.tuples(st.just("moved"), st.floats(-9000, 9000), st.floats(-9000, 9000)),
    ),
    max_size=6,
)


def test_a_window_shows_the_whole_picture_first() -> None:
    assert VIEW.zoom == 0.2 and VIEW.fits and VIEW.seen == Box(0, 0, 4000, 3000)
    assert VIEW.place(LEVELS[-1], Box(0, 0, 4000, 3000)) == Box(0, 100, 800, 600)
    assert Viewport.fitting(Size(40, 30), Size(800, 800)).zoom == 1.0
    assert VIEW.resized(Size(400, 400)).zoom == 0.1 and VIEW.zoomed(1.0).resized(Size(400, 400)).zoom == 1.0


def test_the_point_under_the_mouse_stays_when_it_zooms() -> None:
    view = VIEW.zoomed(2.0)
    point = (130.0, 620.0)
    near = view.zoomed(5.0, point)
    assert near.to_picture(*point) == pytest.approx(view.to_picture(*point))


@given(MOVES)
def test_no_move_leads_out_of_the_picture(moves: list[Any]) -> None:
    view = VIEW
    for name, *values in moves:
        view = getattr(view, name)(*values)
    placed = view.place(LEVELS[-1], Box(0, 0, 4000, 3000))
    for start, side, shown in ((placed.x, placed.width, 800), (placed.y, placed.height, 800)):
        if side >= shown + 2:
            assert start <= 1 and start + side >= shown - 1
        else:
            assert abs(2 * start + side - shown) <= 3


@given(MOVES)
def test_the_tiles_that_are_wanted_cover_the_window_from_the_middle_outwards(moves: list[Any]) -> None:
    view = VIEW
    for name, *values in moves:
        view = getattr(view, name)(*values)
    first, *tiles = view.wanted(LEVELS)
    level = view.level(LEVELS)
    assert first == (0, 0, 0) and {tile.level for tile in tiles} <= {level.number}
    seen = view.seen_at(level)
    boxes = [level.box(tile.column, tile.row) for tile in tiles]
    assert sum(box.intersect(seen).size.area for box in boxes) == seen.size.area
    middles = [(box.x + box.width / 2, box.y + box.height / 2) for box in boxes]
    distances = [(x / level.scale[0] - view.x) ** 2 + (y / level.scale[1] - view.y) ** 2 for x, y in middles]
    assert distances == pytest.approx(sorted(distances), rel=1e-2)


@pytest.mark.parametrize(
    ("zoom", "size"), [(0.0625, 250), (0.2, 1000), (0.3, 1000), (0.4, 2000), (1.0, 4000), (9, 4000)]
)
def test_the_level_has_the_detail_that_is_seen_and_not_more(zoom: float, size: int) -> None:
    view = Viewport.fitting(Size(4000, 3000), Size(100, 100)).zoomed(zoom)
    assert view.level(LEVELS).size.width == size


@given(st.floats(0.05, 8), st.floats(0, 4000), st.floats(0, 3000))
def test_tiles_beside_each_other_touch_in_the_window(zoom: float, x: float, y: float) -> None:
    view = Viewport(Size(4000, 3000), Size(800, 800), zoom, x, y)
    level: Level = view.level(LEVELS)
    for left, right in zip(range(level.columns), range(1, level.columns), strict=False):
        assert view.place(level, level.box(left, 0)).right == view.place(level, level.box(right, 0)).x


# Opening.


def test_an_opener_keeps_the_shape_and_opens_a_model_once(bundle: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", tiny.random_latent(8, 12))
    np.save(tmp_path / "b.npy", np.stack([tiny.random_latent(12, 8)] * 2))
    opener = Opener("400x400", model=bundle, normalisation="model")
    first = opener.open(tmp_path / "a.npy", cancel=None)
    second = opener.open(tmp_path / "b.npy", cancel=None)
    assert first.title == "a.npy" and [each.size for each in first.pictures] == [(400, 267)]
    assert [each.size for each in second.pictures] == [(267, 400)] * 2 and second.decoder is first.decoder
    made = first.pictures[0].plan.stages[0].context
    assert made is not None and max(made.tiles.tiling.largest) <= opening.PART
    opener.size = "2x"
    assert opener.open(tmp_path / "a.npy", cancel=None).pictures[0].size == (192, 128)
    with pytest.raises(infgen_rt.LatentError, match="does not exist"):
        opener.open(tmp_path / "c.npy", cancel=None)
    opener.close()
    with pytest.raises(infgen_rt.DecodeError, match="closed"):
        first.pictures[0].read((0, 0, 8, 8))


# The command without PySide6.


def test_without_pyside_the_command_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.startswith(("infgen_rt.qt", "PySide6"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "PySide6", None)
    assert main(["view", "latent.npy"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("Error: the viewer needs PySide6") and line.endswith('pip install "infgen-rt[viewer]"')
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    assert main(["view", "latent.npy"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "pip" not in line and "this app was built without it" in line
