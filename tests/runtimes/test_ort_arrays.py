"""Arrays that stay where ONNX Runtime computes: as NumPy's, on the CPU in place of a GPU."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import infgen_rt
from infgen_rt.common.pixels import fetch
from infgen_rt.geometry.shapes import Box
from infgen_runtimes import onnxruntime as backend
from infgen_runtimes.ort_arrays import Array, Place

from ..rt import tiny

pytestmark = pytest.mark.filterwarnings("ignore::infgen_rt.InfGenWarning")
PLACE = Place("cpu", 0, lambda content: onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"]))


def array(values: np.ndarray) -> Array:
    return Array(PLACE, onnxruntime.OrtValue.ortvalue_from_numpy(values))


def numbers(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(0.5, 0.4, shape).astype(np.float32)


@st.composite
def cuts(draw: Any, sides: int = 3) -> list[tuple[slice, ...]]:
    """Parts of parts, all of at least one place."""

    def bounds() -> st.SearchStrategy[slice]:
        return st.builds(slice, st.none() | st.integers(0, 1), st.none() | st.integers(4, 9))

    return draw(st.lists(st.tuples(*[bounds()] * sides), max_size=2))


@settings(max_examples=60)
@given(parts=cuts(), drop=st.booleans())
def test_parts_are_those_of_numpy(parts: list[tuple[slice, ...]], drop: bool) -> None:
    values = numbers(1, 9, 8, 7)
    ours, theirs = array(values), values
    if drop:
        ours, theirs = ours[0], theirs[0]
    for part in parts:
        if theirs[part].size:
            ours, theirs = ours[part], theirs[part]
    assert ours.shape == theirs.shape
    assert (ours.fetch(np.float32) == theirs).all()
    for number in (np.uint8, np.uint16):
        levels = ours.fetch(number)
        assert levels.dtype == number
        # Halves that are rounded in another order.
        assert np.abs(levels.astype(int) - fetch(np.ascontiguousarray(theirs), number)).max() <= (number is np.uint16)


@pytest.mark.parametrize("axis", [2, 3])
def test_joined_are_those_of_numpy(axis: int) -> None:
    values = [numbers(1, 3, 5, 5), numbers(1, 3, 5, 5)[..., ::-1].copy(), numbers(1, 3, 5, 5)]
    ours = [array(each)[:, 1:, 1:4, 1:4] for each in values]
    theirs = [each[:, 1:, 1:4, 1:4] for each in values]
    assert (np.concatenate(ours, axis=axis).fetch(np.float32) == np.concatenate(theirs, axis=axis)).all()
    assert (np.concatenate(ours[:1], axis=axis).fetch(np.float32) == theirs[0]).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_found(bad: float) -> None:
    values = numbers(1, 3, 6, 6)
    assert array(values).isfinite().all()
    values[0, 1, 5, 5] = bad
    assert not array(values).isfinite().all()
    assert array(values)[0][:, :5, :5].isfinite().all()


@pytest.mark.parametrize("index", [1, (slice(0, 4, 2),), (slice(None),) * 5, ([0, 1],)])
def test_other_parts_are_refused(index: object) -> None:
    with pytest.raises(TypeError, match="cannot index an array of shape"):
        array(numbers(1, 3, 4, 4))[index]


def test_the_graphs_are_what_the_script_makes() -> None:
    made = Path(backend.__file__).parents[1] / "make_graphs.py"
    namespace: dict[str, Any] = {"__file__": str(made), "__name__": "make_graphs"}
    exec(compile(made.read_text(), made, "exec"), namespace)
    graphs = namespace["graphs"]()
    assert {file.stem for file in namespace["FOLDER"].glob("*.onnx")} == set(graphs)
    for name, graph in graphs.items():
        assert onnx.load(namespace["FOLDER"] / f"{name}.onnx") == graph


def test_a_decoder_gives_the_same_picture_by_them(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    latent, size, options = tiny.random_latent(9, 12), (301, 200), {"tile": 64}
    with infgen_rt.open(bundle, "onnxruntime") as decoder:
        expected = decoder.picture(latent, size, **options).read()
        floats = decoder.picture(latent, size, **options).read(dtype=np.float32)
        staged = decoder.picture(latent, (384, 288), stages=(2, 2), **options).read()
    monkeypatch.setattr(backend, "_place", lambda _: PLACE)
    with infgen_rt.open(bundle, "onnxruntime") as decoder:
        picture = decoder.picture(latent, size, **options)
        assert np.abs(picture.read().astype(int) - expected).max() <= 1
        assert np.abs(picture.read(dtype=np.float32) - floats).max() < 1e-5
        context = picture._stage.contexts.of(picture.plan.stages[0].enlargement)
        assert isinstance(context.read(Box(2, 1, 3, 2)), Array)
        again = decoder.picture(latent, (384, 288), stages=(2, 2), **options).read()
        assert np.abs(again.astype(int) - staged).max() <= 1
        with pytest.raises(infgen_rt.Cancelled):
            decoder.picture(latent, size).read(cancel=lambda: True)
