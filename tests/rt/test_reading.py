"""Reading a picture in parts: progress, regions, kinds of numbers, cancelling."""

from threading import Event

import numpy as np
import pytest

import infgen_rt
from infgen_rt.common.cancellation import Cancellation, current
from infgen_rt.errors import Cancelled, PlanError

from . import tiny


@pytest.fixture
def picture(decoder: infgen_rt.Decoder) -> infgen_rt.Picture:
    return decoder.picture(tiny.random_latent(9, 12), "2x", tile=64)


@pytest.mark.parametrize("region", [None, (30, 20, 100, 90), (3, 4, 5, 6)])
def test_reading_tells_how_far_it_is(picture: infgen_rt.Picture, region: tuple[int, int, int, int] | None) -> None:
    for _ in range(2):  # the second time the latent is prepared already
        steps: list[infgen_rt.Progress] = []
        told = picture.read(region, progress=steps.append)
        assert np.array_equal(told, picture.read(region))
        assert steps[0].stage == "prefill" and {step.stage for step in steps[1:]} == {"decode"}
        assert [step.done for step in steps] == sorted({step.done for step in steps})
        assert steps[-1].fraction == 1.0


def test_a_picture_that_needs_no_preparation_has_no_step_for_it() -> None:
    steps: list[infgen_rt.Progress] = []
    with infgen_rt.open(space="sdxl", backend="onnxruntime") as decoder:  # this model has no statistics
        picture = decoder.picture(np.zeros((4, 4, 4), np.float32), "1x")
        assert picture.plan.preparation == 0
        picture.read(progress=steps.append)
    assert {step.stage for step in steps} == {"decode"} and steps[-1].fraction == 1.0


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_tiles_of_a_region_fill_just_that(picture: infgen_rt.Picture, dtype: type[np.uint8] | type[np.float32]) -> None:
    region = (30, 20, 101, 90)
    x, y, width, height = region
    filled = np.full((height, width, 3), np.nan)
    for box, pixels in picture.tiles(region=region, dtype=dtype):  # type: ignore[call-overload]
        assert pixels.dtype == dtype and pixels.shape == (box.height, box.width, 3)
        place = filled[box.y - y : box.bottom - y, box.x - x : box.right - x]
        assert np.isnan(place).all()
        place[:] = pixels
    whole = picture.read(region, dtype=dtype)  # type: ignore[call-overload]
    assert np.abs(filled - whole).max() <= (1 if dtype is np.uint8 else 1e-5)


def test_tiles_stop_when_told_to_and_leave_the_callers_thread_alone(picture: infgen_rt.Picture) -> None:
    stop, before = Event(), current()
    tiles = picture.tiles(cancel=stop)
    next(tiles)
    assert current() is before and isinstance(before, Cancellation)
    stop.set()
    with pytest.raises(Cancelled):
        next(tiles)


def test_what_is_wrong_with_tiles_is_said_at_once(picture: infgen_rt.Picture) -> None:
    with pytest.raises(PlanError):
        picture.tiles(region=(0, 0, 10_000, 10))
    with pytest.raises(TypeError):
        picture.tiles(dtype=np.int8)  # type: ignore[call-overload]
