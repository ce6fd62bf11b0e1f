"""The default budget: what is free where the process lives."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import infgen_rt
from infgen_rt.cli.main import main
from infgen_rt.common.limits import available_memory
from infgen_rt.common.memory import GIB, MIB, enough, parse_bytes
from infgen_rt.errors import OutputError

from . import tiny

_MACHINE = 64 * GIB


def system(root: Path, groups: str, files: dict[str, str]) -> Path:
    """A file system that tells of memory as Linux does."""
    files |= {"proc/meminfo": f"MemAvailable: {_MACHINE // 1024} kB\n", "proc/self/cgroup": groups}
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def v1(folder: str, limit: int, used: int = 0, cached: int = 0) -> dict[str, str]:
    files = {"limit_in_bytes": f"{limit}\n", "usage_in_bytes": f"{used}\n", "stat": f"total_inactive_file {cached}\n"}
    return {f"sys/fs/cgroup/memory/{folder}/memory.{name}": text for name, text in files.items()}


def v2(folder: str, limit: int | str, used: int = 0, cached: int = 0) -> dict[str, str]:
    files = {"max": f"{limit}\n", "current": f"{used}\n", "stat": f"anon 1\ninactive_file {cached}\n"}
    return {f"sys/fs/cgroup/{folder}/memory.{name}": text for name, text in files.items()}


@pytest.mark.skipif(sys.platform != "linux", reason="control groups are Linux's")
@pytest.mark.parametrize(
    ("groups", "files", "left"),
    [
        ("0::/\n", {}, _MACHINE),
        ("0::/\n", v2(".", GIB, 300 * MIB, 100 * MIB), 824 * MIB),
        ("0::/app/worker\n", v2("app/worker", "max") | v2("app", GIB), GIB),
        ("0::/app/worker\n", v2("app/worker", 2 * GIB) | v2("app", GIB, 10 * MIB), 1014 * MIB),
        ("0::/\n", v2(".", GIB, 2 * GIB), 0),
        ("4:cpu:/\n3:memory:/docker/ab\n0::/\n", v1(".", GIB, 24 * MIB), 1000 * MIB),
        ("3:hugetlb,memory:/app\n", v1("app", 2 * GIB, 512 * MIB, 256 * MIB) | v1(".", 2**63 - 4096), 1792 * MIB),
        ("0::/a:b\n", v2("a:b", GIB), GIB),
    ],
    ids=["none", "v2", "v2 above", "v2 both", "v2 full", "v1 container", "v1", "colon"],
)
def test_a_containers_limit_counts(tmp_path: Path, groups: str, files: dict[str, str], left: int) -> None:
    assert available_memory(system(tmp_path, groups, files)) == left


@pytest.fixture
def group() -> Iterator[Path]:
    """A control group of this machine with a limit of 256 MiB."""
    for folder, name in (
        (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"),
        (Path("/sys/fs/cgroup"), "memory.max"),
    ):
        made = folder / f"infgen-test-{os.getpid()}"
        if not (folder / "cgroup.procs").exists():
            continue
        try:
            made.mkdir()
        except OSError:
            continue
        try:
            (made / name).write_text(str(256 * MIB))
            yield made
            return
        except OSError:
            continue
        finally:
            made.rmdir()
    pytest.skip("control groups cannot be made here")


def test_a_process_in_a_group_takes_half_of_its_limit(group: Path) -> None:
    code = f"""
import os
open({str(group / "cgroup.procs")!r}, "w").write(str(os.getpid()))
from infgen_rt.common.memory import default_budget
print(default_budget())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 64 * MIB < int(done.stdout) <= 128 * MIB


MEASURE = """
import sys
from pathlib import Path
import numpy as np
from infgen_rt.common.memory import peak_memory
from infgen_rt.geometry.shapes import Size
from infgen_rt.writers import FORMATS, Layer
path, lossless = Path(sys.argv[1]), sys.argv[2] == "True"
form, size, random = FORMATS[path.suffix].encoded(None, lossless), Size(1600, 1200), np.random.default_rng(0)
def bands():
    for _ in range(0, size.height, 100):
        yield random.integers(0, 256, (100, size.width, 3), np.uint8)
small = np.zeros((64, 64, 3), np.uint8)
form.write(path.with_stem("first"), [Layer(Size(64, 64), 8, iter([small]))])
next(bands())
before = peak_memory()
form.write(path, [Layer(size, 8, bands())])
print((peak_memory() - before) / form.memory(size, 8))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peaks are read from /proc")
@pytest.mark.parametrize(("suffix", "lossless"), [(".jpg", False), (".webp", False), (".webp", True), (".avif", False)])
def test_an_encoder_takes_what_is_reckoned(tmp_path: Path, suffix: str, lossless: bool) -> None:
    """With noise, which takes most."""
    command = [sys.executable, "-c", MEASURE, str(tmp_path / f"a{suffix}"), str(lossless)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert 0.5 < float(done.stdout) <= 1.1


def test_a_plan_counts_the_writer_and_keeps_fewer_tiles_for_it(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "a.npy", tiny.random_latent(40, 40))
    counted = {}
    for ending in ("png", "avif"):
        output = str(tmp_path / f"a.{ending}")
        arguments = [str(tmp_path / "a.npy"), "-o", output, "--model", str(bundle), "--memory", "200MiB", "--json"]
        assert main(["plan", *arguments]) == 0
        counted[ending] = json.loads(capsys.readouterr().out)["plan"]["memory"]
    assert counted["avif"] - counted["png"] > 40 * 320 * 320
    with infgen_rt.open(bundle, memory="200MiB") as decoder:
        plan = decoder.picture(tiny.random_latent(40, 40)).plan
        room = plan.budget - plan.memory + plan.cache
        assert plan.beside(room - 100) == (plan.budget, 100) and plan.beside(room + 1) == (plan.budget + 1, 0)


@pytest.mark.parametrize("ending", [".jpg", ".webp", ".avif", ".tif", ".dzi"])
def test_tiles_are_made_smaller_for_the_encoder_and_the_least_that_is_named_will_do(
    bundle: Path, tmp_path: Path, ending: str
) -> None:
    latent = tiny.random_latent(64, 64)
    with (
        infgen_rt.open(bundle, memory="12MiB") as decoder,
        pytest.raises(OutputError, match="needs at least") as caught,
    ):
        decoder.picture(latent, "4x", normalisation="model").check_save(tmp_path / f"a{ending}")
    named = re.search(
        r"needs at least ([\d.]+ [MG]iB) for 2048x2048, of 12.0 MiB: pass that as memory", str(caught.value)
    )
    assert named is not None
    with infgen_rt.open(bundle, memory=named[1]) as decoder:
        picture = decoder.picture(latent, "4x", normalisation="model")
        form = picture.check_save(tmp_path / f"a{ending}")
        smaller = picture.for_saving(form, picture.size, 8)
        assert smaller.plan.stages[-1].count > picture.plan.stages[-1].count
        assert picture.memory_to_save(form, picture.size, 8)[0] > picture.plan.budget
        assert smaller.memory_to_save(form, picture.size, 8)[0] == smaller.plan.memory <= smaller.plan.budget
    with infgen_rt.open(bundle, memory=parse_bytes(named[1]) - 2**20) as decoder, pytest.raises(OutputError):
        decoder.picture(latent, "4x", normalisation="model").check_save(tmp_path / f"a{ending}")


def test_a_picture_that_is_saved_in_smaller_tiles_is_the_same_picture(bundle: Path, tmp_path: Path) -> None:
    latent = tiny.random_latent(48, 64)
    with infgen_rt.open(bundle, memory="1GiB") as decoder:
        expected = decoder.picture(latent, "2x", normalisation="model").read()
    with infgen_rt.open(bundle, memory="12MiB") as decoder, pytest.raises(OutputError) as caught:
        decoder.picture(latent, "2x", normalisation="model").save(tmp_path / "a.webp", lossless=True)
    least = re.search(r"needs at least ([\d.]+ [MG]iB)", str(caught.value))
    assert least is not None
    with infgen_rt.open(bundle, memory=least[1]) as decoder:
        picture = decoder.picture(latent, "2x", normalisation="model")
        before = picture.read((0, 0, 64, 64))
        picture.save(tmp_path / "a.webp", lossless=True)
        assert np.array_equal(picture.read((0, 0, 64, 64)), before)
    with Image.open(tmp_path / "a.webp") as image:
        assert np.abs(np.asarray(image).astype(int) - expected).max() <= 1


def test_a_tile_that_was_asked_for_stays_as_it_is(bundle: Path, tmp_path: Path) -> None:
    with infgen_rt.open(bundle, memory="20MiB") as decoder:
        picture = decoder.picture(tiny.random_latent(64, 64), "4x", tile=64, normalisation="model")
        with pytest.raises(OutputError, match="for 2048x2048 with tiles of 64 pixels, of 20.0 MiB"):
            picture.check_save(tmp_path / "a.jpg")


@given(st.integers(1, 2**36))
def test_an_amount_that_is_rounded_up_suffices(amount: int) -> None:
    assert amount <= parse_bytes(enough(amount)) <= amount * 1.01 + 2**18
