"""What every backend promises, wherever it can run: the same pixels, whatever is asked for in whatever order."""

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import psutil
import pytest

import infgen_rt
from infgen_rt.backend.candidates import Survey
from infgen_rt.backend.engine import is_finite
from infgen_rt.backend.protocol import Options
from infgen_rt.bundle.assembly import PARTS
from infgen_rt.bundle.folder import Bundle
from infgen_rt.common import cancellation
from infgen_rt.common.memory import MIB, give_back
from infgen_rt.common.pixels import Number, fetch
from infgen_rt.errors import BackendError, Cancelled, DecodeError, PlanError
from infgen_rt.geometry.shapes import Box, Size

from ..export import tiny
from ..rt.signals import KINDS, Own, arriving_in, handled
from .conftest import CONFIG, Interpreted, Open

pytestmark = pytest.mark.filterwarnings("ignore::infgen_rt.InfGenWarning")
CHANNELS = CONFIG.latent_channels
# Latent rows and columns, and the picture's width and height: large after small, wide after tall.
JOBS = (
    *(((5, 7), (120, 90)), ((9, 4), (64, 300)), ((1, 1), (8, 8))),
    *(((6, 12), (401, 203)), ((5, 7), (56, 40)), ((4, 5), (80, 64))),
)


def latent(shape: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(sum(shape)).normal(0, 0.8, (CHANNELS, *shape)).astype(np.float32)


def close(pixels: np.ndarray, expected: np.ndarray, way: tuple[str, str, str]) -> bool:
    """Within a level of 255, or 45 dB in less precision."""
    difference = pixels.astype(float) - expected
    if way[2] == "exact":
        return bool(np.abs(difference).max() <= 1)
    return 10 * np.log10(255**2 / max(np.square(difference).mean(), 1e-9)) >= 45


@cache
def decoded(decoder: infgen_rt.Decoder) -> list[np.ndarray]:
    return [decoder.picture(latent(shape), size).read() for shape, size in JOBS]


@pytest.fixture
def reference(exact: infgen_rt.Decoder) -> list[np.ndarray]:
    return decoded(exact)


def test_the_same_pixels_for_shapes_in_any_order(
    decoder: infgen_rt.Decoder, way: tuple[str, str, str], reference: list[np.ndarray]
) -> None:
    assert (decoder.backend.name, decoder.backend.device.split(":")[0]) == way[:2]
    assert (decoder.backend.arithmetic == "fp32") or way[2] == "fast"
    for (shape, size), expected in [*zip(JOBS, reference, strict=True)] + [(JOBS[0], reference[0])]:
        assert close(decoder.picture(latent(shape), size).read(), expected, way)


def test_tiles_and_regions_are_those_of_the_whole(decoder: infgen_rt.Decoder, way: tuple[str, str, str]) -> None:
    whole = decoder.picture(latent((6, 12)), (401, 203)).read()
    tiled = decoder.picture(latent((6, 12)), (401, 203), tile=128)
    assert tiled.plan.stages[0].count == 8
    assert close(tiled.read(), whole, way)
    assert close(tiled.read((97, 51, 200, 99)), whole[51:150, 97:297], way)


def test_a_second_stage_is_that_of_the_reference(
    decoder: infgen_rt.Decoder, exact: infgen_rt.Decoder, way: tuple[str, str, str]
) -> None:
    # On the Neural Engine always, and elsewhere when it was measured to be the fastest.
    if decoder.backend.recipe == "coreml-ane":
        with pytest.raises(PlanError, match="2 stages need shapes of any size, and 'coreml-ane' has fixed ones"):
            decoder.picture(latent((4, 6)), (192, 128), stages=(2, 2))
        return
    expected = exact.picture(latent((4, 6)), (192, 128), stages=(2, 2)).read()
    picture = decoder.picture(latent((4, 6)), (192, 128), stages=(2, 2), tile=32)
    assert picture.plan.encodings[0].tiling.count == 2
    assert close(picture.read(), expected, way)


def test_a_picture_is_encoded_as_by_the_reference_in_tiles_too(
    decoder: infgen_rt.Decoder,
    exact: infgen_rt.Decoder,
    way: tuple[str, str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The model's encoder has statistics of the whole picture."""
    pixels = np.random.default_rng(0).integers(0, 256, (80, 136, 3), dtype=np.uint8)
    if decoder.backend.recipe == "coreml-ane":
        with pytest.raises(PlanError, match="has fixed shapes and cannot encode pictures"):
            decoder.encode(pixels)
        return
    expected = exact.encode(pixels)
    whole = decoder.encode(pixels)
    monkeypatch.setattr("infgen_rt.plan.encoding.LARGEST_TILE", 4)
    tiled = decoder.encode(pixels)
    least = 80 if way[2] == "exact" else 40
    for latent in (whole, tiled):
        assert 20 * np.log10(np.abs(expected).max() / np.sqrt(np.square(latent - expected).mean())) > least


def test_several_threads_share_a_decoder(decoder: infgen_rt.Decoder, way: tuple[str, str, str]) -> None:
    boxes = [(x, y, 90, 70) for x in (0, 100, 300) for y in (0, 60, 130)]
    picture = decoder.picture(latent((6, 12)), (401, 203), tile=128)
    with ThreadPoolExecutor(3) as pool:
        parts = list(pool.map(picture.read, boxes))
    whole = picture.read()
    for (x, y, width, height), part in zip(boxes, parts, strict=True):
        assert close(part, whole[y : y + height, x : x + width], way)


def test_closing_frees_and_reopening_works(target: Path, open_way: Open) -> None:
    for _ in range(2):
        decoder = open_way(target)
        picture = decoder.picture(latent((4, 4)))
        picture.read()
        decoder.close()
        decoder.close()
        with pytest.raises(DecodeError, match="closed"):
            decoder.picture(latent((4, 4)), (64, 64)).read()


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is compared")
@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_a_session_keeps_its_working_memory_until_it_is_released(name: str) -> None:
    bundle = Bundle.open()
    candidate = Survey.of(bundle.manifest, name, "cpu").candidates[0]
    session = candidate.backend.load("trunk", bundle.read_graph(candidate.recipe, "trunk"), Options(threads=2))
    features = {"features": np.random.default_rng(0).normal(0, 1, (1, 64, 40, 40)).astype(np.float32)}
    before = session.run(features)["fine"].copy()
    kept = psutil.Process().memory_info().rss
    session.release()
    give_back()
    assert kept - psutil.Process().memory_info().rss > 40 * MIB  # it needs 70 to 80 kB per cell
    assert np.array_equal(session.run(features)["fine"], before)
    session.close()
    session.release()  # nothing is left to release


def test_threads_are_taken(target: Path, open_way: Open) -> None:
    with open_way(target, threads=1) as decoder:
        assert decoder.picture(latent((4, 4))).read().shape == (32, 32, 3)


def test_the_jobs_need_every_enlargement(portable: Path) -> None:
    with infgen_rt.open(portable, "onnxruntime") as decoder:
        plans = [decoder.picture(latent(shape), size).plan for shape, size in JOBS]
    assert {plan.stages[0].enlargement.factor for plan in plans} == {1, 2, 4}


@pytest.mark.parametrize("damage", ["rubbish", "empty"])
@pytest.mark.parametrize("graph", ["prefill", "decode"])
def test_graphs_that_are_none_are_refused_in_one_line(
    target: Path, open_way: Open, tmp_path: Path, graph: str, damage: str
) -> None:
    """What all pictures need when the model is opened, decode at the latest when it first runs."""
    import hashlib

    bundle = shutil.copytree(target, tmp_path / "bundle")
    manifest = json.loads((bundle / "manifest.json").read_text())
    content = b"rubbish" * 99 if damage == "rubbish" else b""
    for name in manifest["files"]:
        # PyTorch's graphs have one file. The parts of a file of weights are not a graph.
        if (f".{graph}" in name or name.startswith("torch")) and not name.endswith(PARTS):
            (bundle / name).write_bytes(content)
            manifest["files"][name] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    with (
        pytest.raises(BackendError, match=r"cannot load|nothing that was tried runs") as caught,
        open_way(bundle) as decoder,
    ):
        assert graph == "decode"
        decoder.picture(latent((5, 7))).read()
    assert "\n" not in str(caught.value)


def test_cancelling_stops_between_tiles(decoder: infgen_rt.Decoder, tmp_path: Path) -> None:
    cancel, done = Event(), []

    def progress(step: infgen_rt.Progress) -> None:
        done.append(step)
        if len(done) == 3:
            cancel.set()

    picture = decoder.picture(latent((6, 12)), (401, 203), tile=64)
    with pytest.raises(Cancelled):
        picture.save(tmp_path / "out.png", progress=progress, cancel=cancel)
    assert len(done) == 3 and list(tmp_path.iterdir()) == []


def test_a_run_that_is_interrupted_stops_and_the_next_ones_are_whole(
    target: Path,
    open_way: Open,
    way: tuple[str, str, str],
    reference: list[np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    large = latent((48, 48))
    if way[0] == "openvino":
        # Graphs that were compiled before are in the usual folder, without the operation that interrupts them.
        monkeypatch.setenv("INFGEN_RT_CACHE", str(tmp_path))
        interrupt_from_within_openvino(monkeypatch)
    with open_way(target) as decoder:
        pictures = [decoder.picture(latent(shape), size) for shape, size in JOBS]
        assert close(pictures[0].read(), reference[0], way)
        if way[0] == "coreml":
            decoder.picture(latent((9, 9))).read(cancel=lambda: False)
        else:
            decoder.picture(large).read((0, 0, 8, 8))
            # Refine of the smallest enlargement takes too short to be interrupted.
            for graph in ("statistics", "prefill", "trunk", "decode1"):
                session = decoder._engine._sessions[graph]
                stop_in_the_middle(session, partial(decoder.picture(large).read, (0, 0, 200, 200)))
        for picture, expected in zip(pictures[1:], reference[1:], strict=True):
            assert close(picture.read(), expected, way)


INTERRUPTS: list[Callable[[], object]] = []
"""What interrupts the run that is being stopped in the middle."""


def stop_in_the_middle(session: Any, work: Callable[..., object]) -> None:
    """Cancel work once a session runs. The run must not be finished."""
    started, finished, run = Event(), Event(), session.run

    def watched(inputs: dict[str, Any]) -> Any:
        # Before it has begun there is nothing to interrupt; PyTorch asks before each layer.
        cancellation.current().check()
        started.set()
        results = run(inputs)
        finished.set()
        return results

    @contextmanager
    def interrupting(self: cancellation.Cancellation, interrupt: Callable[[], object]) -> Iterator[None]:
        if not started.is_set():
            yield
            return
        # ONNX Runtime heeds this from the first operation on. OpenVINO heeds only what comes during the run.
        interrupt()
        INTERRUPTS.append(interrupt)
        try:
            yield
        finally:
            INTERRUPTS.remove(interrupt)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "run", watched)
        patch.setattr(cancellation.Cancellation, "interrupting", interrupting)
        with pytest.raises(Cancelled):
            work(cancel=started.is_set)
    assert started.is_set() and not finished.is_set()


def interrupt_from_within_openvino(patch: pytest.MonkeyPatch) -> None:
    """Add an operation to all graphs that OpenVINO compiles, which calls what interrupts the run that it is a part of.

    Another thread would have to interrupt the run before it ends, which is not certain.
    """
    import openvino as ov

    compile_model = ov.Core.compile_model

    class Interrupting(ov.Op):  # type: ignore[misc]
        """Passes its input on."""

        def __init__(self, inputs: Any = None) -> None:
            super().__init__(self, inputs)

        def validate_and_infer_types(self) -> None:
            self.set_output_type(0, self.get_input_element_type(0), self.get_input_partial_shape(0))

        def clone_with_new_inputs(self, inputs: Any) -> "Interrupting":
            return Interrupting(inputs)

        def has_evaluate(self) -> bool:
            return True

        def evaluate(self, outputs: Any, inputs: Any) -> bool:
            outputs[0].shape = inputs[0].shape
            inputs[0].copy_to(outputs[0])
            for interrupt in INTERRUPTS:
                interrupt()
            return True

    def compile_watched(core: ov.Core, model: ov.Model, *arguments: Any) -> Any:
        watched = model.clone()
        for parameter in watched.get_parameters():
            if parameter.get_partial_shape().rank.get_length() == 4:
                readers = parameter.output(0).get_target_inputs()
                values = Interrupting([parameter.output(0)]).output(0)
                for reader in readers:
                    reader.replace_source_output(values)
        watched.validate_nodes_and_infer_types()
        return compile_model(core, watched, *arguments)

    patch.setattr(ov.Core, "compile_model", compile_watched)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("during", ["load", "run"])
def test_an_error_of_a_signals_handler_stays_what_it_is(
    request: pytest.FixtureRequest,
    target: Path,
    open_way: Open,
    way: tuple[str, str, str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    during: str,
    kind: type[Own],
) -> None:
    if during == "load":
        # A graph that was compiled before would be loaded in another way.
        monkeypatch.setenv("INFGEN_RT_CACHE", str(tmp_path))
        arriving_in(monkeypatch, *native(way[0])[0])
        with handled(kind), pytest.raises(kind):
            open_way(target)
        return
    decoder: infgen_rt.Decoder = request.getfixturevalue("decoder")
    picture = decoder.picture(latent((4, 4)))
    with monkeypatch.context() as patch, handled(kind), pytest.raises(kind):
        arriving_in(patch, *native(way[0])[1])
        picture.read()
    assert picture.read().shape == (32, 32, 3)


def native(backend: str) -> tuple[tuple[Any, str], tuple[Any, str]]:
    """A function of a backend's library that loads a graph, and one that runs it."""
    if backend == "onnxruntime":
        import onnxruntime

        return (onnxruntime.InferenceSession, "_create_inference_session"), (onnxruntime.InferenceSession, "run")
    if backend == "openvino":
        import openvino

        return (openvino.Core, "compile_model"), (openvino.InferRequest, "wait")
    if backend == "torch":
        import torch

        return (torch.nn.Module, "load_state_dict"), (torch.nn.Module, "__call__")
    return (Interpreted, "__init__"), (Interpreted, "predict")


def test_a_device_that_does_not_exist_is_refused(target: Path, way: tuple[str, str, str]) -> None:
    with pytest.raises(BackendError, match=f"{way[0]}' knows no device 'cuda:97': here it has") as caught:
        infgen_rt.open(target, way[0], device="cuda:97")
    assert way[1] in str(caught.value)


def test_the_plan_and_the_choice_say_what_it_costs(decoder: infgen_rt.Decoder, way: tuple[str, str, str]) -> None:
    plan = decoder.picture(latent((4, 4))).plan
    assert plan.runs is decoder.backend
    assert f"{way[0]} on " in str(plan) and decoder.backend.arithmetic in str(plan)
    assert decoder.backend.reason


def test_pytorchs_graphs_share_their_weights(portable: Path) -> None:
    """Those of several enlargements are in the bundle once."""
    from safetensors.numpy import load_file

    from infgen_rt.bundle.folder import Bundle

    manifest = Bundle.open(portable).manifest
    recipe = next(each for each in manifest.recipes if each.target == "torch")
    assert set(recipe.graphs) == set(tiny.graph_names(tiny.model(CONFIG)))
    (file,) = set(recipe.graphs.values())
    stored = json.loads((portable / file).read_text())["weights"]
    expected = tiny.model(CONFIG).state_dict()
    found = load_file(portable / recipe.weights)
    assert stored.keys() == expected.keys()
    assert all(np.array_equal(found[stored[name]].ravel(), value.numpy().ravel()) for name, value in expected.items())


@pytest.mark.slow
def test_weights_of_several_targets_are_in_the_bundle_once(with_coreml: Path) -> None:
    from safetensors.numpy import load_file

    found = load_file(with_coreml / "weights.safetensors")
    contents = [(value.dtype.str, value.tobytes()) for value in found.values()]
    assert len(set(contents)) == len(contents)
    parameters = sum(value.numel() for value in tiny.model(CONFIG).state_dict().values())
    # The recipes have the weights in 4 and in 2 bytes. Targets keep some products of weights, and constants of shapes,
    # beside the weights themselves. Programs with fixed shapes have many more, such as matrices that resample.
    kept = sum(value.nbytes for name, value in found.items() if not name.startswith("coreml-ane."))
    assert 6 * parameters < kept < 1.7 * 6 * parameters
    assert not list(with_coreml.rglob("weight.bin"))


def test_pytorch_keeps_a_context_where_decode_wants_it(portable: Path) -> None:
    import torch

    from infgen_rt.backend.choice import choose
    from infgen_rt.backend.engine import Engine
    from infgen_rt.bundle.folder import Bundle
    from infgen_rt.geometry.tiling import HaloTiling, Tiling
    from infgen_rt.nodes.context import ContextPlan, Contexts
    from infgen_rt.nodes.latents import Given
    from infgen_rt.nodes.moments import Gathering

    opened = Bundle.open(portable)
    engine = Engine(opened, choose(opened, "torch", precision="exact")[0])
    enlargement = opened.manifest.contexts[0]
    engine.load_for(enlargement)
    whole = engine.context(latent((15, 17)), enlargement)
    assert isinstance(whole, torch.Tensor) and whole.shape == (1, enlargement.channels, 15, 17)
    tiling, halo = Tiling.of(Size(17, 15), Size(6, 6)), opened.manifest.halo
    assert opened.manifest.moments is not None
    gathering = Gathering(HaloTiling(tiling, halo.prefill), opened.manifest.moments[0])
    context = Contexts(Given(latent((15, 17)), engine), engine)
    context.plan(ContextPlan(HaloTiling(tiling, enlargement.halo), 10**6, gathering), enlargement)
    joined = context.of(enlargement).read(Box(4, 2, 13, 13))
    assert isinstance(joined, torch.Tensor) and torch.allclose(joined, whole[:, :, 2:15, 4:17], atol=1e-5)
    engine.close()


@pytest.mark.parametrize("number", [np.uint8, np.uint16, np.float32])
def test_pytorch_rounds_pixels_where_they_are_as_the_runtime_does(number: Number) -> None:
    import torch

    from infgen_runtimes.torch import Pixels

    planes = np.random.default_rng(0).uniform(-0.2, 1.2, (3, 40, 50)).astype(np.float32)
    made = Pixels(torch.from_numpy(planes))[:, 3:30, 7:50]
    assert made.shape == (3, 27, 43) and is_finite(made)
    fetched = fetch(made, number)
    assert fetched.dtype == number and np.array_equal(fetched, fetch(planes[:, 3:30, 7:50], number))
    assert not is_finite(Pixels(torch.tensor([1.0, np.nan])))
