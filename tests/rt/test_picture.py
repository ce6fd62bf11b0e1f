import traceback
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import infgen_rt
import infgen_runtimes.onnxruntime
from infgen_rt.bundle.graphs import DECODE, PREFILL
from infgen_rt.common.pixels import to_bytes, to_floats
from infgen_rt.errors import DecodeError, InfGenWarning, PlanError
from infgen_rt.geometry.shapes import Box
from infgen_rt.viewing import Pyramid

from . import tiny
from .watching import Run, on_runs

LATENT = tiny.random_latent(9, 12)


@pytest.fixture
def picture(decoder: infgen_rt.Decoder) -> infgen_rt.Picture:
    return decoder.picture(LATENT, "2x", tile=64)


@pytest.fixture
def decodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Tokens of each decode that was run."""
    counts: list[int] = []

    def counted(run: Run, inputs: Mapping[str, Any], shared: bool) -> Any:
        counts.append(len(inputs["token_y"]) * len(inputs["token_x"]))
        return run()

    on_runs(monkeypatch, DECODE, counted)
    yield counts


def test_a_picture_is_an_array(picture: infgen_rt.Picture) -> None:
    pixels = np.asarray(picture)
    assert picture.size == (192, 144) and pixels.shape == (144, 192, 3) and pixels.dtype == np.uint8
    assert np.array_equal(np.asarray(picture, dtype=np.float64), pixels.astype(np.float64))
    assert np.array_equal(np.asarray(picture.image()), pixels)
    with pytest.raises(ValueError, match="without a copy"):
        picture.__array__(copy=False)  # NumPy 2 asks so for asarray(picture, copy=False)


def test_nothing_is_decoded_before_it_is_asked_for(decodes: list[int], picture: infgen_rt.Picture) -> None:
    assert str(picture.plan) and not decodes
    picture.read((70, 70, 10, 10))
    # Two tokens per side, and two more all around.
    assert decodes == [36]


def test_a_small_region_across_tiles_is_one_decode_and_kept(decodes: list[int], picture: infgen_rt.Picture) -> None:
    first = picture.read((60, 60, 8, 8))
    assert decodes == [36]
    assert np.array_equal(picture.read((60, 60, 8, 8)), first) and decodes == [36]


def test_a_viewport_is_kept_however_it_lies(decodes: list[int], picture: infgen_rt.Picture) -> None:
    """Some tiles are seen whole, some in part."""
    first = picture.read((30, 30, 140, 100))
    count = len(decodes)
    assert count > 4
    assert np.array_equal(picture.read((30, 30, 140, 100)), first) and len(decodes) == count


def test_whole_tiles_are_kept(decodes: list[int], picture: infgen_rt.Picture) -> None:
    first = picture.read()
    tiles = len(decodes)
    assert tiles == picture.plan.stages[0].count
    assert np.array_equal(picture.read(), first)
    assert np.array_equal(picture.read((50, 40, 100, 90)), first[40:130, 50:150])
    assert len(decodes) == tiles


def test_the_cache_is_bounded(decodes: list[int], bundle: Path) -> None:
    with infgen_rt.open(bundle) as decoder:
        least = decoder.picture(LATENT, "2x", tile=64).plan
    with infgen_rt.open(bundle, memory=least.memory - least.cache - least.kept + 1) as decoder:
        picture = decoder.picture(LATENT, "2x", tile=64)
        assert np.array_equal(picture.read(), picture.read())
        assert len(decodes) == 2 * picture.plan.stages[0].count


def test_a_caller_may_change_what_it_was_given(picture: infgen_rt.Picture) -> None:
    box = next(picture.tiles())[0]
    before = picture.read(box, dtype=np.float32)
    picture.read(box, dtype=np.float32)[:] = 0
    assert np.array_equal(picture.read(box, dtype=np.float32), before)


def test_a_caller_may_change_a_tile_of_one_pixel(picture: infgen_rt.Picture) -> None:
    expected = picture.read((5, 5, 1, 1))
    for _, pixels in picture.tiles(region=(5, 5, 1, 1)):
        pixels[:] = 255 - pixels
    assert np.array_equal(picture.read((5, 5, 1, 1)), expected)


def test_tiles_come_from_where_the_user_looks(picture: infgen_rt.Picture) -> None:
    whole = np.asarray(picture)
    filled = np.zeros_like(whole)
    tiles = list(picture.tiles(start=(191, 143)))
    for box, pixels in tiles:
        filled[box.slices] = pixels
    assert np.array_equal(filled, whole)
    assert tiles[0][0].right == 192 and tiles[0][0].bottom == 144
    assert tiles[-1][0][:2] == (0, 0)


def test_several_threads_read_one_picture(decodes: list[int], picture: infgen_rt.Picture, bundle: Path) -> None:
    with infgen_rt.open(bundle) as other:
        expected = other.picture(LATENT, "2x").read()
    decodes.clear()
    boxes = [(x, y, 96, 72) for x in (0, 96) for y in (0, 72)] * 4 + [(0, 0, 192, 144)] * 4
    with ThreadPoolExecutor(8) as pool:
        for (x, y, width, height), pixels in zip(boxes, pool.map(picture.read, boxes), strict=True):
            difference = pixels.astype(int) - expected[y : y + height, x : x + width]
            assert np.abs(difference).max() <= 1


def test_bad_regions_and_dtypes_are_refused(picture: infgen_rt.Picture) -> None:
    with pytest.raises(PlanError, match="outside the picture, which is 192x144"):
        picture.read((0, 0, 193, 1))
    with pytest.raises(TypeError, match="expected numpy.uint8 or numpy.float32"):
        picture.read(dtype=np.int16)


def test_a_closed_decoder_says_so(bundle: Path) -> None:
    with infgen_rt.open(bundle) as decoder:
        picture = decoder.picture(LATENT)
    with pytest.raises(DecodeError, match="decoder is closed"):
        picture.read()
    decoder.close()


def test_pixels_that_are_no_numbers_are_an_error(picture: infgen_rt.Picture, monkeypatch: pytest.MonkeyPatch) -> None:
    on_runs(monkeypatch, DECODE, lambda run, inputs, shared: run() * np.float32(np.nan))
    with pytest.raises(DecodeError, match="NaN or infinite pixels in 0,0,8,8"):
        picture.read((0, 0, 8, 8))


def test_rounding_is_half_upwards_and_clamped() -> None:
    levels = np.array([-0.2, 0.49, 0.5, 127.5, 255, 300], np.float32) / 255
    planes = np.tile(levels.astype(np.float32), (3, 1, 1))
    assert to_bytes(planes)[0, :, 0].tolist() == [0, 0, 1, 128, 255, 255]
    assert to_floats(planes)[0, :, 2].tolist() == pytest.approx(levels.clip(0, 1))


def test_other_sizes_share_what_prefill_made(decoder: infgen_rt.Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    latent = tiny.random_latent(12, 16)
    picture, expected = decoder.picture(latent, "3x", tile=64), decoder.picture(latent, (200, 150)).read()
    picture.read((0, 0, 64, 64))
    on_runs(monkeypatch, PREFILL, lambda run, inputs, shared: pytest.fail("prefill ran again"))
    other = picture.at((200, 150))
    assert other.size == (200, 150) and np.abs(other.read().astype(int) - expected).max() <= 1
    assert picture.at("2x").size == (256, 192) and picture.at(1).size == (128, 96)
    with pytest.raises(PlanError, match="not understood"):
        picture.at("huge")


@pytest.mark.filterwarnings("ignore::infgen_rt.InfGenWarning")
@pytest.mark.parametrize(("size", "longest"), [("3x", 512), ("3x", 200), ("3x", 40), ((64, 600), 100), ("1x", 1)])
def test_a_preview_is_the_whole_picture_small(
    decoder: infgen_rt.Decoder, size: str | tuple[int, int], longest: int
) -> None:
    picture = decoder.picture(tiny.random_latent(12, 16), size)
    preview = picture.preview(longest)
    share = min(1, longest / max(picture.size))
    assert preview.shape == (*(max(1, round(side * share)) for side in picture.size[::-1]), 3)
    # The random model looks alike at neighbouring sizes as far as averages go.
    assert np.abs(preview.mean((0, 1)) - picture.read().mean((0, 1))).max() < 12


def test_only_a_size_that_the_caller_chose_is_warned_about(decoder: infgen_rt.Decoder) -> None:
    picture = decoder.picture(tiny.random_latent(5, 31), normalisation="model")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for longest in range(8, 64):
            picture.preview(longest)
        for level in picture.levels:
            Pyramid(picture).region(level.number, Box(0, 0, 1, 1))
    with pytest.warns(InfGenWarning, match="stretches"):
        decoder.picture(tiny.random_latent(5, 31), (100, 40), normalisation="model")


def test_a_preview_of_no_pixels_is_refused(decoder: infgen_rt.Decoder) -> None:
    with pytest.raises(PlanError, match="preview of 0 pixels"):
        decoder.picture(tiny.random_latent(4, 4)).preview(0)


def test_seven_calls_lead_from_save_to_a_graph(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A newcomer who follows a picture through the code has few stations to visit."""
    ways: list[list[str]] = []
    session = infgen_runtimes.onnxruntime.Session
    run = session.run

    def on_run(self: Any, inputs: Mapping[str, Any]) -> Any:
        if "token_y" in inputs:
            calls = [frame.name for frame in traceback.extract_stack() if "infgen_rt" in Path(frame.filename).parts]
            ways.append(calls[calls.index("save") + 1 :])
        return run(self, inputs)

    monkeypatch.setattr(session, "run", on_run)
    with infgen_rt.open(bundle, "onnxruntime", threads=1) as decoder:  # workers would be other threads
        decoder.picture(LATENT, "2x", tile=64).save(tmp_path / "a.png")
    assert set(map(tuple, ways)) == {("write", "_bands", "read_each", "read", "read", "run")}  # and the session's
