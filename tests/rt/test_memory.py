"""The default budget: what is free where the process lives."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from infgen_rt.common.limits import available_memory
from infgen_rt.common.memory import GIB, MIB

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
