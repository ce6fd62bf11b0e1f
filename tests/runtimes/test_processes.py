"""Processes that share a cache, and processes that are forked: on the real libraries, with the model that ships."""

import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from infgen_rt.backend import measuring
from infgen_rt.common.folders import private_folder, read_checked, write_checked

SECONDS = 600
ROUNDS = int(os.environ.get("INFGEN_TEST_ROUNDS", "4"))
"""How often eight processes start together: each time takes half a minute on two cores."""
ACTIONS = ("end", "close", "read", "picture", "open")
"""What a forked child does."""

DECODE = """
import hashlib, sys, infgen_rt
latent = infgen_rt.load_sample("osprey").latent[:, 20:32, 20:32]
with infgen_rt.open(backend=sys.argv[1], precision=sys.argv[2]) as decoder:
    pixels = decoder.picture(latent, "1x", normalisation="model").read()
print(hashlib.sha256(pixels.tobytes()).hexdigest())
"""

LEAVE = """
import sys, threading, time, infgen_rt
from infgen_rt.viewing import Tile, TileReader

decoder = infgen_rt.open(backend=sys.argv[1], precision="exact")
picture = decoder.picture(infgen_rt.load_sample("osprey").latent, "4x")
if sys.argv[2] == "reader":
    reader = TileReader(picture)
    for column in range(8):
        reader.request(Tile(reader.levels[-1].number, column, 0))
else:
    threading.Thread(target=picture.read, daemon=True).start()
time.sleep(0.5)
sys.exit(7)
"""

FORK = """
import json, os, signal, sys, time, infgen_rt

name, *actions = sys.argv[1:]
latent = infgen_rt.load_sample("osprey").latent[:, 20:60, 20:60]
decoder = infgen_rt.open(backend=name, device="cpu", precision="exact")
picture = decoder.picture(latent, "1x", normalisation="model")
picture.read()

def act(action):
    if action == "read":
        picture.read()
    elif action == "picture":
        decoder.picture(latent, "2x", normalisation="model")
    elif action == "close":
        decoder.close()
    elif action == "open":
        with infgen_rt.open(backend=name, device="cpu", precision="exact") as other:
            other.picture(latent, "1x", normalisation="model").read()

def run(action, said):
    child = os.fork()
    if child == 0:
        try:
            act(action)
        except infgen_rt.InfGenError as error:
            os.write(said, str(error).encode())
            sys.exit(3)
        sys.exit(0)  # with all that an interpreter frees at its end
    # The interpreter frees hundreds of megabytes at its end, on a machine that may be busy.
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status) & 255
        time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "the child hangs"

found = {}
for action in actions:
    heard, said = os.pipe()
    code = run(action, said)
    os.close(said)
    with os.fdopen(heard, "rb") as stream:
        found[action] = [code, stream.read().decode()]
decoder.close()
print(json.dumps(found))
"""


def start(script: str, *arguments: str, **variables: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-W", "ignore", "-c", script, *arguments]
    environment = {**os.environ, **variables}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def end(process: "subprocess.Popen[str]") -> tuple[int, str, str]:
    out, err = process.communicate(timeout=SECONDS)
    return process.returncode, out, err


def decode_cold(cache: Path, count: int, backend: str, precision: str) -> str:
    """Decode in several processes at once with an empty cache. All must give one picture, whose digest is returned."""
    together = [start(DECODE, backend, precision, INFGEN_RT_CACHE=str(cache)) for _ in range(count)]
    results = [end(process) for process in together]
    assert [code for code, _, _ in results] == [0] * count, results
    pictures = {out for _, out, _ in results}
    assert len(pictures) == 1 and pictures != {""}
    assert not list(cache.rglob("*.partial"))
    return pictures.pop()


def decode_alone(cache: Path) -> str:
    code, out, err = end(start(DECODE, "openvino", "exact", INFGEN_RT_CACHE=str(cache)))
    assert code == 0 and out, err
    return out


def test_processes_that_find_the_cache_empty_or_full_give_the_picture_of_one_without_a_cache(tmp_path: Path) -> None:
    (tmp_path / "nowhere").touch()
    without = decode_alone(tmp_path / "nowhere" / "cache")
    assert decode_cold(tmp_path / "cache", 3, "openvino", "exact") == without
    assert decode_alone(tmp_path / "cache") == without


@pytest.mark.slow
@pytest.mark.parametrize("attempt", range(ROUNDS))
@pytest.mark.parametrize(("backend", "precision"), [("openvino", "exact"), ("auto", "fast")])
def test_eight_of_them_do_so_many_times(tmp_path: Path, backend: str, precision: str, attempt: int) -> None:
    decode_cold(tmp_path / "cache", 8, backend, precision)


def test_a_compiled_graph_that_was_damaged_is_compiled_again_and_the_picture_is_the_same(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first = end(start(DECODE, "openvino", "exact", INFGEN_RT_CACHE=str(cache)))
    blobs = sorted(cache.rglob("*.blob"))
    assert blobs
    for blob in blobs:
        content = bytearray(blob.read_bytes())
        content[len(content) // 2] ^= 255
        blob.write_bytes(content)
    assert end(start(DECODE, "openvino", "exact", INFGEN_RT_CACHE=str(cache))) == first
    assert all(read_checked(blob) is not None for blob in blobs)


def test_a_file_that_is_cut_or_changed_is_as_if_it_were_not_there(tmp_path: Path) -> None:
    file = tmp_path / "file"
    assert read_checked(file) is None
    write_checked(file, b"content")
    assert read_checked(file) == b"content"
    for damaged in (file.read_bytes()[:-1], file.read_bytes()[:10], b"", file.read_bytes() + b"more"):
        file.write_bytes(damaged)
        assert read_checked(file) is None


def test_measurements_of_processes_that_end_together_are_all_kept(tmp_path: Path) -> None:
    script = """
import sys
from infgen_rt.backend import measuring
from infgen_rt.backend.candidates import Way
for number in range(10):
    way = Way("backend", "cpu", "recipe", "fp32")
    measuring.remember(f"{sys.argv[1]}-{number}", [measuring.Result(way, True, None, None, None)], "auto")
"""
    processes = [start(script, str(number), INFGEN_RT_CACHE=str(tmp_path)) for number in range(8)]
    assert [end(process)[0] for process in processes] == [0] * 8
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("INFGEN_RT_CACHE", str(tmp_path))
        kept = [measuring.recall(f"{process}-{number}").asked for process in range(8) for number in range(10)]
    assert kept == [("auto",)] * 80


def test_a_private_folder_is_another_processs_only_afterwards(tmp_path: Path) -> None:
    script = """
import sys
from pathlib import Path
from infgen_rt.common.folders import private_folder
print(private_folder(Path(sys.argv[1])).name, flush=True)
sys.stdin.read()
"""
    command = [sys.executable, "-c", script, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "0\n"
        mine = private_folder(tmp_path)
        assert mine is not None and mine.name == "1" and private_folder(tmp_path) == mine
        other.kill()
        other.communicate()
    assert subprocess.run(command, input="", capture_output=True, text=True).stdout == "0\n"


@pytest.fixture(scope="module")
def children() -> Callable[[str], dict[str, tuple[int | str, str]]]:
    """What became of the children of one process with a backend: the exit code and the error of each action."""

    @functools.cache
    def of(name: str) -> dict[str, tuple[int | str, str]]:
        code, out, err = end(start(FORK, name, *ACTIONS))
        assert code == 0, err
        return {action: (code, said) for action, (code, said) in json.loads(out.splitlines()[-1]).items()}

    return of


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("name", ["onnxruntime", "openvino", "torch"])
@pytest.mark.parametrize("action", ACTIONS)
def test_a_forked_child_is_told_what_to_do_and_never_hangs(
    children: Callable[[str], dict[str, tuple[int | str, str]]], name: str, action: str
) -> None:
    code, said = children(name)[action]
    if action in ("end", "close") or (action, name) == ("open", "onnxruntime"):
        assert (code, said) == (0, "")
    else:
        assert code == 3 and "spawn" in said


@pytest.mark.slow
@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("what", ["reader", "thread"])
def test_a_process_that_ends_while_a_thread_decodes_ends_as_usual(name: str, what: str) -> None:
    for _ in range(2):
        assert end(start(LEAVE, name, what))[0] == 7
