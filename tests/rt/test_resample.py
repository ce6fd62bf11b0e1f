"""Beyond the trained scales: Lanczos of the nearest trained picture, the same for any region."""

from math import inf

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from PIL import Image

import infgen_rt

from . import tiny

pytestmark = pytest.mark.filterwarnings("ignore::infgen_rt.InfGenWarning")
LATENT = tiny.random_latent(5, 7)


def by_hand(size: tuple[int, int]) -> np.ndarray:
    """The picture of the nearest trained scale, each way, resampled by Pillow as a whole."""
    between = min(max(size[0], 28), 4 * 56), min(max(size[1], 20), 4 * 40)
    planes = tiny.decode_whole(LATENT, between).transpose(2, 0, 1)
    enlarged = [Image.fromarray(plane).resize(size, Image.Resampling.LANCZOS) for plane in np.ascontiguousarray(planes)]
    return np.clip(np.stack([np.asarray(plane) for plane in enlarged], -1), 0, 1)


@settings(
    deadline=None,
    max_examples=30,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.filter_too_much],
)
@given(
    width=st.integers(14, 700),
    height=st.integers(10, 500),
    tile=st.sampled_from([None, 16, 64, 120]),
    data=st.data(),
)
def test_any_region_is_that_of_the_whole(
    decoder: infgen_rt.Decoder, width: int, height: int, tile: int | None, data: st.DataObject
) -> None:
    assume(not (28 <= width <= 4 * 56 and 20 <= height <= 4 * 40))
    expected = by_hand((width, height))
    picture = decoder.picture(LATENT, (width, height), tile=tile, max_scale=inf)
    assert "by Lanczos" in str(picture.plan)
    for _ in range(3):
        x, y = data.draw(st.integers(0, width - 1), "x"), data.draw(st.integers(0, height - 1), "y")
        box = (x, y, data.draw(st.integers(1, width - x)), data.draw(st.integers(1, height - y)))
        region = picture.read(box, dtype=np.float32)
        assert np.abs(region - expected[y : y + box[3], x : x + box[2]]).max() < 1e-4


def test_stages_that_were_asked_for_are_done_as_asked(decoder: infgen_rt.Decoder) -> None:
    size = (6 * 56, 6 * 40)
    direct = decoder.picture(LATENT, size, stages=(6,))
    assert "by Lanczos" not in str(direct.plan)
    assert np.abs(direct.read(dtype=np.float32) - tiny.decode_whole(LATENT, size)).max() < 1e-5


def test_a_warning_says_what_is_done(decoder: infgen_rt.Decoder) -> None:
    with pytest.warns(
        infgen_rt.InfGenWarning,
        match="0.5 to 4 times, what is beyond is enlarged by Lanczos; .* is within that$",
    ):
        decoder.picture(LATENT, "6x", max_scale=inf)
    assert len(decoder.picture(LATENT, "6x", max_scale=4).plan.stages) == 2
    with pytest.warns(infgen_rt.InfGenWarning, match="trained for 0.5 to 4 times; .* is within that$"):
        decoder.picture(LATENT, "6x", stages=(6,))
