"""Each picture loads only the graphs that it needs, each of them once, in the one form in which it runs."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import infgen_rt

LATENT = infgen_rt.load_sample("osprey").latent[:, :12, :16]
MANY = (256, 192)
TILE = 64
pytestmark = pytest.mark.filterwarnings("ignore::infgen_rt.InfGenWarning")


@pytest.fixture(params=["onnxruntime", "openvino"])
def decoder(request: pytest.FixtureRequest) -> Iterator[infgen_rt.Decoder]:
    """The model in the package with two threads, so that both backends decode two tiles at the same time."""
    pytest.importorskip(request.param)
    with infgen_rt.open(backend=request.param, precision="exact", threads=2) as opened:
        yield opened


@pytest.fixture
def loads(decoder: infgen_rt.Decoder, monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[str, int]]:
    """How often each graph was loaded since the decoder was opened, by its name and its runs at the same time."""
    seen: Counter[tuple[str, int]] = Counter()
    backend = decoder._engine._candidate.backend
    load = backend.load

    def counting(graph: str, files: Any, options: Any) -> Any:
        seen[graph.partition(".")[0], options.runs] += 1
        return load(graph, files, options)

    monkeypatch.setattr(backend, "load", counting)
    return seen


def once(*graphs: tuple[str, int]) -> dict[tuple[str, int], int]:
    return dict.fromkeys(graphs, 1)


def test_a_picture_of_one_tile_loads_decode_for_one_tile(
    decoder: infgen_rt.Decoder, loads: Counter[tuple[str, int]]
) -> None:
    picture = decoder.picture(LATENT)
    assert picture.plan.stages[0].count == 1
    picture.read()
    picture.read((0, 0, 40, 40))
    assert loads == once(("refine1", 1), ("decode1", 1))


def test_a_picture_of_many_tiles_loads_decode_for_several_tiles(
    decoder: infgen_rt.Decoder, loads: Counter[tuple[str, int]]
) -> None:
    picture = decoder.picture(LATENT, MANY, tile=TILE)
    assert picture.plan.workers == 2 and picture.plan.stages[0].count == 12
    first = picture.read()
    assert loads == once(("refine2", 1), ("decode2", 2))
    # Another picture for the same graphs loads nothing.
    assert np.array_equal(decoder.picture(LATENT, MANY, tile=TILE).read(), first)
    assert loads == once(("refine2", 1), ("decode2", 2))


def test_the_other_form_is_loaded_when_a_read_needs_it(
    decoder: infgen_rt.Decoder, loads: Counter[tuple[str, int]]
) -> None:
    whole = decoder.picture(LATENT, MANY, tile=TILE).read().astype(int)
    part = decoder.picture(LATENT, MANY, tile=TILE).read((70, 60, 50, 40)).astype(int)
    assert np.abs(part - whole[60:100, 70:120]).max() <= 1
    assert loads == once(("refine2", 1), ("decode2", 2), ("decode2", 1))


def test_a_second_picture_of_another_size_loads_only_what_is_new(
    decoder: infgen_rt.Decoder, loads: Counter[tuple[str, int]]
) -> None:
    decoder.picture(LATENT, MANY, tile=TILE).read()
    decoder.picture(LATENT, (240, 180), tile=TILE).read()
    assert loads == once(("refine2", 1), ("decode2", 2))
    decoder.picture(LATENT).read()
    assert loads == once(("refine2", 1), ("decode2", 2), ("refine1", 1), ("decode1", 1))


def test_planning_a_picture_loads_no_decode(decoder: infgen_rt.Decoder, loads: Counter[tuple[str, int]]) -> None:
    decoder.picture(LATENT, MANY)
    assert loads == once(("refine2", 1))
