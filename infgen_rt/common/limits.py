"""How much memory a process can have where it lives: on the machine, and in the container that it is put in."""

import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

# Of each version of control groups: the limit, what is used of it, and what of that is cached files and can be dropped.
_FILES = {
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    2: ("memory.max", "memory.current", "inactive_file"),
}


def available_memory(root: Path = Path("/")) -> int | None:
    """Bytes that this process can still have; None where the system does not tell.

    It is the least of what the machine has free and what the limits of the process's control groups, and of those that
    they are in, leave.

    Args:
        root: of the file system that tells it.
    """
    known = [amount for amount in (_of_machine(root), *_of_groups(root)) if amount is not None]
    return min(known, default=None)


def _of_machine(root: Path) -> int | None:
    if sys.platform == "linux":
        try:
            with (root / "proc/meminfo").open(encoding="ascii") as lines:
                return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
        except (OSError, StopIteration):
            return None
    try:
        import psutil

        return int(psutil.virtual_memory().available)
    except (ImportError, OSError, RuntimeError):
        return None


def _of_groups(root: Path) -> Iterator[int]:
    """What each limit leaves."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if number == "0" and not controllers:
            # Beside version 1, version 2 is mounted deeper.
            mounts, version = ["sys/fs/cgroup", "sys/fs/cgroup/unified"], 2
        elif "memory" in controllers.split(","):
            mounts, version = ["sys/fs/cgroup/memory"], 1
        else:
            continue
        inside = PurePosixPath(path.lstrip("/"))
        # In a container the path may be the host's, of which only the mount is seen. Then the group is the mount.
        for mount in mounts:
            for folder in (inside, *inside.parents):
                left = _left(root / mount / folder, version)
                if left is not None:
                    yield left


def _left(group: Path, version: int) -> int | None:
    """Bytes that a group's limit leaves; None without one."""
    limit, used, droppable = _FILES[version]
    try:
        most, now = (int((group / name).read_text(encoding="ascii")) for name in (limit, used))
    except (OSError, ValueError):  # no such group, or `max`
        return None
    try:
        facts = dict(line.split() for line in (group / "memory.stat").read_text(encoding="ascii").splitlines())
        now -= int(facts.get(droppable, 0))
    except (OSError, ValueError):
        pass
    return max(0, most - max(0, now))
