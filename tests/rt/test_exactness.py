"""Pixels must not depend on how a picture is cut up."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import infgen_rt
from infgen_rt.common.pixels import FloatArray

from . import tiny

# Seven and thirteen cells: neither divides anything.
LATENT = tiny.random_latent(7, 13)
SIZES = [(104, 56), (208, 112), (333, 201), (101, 77), (52, 28), (411, 131)]

pytestmark = pytest.mark.filterwarnings("ignore::infgen_rt.InfGenWarning")


def read(bundle: Path, size: tuple[int, int], tile: int | None) -> FloatArray:
    with infgen_rt.open(bundle) as decoder:
        return decoder.picture(LATENT, size, tile=tile).read(dtype=np.float32)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("tile", [None, 64, 24, 8])
def test_any_tiling_gives_the_picture_decoded_at_once(bundle: Path, size: tuple[int, int], tile: int | None) -> None:
    assert np.abs(read(bundle, size, tile) - tiny.decode_whole(LATENT, size)).max() < 1e-5


@pytest.mark.parametrize("halo", [{"halo_tokens": 0}, {"halo_tokens": 1}, {"halo_cells": 0.5}])
def test_the_tiny_model_needs_its_halos(tmp_path: Path, halo: dict[str, float]) -> None:
    """Without this the tests above could pass on a runtime that ignores halos."""
    damaged = tiny.write_bundle(tmp_path, **halo)
    assert np.abs(read(damaged, (333, 201), 64) - tiny.decode_whole(LATENT, (333, 201))).max() > 0.01


def test_a_model_that_looks_everywhere_is_exact_too(tmp_path: Path) -> None:
    everywhere = tiny.write_bundle(tmp_path, halo_cells=None)
    assert np.abs(read(everywhere, (333, 201), 64) - tiny.decode_whole(LATENT, (333, 201))).max() < 1e-5


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_region_at_any_scale(decoder: infgen_rt.Decoder, data: st.DataObject) -> None:
    size = (data.draw(st.integers(52, 380), "width"), data.draw(st.integers(28, 224), "height"))
    picture = decoder.picture(LATENT, size, tile=data.draw(st.sampled_from([None, 16, 64, 120]), "tile"))
    whole = tiny.decode_whole(LATENT, size)
    for _ in range(3):
        x, y = data.draw(st.integers(0, size[0] - 1), "x"), data.draw(st.integers(0, size[1] - 1), "y")
        width, height = data.draw(st.integers(1, size[0] - x)), data.draw(st.integers(1, size[1] - y))
        expected = whole[y : y + height, x : x + width]
        region = picture.read((x, y, width, height), dtype=np.float32)
        assert np.abs(region - expected).max() < 1e-5
        rounded = picture.read((x, y, width, height)).astype(int)
        assert np.abs(rounded - np.floor(expected * 255 + 0.5)).max() <= 1
