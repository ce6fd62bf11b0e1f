"""What OpenVINO's backend does in less than float32, on any processor: one without bfloat16 computes in float32."""

import functools
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import infgen_rt
from infgen_rt.backend.protocol import Options
from infgen_rt.bundle.folder import Bundle
from infgen_rt.common.memory import MIB
from infgen_rt.errors import DecodeError
from infgen_runtimes import openvino
from infgen_runtimes.openvino import Backend


def test_a_model_that_is_cut_in_two_gives_the_same_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shipped one, each of whose graphs has inputs of its own."""
    latent = infgen_rt.load_sample("osprey").latent[:, 20:36, 20:40]
    with infgen_rt.open(backend="openvino", precision="exact") as decoder:
        whole = decoder.picture(latent, "2x", stages=(1, 2)).read()
    monkeypatch.setattr(Backend, "arithmetics", lambda self, device, recipe: ("bf16",))
    with infgen_rt.open(backend="openvino", device="cpu") as decoder:
        assert decoder.backend.arithmetic == "bf16"
        halves = decoder.picture(latent, "2x", stages=(1, 2)).read()
    error = np.square(whole.astype(float) - halves).mean()
    assert 10 * np.log10(255**2 / max(error, 1e-9)) >= 45


def test_several_runs_at_a_time_give_what_one_gives_also_after_one_was_stopped() -> None:
    bundle = Bundle.open()
    recipe = next(recipe for recipe in bundle.manifest.recipes if recipe.target == "openvino")
    session = Backend().load("trunk", bundle.read_graph(recipe, "trunk"), Options(threads=1, runs=2))
    rng = np.random.default_rng(0)
    inputs = [{"features": rng.normal(0, 1, (1, 64, 8 + number, 9)).astype(np.float32)} for number in range(6)]
    alone = [session.run(each)["fine"] for each in inputs]
    with ThreadPoolExecutor(3) as pool:
        together = [found["fine"] for found in pool.map(session.run, inputs)]
    with pytest.raises(DecodeError):
        session.run({"features": np.zeros((1, 63, 8, 9), np.float32)})
    after = session.run(inputs[0])["fine"]
    assert after.shape == (1, 67, 64, 72)
    for one, other in zip([*alone, alone[0]], [*together, after], strict=True):
        assert np.array_equal(one, other)
    session.close()
    with pytest.raises(DecodeError, match="closed"):
        session.run(inputs[0])


def test_results_that_are_not_copied_outlive_the_next_run_and_the_session() -> None:
    bundle = Bundle.open()
    recipe = next(recipe for recipe in bundle.manifest.recipes if recipe.target == "openvino")
    session = Backend().load("trunk", bundle.read_graph(recipe, "trunk"), Options(threads=1))
    rng = np.random.default_rng(0)
    inputs = [{"features": rng.normal(0, 1, (1, 64, 8, 9)).astype(np.float32)} for _ in range(3)]
    results = [session.run(each)["fine"] for each in inputs]
    copies = [result.copy() for result in results]
    again = [session.run(each)["fine"] for each in inputs[::-1]]
    session.close()
    assert all(np.array_equal(result, copy) for result, copy in zip(results, copies, strict=True))
    assert all(np.array_equal(result, copy) for result, copy in zip(again[::-1], copies, strict=True))


GROWTH = """
import numpy as np
import psutil
import infgen_rt
latent = infgen_rt.load_sample("osprey").latent
rng = np.random.default_rng(0)
with infgen_rt.open(backend="openvino", precision="exact", threads=1) as decoder:
    for number in range(72):
        height, width = rng.integers(5, 14, 2)
        decoder.picture(latent[:, :height, :width], ("1x", "2x", "4x")[number % 3]).read()
        if number in (35, 71):
            print(psutil.Process().memory_info().rss)
"""


@pytest.mark.slow
def test_pictures_of_ever_new_sizes_take_no_more_memory() -> None:
    """OpenVINO prepares every operation for every shape, and would keep thousands of them."""
    process = subprocess.run([sys.executable, "-c", GROWTH], capture_output=True, text=True, check=True)
    first, second = map(int, process.stdout.split())
    assert second - first < 60 * MIB


PEAK = """
import sys
import time
import infgen_rt
from infgen_rt.common.memory import peak_memory
latent = infgen_rt.load_sample("osprey").latent[:, 20:44, 20:52]
with infgen_rt.open(backend="openvino", precision=sys.argv[1], memory=sys.argv[2]) as decoder:
    try:
        decoder.picture(latent, "2x").save(sys.argv[3])
    except infgen_rt.PlanError as error:
        sys.exit(str(error))
print(peak_memory())
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peaks are read from /proc")
@pytest.mark.parametrize("precision", ["exact", "fast"])
def test_the_least_memory_that_a_refusal_names_is_enough_and_is_kept_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    """With an empty cache, so that compiling and measuring are a part of it."""
    monkeypatch.setenv("INFGEN_RT_CACHE", str(tmp_path / "cache"))
    command = [sys.executable, "-c", PEAK, precision]
    refused = subprocess.run([*command, "200MiB", str(tmp_path / "a.png")], capture_output=True, text=True)
    least = re.search(r"needs at least ([\d.]+) MiB", refused.stderr)
    assert refused.returncode and least is not None, refused.stderr
    limit = int(float(least[1]) + 1) * MIB
    done = subprocess.run([*command, str(limit), str(tmp_path / "a.png")], capture_output=True, text=True, check=True)
    assert int(done.stdout) <= 1.1 * limit


_SIGNALLED = """
import signal, sys
import openvino
from infgen_export.targets.openvino import Session

def handler(number, frame):
    print("handled")

value = openvino.opset8.parameter([1, 4], name="x")
openvino.save_model(openvino.Model([openvino.opset8.relu(value)], [value]), sys.argv[1])
sessions = [Session(sys.argv[1]) for _ in range(4)]
while sessions:
    del sessions[0]
signal.signal(signal.SIGINT, handler)
signal.raise_signal(signal.SIGINT)
"""


def test_a_signal_is_handled_after_graphs_were_loaded_and_deleted(tmp_path: Path) -> None:
    """With a core for each graph, OpenVINO leaves a stack for signal handlers that no longer exists."""
    done = subprocess.run([sys.executable, "-c", _SIGNALLED, tmp_path / "graph.xml"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr


_MALLOCS = [
    file
    for name in ("tcmalloc_minimal", "tcmalloc", "jemalloc", "mimalloc")
    for file in sorted(Path("/usr/lib").glob(f"*/lib{name}.so.*"))
]


@pytest.mark.skipif(not _MALLOCS, reason="no other malloc is installed")
def test_another_malloc_that_was_preloaded_does_no_harm() -> None:
    environment = {**os.environ, "LD_PRELOAD": str(_MALLOCS[0])}
    environment.pop("TBB_ENABLE_SANITIZERS", None)
    script = "from infgen_runtimes.openvino import Backend; print(*(device.id for device in Backend().devices()))"
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "cpu" in done.stdout.split(), done.stderr


def test_threads_that_start_together_share_one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    """If one of two were deleted, the next signal could crash the process."""
    made: list[object] = []

    def core() -> object:
        time.sleep(0.05)
        made.append(object())
        return made[-1]

    monkeypatch.setattr(openvino.ov, "Core", core)
    monkeypatch.setattr(openvino, "keep_in_children", lambda _: None)
    monkeypatch.setattr(openvino, "_core", functools.cache(openvino._core.__wrapped__))
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: openvino.shared_core(), range(4)))
    assert len(made) == 1 and set(found) == set(made)
