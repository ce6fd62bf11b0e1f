"""Too few threads and too little memory: work goes on where it can, and otherwise one clear line says what to do."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import infgen_rt
from infgen_rt.backend import measuring
from infgen_rt.backend.candidates import Survey
from infgen_rt.bundle.folder import Bundle
from infgen_rt.cli.main import main
from infgen_rt.common.limits import available_memory
from infgen_rt.common.shortages import Shortages, remedy
from infgen_rt.common.threads import Pool
from infgen_rt.errors import Cancelled, DecodeError, InfGenError
from infgen_rt.viewing import TileReader
from infgen_rt.viewing.server import TileServer

from . import tiny

LATENT = tiny.random_latent(18, 22)
SIZE = (642, 525)
_STACK = 2**46
"""More than the address space, in bytes, so that the system cannot make a thread with such a stack."""
linux = pytest.mark.skipif(sys.platform != "linux", reason="needs the limits of Linux")


@pytest.fixture
def no_threads(decoder: infgen_rt.Decoder) -> Iterator[None]:
    """From now on, the system allows Python no further thread."""
    before = threading.stack_size(_STACK)
    try:
        threading.Thread(target=int).start()
    except RuntimeError:
        yield
    else:
        pytest.skip("this system allows threads with stacks of any size")
    finally:
        threading.stack_size(before)


@pytest.fixture
def picture(decoder: infgen_rt.Decoder) -> infgen_rt.Picture:
    return decoder.picture(LATENT, SIZE, tile=64, normalisation="model")


def saved(picture: infgen_rt.Picture, folder: Path, ending: str) -> dict[str, bytes]:
    folder.mkdir()
    picture.save(folder / f"a{ending}", progress=lambda _: None, cancel=threading.Event())
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*.*")}


@pytest.mark.parametrize("ending", [".png", ".dzi", ".jpg", ".tif"])
def test_without_threads_the_files_are_the_same(
    picture: infgen_rt.Picture, tmp_path: Path, ending: str, request: pytest.FixtureRequest
) -> None:
    usual = saved(picture, tmp_path / "usual", ending)
    request.getfixturevalue("no_threads")
    picture.keep(0)
    assert saved(picture, tmp_path / "without", ending) == usual


def test_without_threads_pixels_and_tiles_are_the_same(
    picture: infgen_rt.Picture, request: pytest.FixtureRequest
) -> None:
    usual = picture.read()
    request.getfixturevalue("no_threads")
    picture.keep(0)
    assert np.array_equal(picture.read(cancel=lambda: False), usual)
    for box, pixels in picture.tiles(cancel=lambda: False):
        assert np.array_equal(pixels, usual[box.slices])


@pytest.mark.usefixtures("no_threads")
def test_without_threads_many_pictures_are_written_one_after_another(
    decoder: infgen_rt.Decoder, tmp_path: Path
) -> None:
    told: list[Path] = []
    names = [tmp_path / f"{number}.png" for number in range(3)] + [tmp_path / "no/a.png"]
    pictures = ((decoder.picture(LATENT, normalisation="model"), name) for name in names)
    failed = infgen_rt.save_pictures(pictures, progress=lambda path, _: told.append(path))
    assert list(failed) == names[3:] and list(dict.fromkeys(told)) == names[:3]
    assert all(name.is_file() for name in names[:3])


@pytest.mark.usefixtures("no_threads")
def test_without_threads_cancelling_still_works(picture: infgen_rt.Picture, tmp_path: Path) -> None:
    stop = threading.Event()
    with pytest.raises(Cancelled):
        picture.save(tmp_path / "a.png", progress=lambda _: stop.set(), cancel=stop)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("no_threads")
def test_without_threads_the_command_line_writes_a_picture(bundle: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", LATENT)
    options = ["--model", str(bundle), "--normalisation", "model", "-o", str(tmp_path / "a.png")]
    assert main(["decode", str(tmp_path / "a.npy"), *options]) == 0
    assert (tmp_path / "a.png").is_file()


@pytest.mark.usefixtures("no_threads")
def test_without_threads_ways_are_measured(bundle: Path) -> None:
    opened = Bundle.open(bundle)
    candidates = Survey.of(opened.manifest, "onnxruntime", "cpu").candidates
    assert [result.error for result in measuring.measure(opened, candidates, 2)] == [None] * len(candidates)


@pytest.mark.usefixtures("no_threads")
@pytest.mark.parametrize("make", [TileReader, lambda picture: TileServer([picture])], ids=["reader", "server"])
def test_what_needs_a_thread_says_so(picture: infgen_rt.Picture, make: Callable[[infgen_rt.Picture], object]) -> None:
    with pytest.raises(DecodeError, match="allowed no thread that reads tiles: close other programs, or raise"):
        make(picture)


def test_a_server_answers_when_it_gets_no_thread_for_a_connection(
    picture: infgen_rt.Picture, request: pytest.FixtureRequest, capfd: pytest.CaptureFixture[str]
) -> None:
    with TileServer([picture]) as server:
        serving = threading.Thread(target=server.serve_forever, args=(0.01,))
        serving.start()
        try:
            request.getfixturevalue("no_threads")
            for _ in range(3):
                with urllib.request.urlopen(f"{server.address}1/info.json", timeout=60) as answer:
                    assert answer.status == 200 and answer.headers["Connection"] == "close"
        finally:
            server.shutdown()
            serving.join()
    assert capfd.readouterr().err == ""


def test_the_threads_that_there_are_do_all_of_the_work(request: pytest.FixtureRequest) -> None:
    seen = []

    def work(number: int) -> int:
        seen.append(threading.current_thread().name)
        return number

    with Pool(4, "few") as pool:
        pool.submit(work, 0).result()
        request.getfixturevalue("no_threads")
        assert list(pool.map(work, range(8))) == list(range(8))
    assert set(seen) == {"few_0"} and len(seen) == 9


def test_a_pool_without_threads_keeps_errors_for_the_one_who_asks(no_threads: None) -> None:
    with Pool(2) as pool:
        failed = pool.submit(int, "x")
        assert pool.submit(int, "7").result() == 7
        with pytest.raises(ValueError, match="invalid literal"):
            failed.result()
        with pytest.raises(KeyboardInterrupt):
            pool.submit(_interrupted)


def _interrupted() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    "text",
    [
        "Exception during initialization: std::bad_alloc",
        "Failed to allocate memory for requested buffer of size 8355840",
        "Unable to allocate 850. KiB for an array with shape (1, 1280, 5, 34)",
        "libopenvino_intel_cpu_plugin.so: failed to map segment from shared object",
        "can't alloc",
        "DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes",
        "could not create a primitive",
        "could not create a memory object",
        "CUDA out of memory. Tried to allocate 2.00 GiB",
    ],
)
def test_too_little_memory_is_recognised_in_the_words_of_each_library(text: str) -> None:
    assert (remedy(text) or "").startswith("there is too little memory: ")


@pytest.mark.parametrize(
    "text", ["can't start new thread", "pthread_create failed, error code: 11", "Resource temporarily unavailable"]
)
def test_missing_threads_are_recognised_in_the_words_of_each_library(text: str) -> None:
    assert (remedy(text) or "").startswith("the system allowed no further thread: pass threads=1 (--threads 1)")


@pytest.mark.parametrize("text", ["", "invalid argument", "the allocation of nodes is done", "out of bounds"])
def test_other_errors_are_left_alone(text: str) -> None:
    assert remedy(text) is None
    with pytest.raises(RuntimeError), Shortages(DecodeError):
        raise RuntimeError(text)


def test_memory_that_the_system_refuses_is_an_error_of_this_package(
    picture: infgen_rt.Picture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        np.empty(2**60, np.uint8)

    monkeypatch.setattr(type(picture._stage.tiles), "read", refuse)
    for use in (picture.read, lambda: list(picture.tiles()), picture.preview):
        with pytest.raises(DecodeError, match="there is too little memory: pass less memory"):
            use()


def test_a_callers_own_memory_error_stays_what_it_is(picture: infgen_rt.Picture) -> None:
    def fail(_: object) -> None:
        raise MemoryError("the caller's own")

    with pytest.raises(MemoryError, match="the caller's own"):
        picture.read(progress=fail)


def test_a_way_that_failed_for_lack_of_memory_is_measured_again(bundle: Path) -> None:
    opened = Bundle.open(bundle)
    (candidate, *_) = Survey.of(opened.manifest, "onnxruntime", "cpu").candidates
    (result,) = measuring.measure(opened, [candidate], None)
    failed = replace(result, speed=None, error="onnxruntime cannot load the graph on cpu: std::bad_alloc")
    measuring.remember("short", [failed, result], "auto")
    assert measuring.recall("short").asked == ()
    measuring.remember("short", [replace(failed, error="the driver is broken"), result], "auto")
    assert measuring.recall("short").asked == ("auto",)


_OPEN = """
import resource, sys
import infgen_rt, onnxruntime
from infgen_rt.cli.main import main
from infgen_rt.common.limits import available_memory
from infgen_rt.common.memory import default_budget
with open("/proc/self/statm") as file:
    used = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + int(sys.argv[2]), -1))
print(available_memory(), default_budget())
sys.exit(main(["decode", sys.argv[1], "--model", sys.argv[3], "--normalisation", "model", "-o", sys.argv[4],
               "--size", "700x570", "--backend", "onnxruntime"]))
"""


@linux
@pytest.mark.parametrize("mebibytes", [1, 8, 64, 256, 512])
def test_a_limit_of_the_address_space_gives_a_picture_or_one_line(bundle: Path, tmp_path: Path, mebibytes: int) -> None:
    np.save(tmp_path / "a.npy", LATENT)
    output = tmp_path / "a.png"
    command = [sys.executable, "-c", _OPEN, str(tmp_path / "a.npy"), str(mebibytes * 2**20), str(bundle), str(output)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    if "thread-local data: ABORT" in done.stderr or done.returncode == -signal.SIGSEGV:
        assert not output.exists()
        pytest.skip("a library written in C has ended the process, which nothing can prevent")
    assert done.returncode in (0, 1, 2), done.stderr
    assert output.exists() == (done.returncode == 0)
    available, budget = map(int, done.stdout.split()[:2])
    assert available <= mebibytes * 2**20 and budget <= mebibytes * 2**20 // 2
    # ONNX Runtime may print a warning about itself.
    lines = [line for line in done.stderr.splitlines() if "onnxruntime:Default" not in line]
    if done.returncode:
        (line,) = lines
        assert line.startswith("Error: ") and ("memory" in line or "thread" in line)


_WITH_THREADS = """
import os, resource, sys
from infgen_rt.cli.main import main

def decode(output):
    return main(["decode", sys.argv[1], "--model", sys.argv[3], "--normalisation", "model", "-o", output,
                 "--size", "700x570", "--backend", "onnxruntime"])

decode(sys.argv[4])  # imports all that the other user may not read
resource.setrlimit(resource.RLIMIT_NPROC, (int(sys.argv[2]),) * 2)
os.setuid(50_000_000)
sys.exit(decode(sys.argv[5]))
"""


@linux
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="root alone may become another user")
@pytest.mark.parametrize("threads", [1, 2, 3, 50])
def test_a_limit_of_the_users_threads_gives_the_same_picture_or_one_line(bundle: Path, threads: int) -> None:
    """As with `ulimit -u`. pytest's own folders may be entered by their owner alone."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copytree(bundle, folder / "bundle")
        np.save(folder / "a.npy", LATENT)
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o777)
        outputs = [folder / f"{which}.png" for which in ("free", "limited")]
        command = [sys.executable, "-c", _WITH_THREADS, folder / "a.npy", str(threads), folder / "bundle", *outputs]
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "INFGEN_RT_CACHE": str(folder / "cache")}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
        if done.returncode == 0:
            assert outputs[0].read_bytes() == outputs[1].read_bytes()
        else:
            assert threads < 50 and not outputs[1].exists()
            (line,) = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
            assert "the system allowed no further thread: pass threads=1 (--threads 1)" in line
            assert "Traceback" not in done.stderr


def test_memory_without_a_limit_is_that_of_the_machine() -> None:
    assert (available_memory() or 0) > 0
    assert issubclass(DecodeError, InfGenError)
