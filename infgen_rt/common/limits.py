"""How much memory a process can use, given the machine and the limits of its container."""

import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from infgen_rt.common.callers import raise_callers, suppress_but_callers

# For each version of control groups: the files of the limit and of the used memory, and the name in memory.stat of the
# part of the used memory that is file cache and can be dropped.
_FILES = {
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    2: ("memory.max", "memory.current", "inactive_file"),
}


def available_memory(root: Path = Path("/")) -> int | None:
    """The bytes that this process can still use. None if the system does not report them.

    This is the free memory of the machine, or less if a limit of the process's control groups, or of their parents,
    or of its address space (`ulimit -v`) leaves less.

    Args:
        root: the root of the file system from which these are read.
    """
    known = [amount for amount in (_of_machine(root), _of_process(root), *_of_groups(root)) if amount is not None]
    return min(known, default=None)


def _of_machine(root: Path) -> int | None:
    if sys.platform == "linux":
        try:
            with (root / "proc/meminfo").open(encoding="ascii") as lines:
                return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
        except (OSError, StopIteration) as error:
            raise_callers(error)
            return None
    try:
        import psutil

        return int(psutil.virtual_memory().available)
    except (ImportError, OSError, RuntimeError) as error:
        raise_callers(error)
        return None


def _of_process(root: Path) -> int | None:
    """The bytes that the limit of the process's address space leaves. None if there is no limit."""
    try:
        import resource

        most = resource.getrlimit(resource.RLIMIT_AS)[0]
        if most == resource.RLIM_INFINITY:
            return None
        pages = int((root / "proc/self/statm").read_text(encoding="ascii").split()[0])
        return max(0, most - pages * resource.getpagesize())
    except (ImportError, AttributeError, OSError, ValueError) as error:  # Windows, or a system without /proc
        raise_callers(error)
        return None


def _of_groups(root: Path) -> Iterator[int]:
    """Yield the bytes that each limit leaves."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise_callers(error)
        return
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if number == "0" and not controllers:
            # If version 1 is also in use, version 2 is mounted one level deeper.
            mounts, version = ["sys/fs/cgroup", "sys/fs/cgroup/unified"], 2
        elif "memory" in controllers.split(","):
            mounts, version = ["sys/fs/cgroup/memory"], 1
        else:
            continue
        inside = PurePosixPath(path.lstrip("/"))
        # In a container, the path may be the host's and not exist here. The group is then the mount itself.
        for mount in mounts:
            for folder in (inside, *inside.parents):
                left = _left(root / mount / folder, version)
                if left is not None:
                    yield left


def _left(group: Path, version: int) -> int | None:
    """The bytes that a group's limit leaves, or None if it has no limit."""
    limit, used, droppable = _FILES[version]
    try:
        most, now = (int((group / name).read_text(encoding="ascii")) for name in (limit, used))
    except (OSError, ValueError) as error:  # no such group, or `max`
        raise_callers(error)
        return None
    with suppress_but_callers(OSError, ValueError):
        facts = dict(line.split() for line in (group / "memory.stat").read_text(encoding="ascii").splitlines())
        now -= int(facts.get(droppable, 0))
    return max(0, most - max(0, now))
