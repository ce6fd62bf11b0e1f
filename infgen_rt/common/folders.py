"""The user's cache folder, for files that can be made again: measurements and compiled graphs.

Several processes use it at the same time. A file appears in it only when it is complete, and is replaced as a whole.
"""

import hashlib
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from infgen_rt.common.callers import raise_callers, suppress_but_callers
from infgen_rt.common.cancellation import current
from infgen_rt.common.claims import LOCK, NO_LOCK
from infgen_rt.common.files import leftovers, whole

if TYPE_CHECKING:
    from filelock import BaseFileLock

VARIABLE = "INFGEN_RT_CACHE"
"""The environment variable for another folder in which the cache folder is made."""
_NAME = "infgen-rt"
_DIGEST = hashlib.sha256().digest_size
_PLACES = 64
# Seconds to wait for other writers, each of which takes much less.
_PATIENCE = 30.0
# Seconds between two checks of whether waiting for a lock was cancelled.
_WAIT = 0.2
_held: "list[BaseFileLock]" = []


def cache_folder() -> Path | None:
    """The cache folder, which may not exist. None for a user without a home, such as a bare user id in a container."""
    if chosen := os.environ.get(VARIABLE, "").strip():
        path = Path(chosen)
        with suppress_but_callers(RuntimeError):  # `~` without a home stays as it is
            path = path.expanduser()
        with suppress_but_callers(OSError):  # the working folder may have been removed
            path = path.absolute()
        # A folder of its own, because the given one may be shared with other programs, as `~/.cache` is.
        return path / _NAME
    from platformdirs import user_cache_path

    with suppress_but_callers(RuntimeError, KeyError, OSError):
        folder = user_cache_path(_NAME, appauthor=False)
        # If the home folder is not known, the path still begins with `~`.
        return folder if folder.is_absolute() else None
    return None


def writable_cache(name: str) -> Path | None:
    """A folder in the cache, which is created if it is missing. None if it is not writable."""
    root = cache_folder()
    if root is None:
        return None
    folder = root / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        raise_callers(error)
        return None


@cache
def private_folder(folder: Path) -> Path | None:
    """A subfolder that no other process uses while this process runs. A later process may use it again.

    It is for libraries whose files several processes must not write at the same time. None if there is no free
    subfolder, or if the folder cannot be locked.
    """
    from filelock import FileLock

    for place in range(_PLACES):
        lock = FileLock(folder / f"{place}.lock")
        with suppress_but_callers(*NO_LOCK):
            lock.acquire(timeout=0)
            _held.append(lock)
            own = folder / str(place)
            own.mkdir(exist_ok=True)
            return own
    return None


@contextmanager
def alone(name: str, patience: float) -> Iterator[None]:
    """Wait until no other process is in a block with this name.

    The block is entered without waiting if the file system has no locks, and in any case after the timeout, because
    the other process may be suspended.

    Args:
        name: the name of the block.
        patience: the timeout in seconds.

    Raises:
        Cancelled: the current work was cancelled while it waited.
    """
    root = cache_folder()
    with ExitStack() as stack:
        if root is not None:
            from filelock import FileLock, Timeout

            with suppress_but_callers(*NO_LOCK):
                root.mkdir(parents=True, exist_ok=True)
                lock, until = FileLock(root / f"{name}.lock"), time.monotonic() + patience
                while time.monotonic() < until:
                    with suppress(Timeout):
                        stack.enter_context(lock.acquire(timeout=_WAIT))
                        break
                    current().check()
        yield


def write_cached(file: Path, content: bytes) -> None:
    """Write a file of the cache atomically. Remove temporary files in its folder whose processes have crashed.

    Raises:
        OSError: the file cannot be written.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        if _locked(file.parent, stack):
            # Every writer holds the lock, so nobody is writing these files.
            for left in leftovers(file.parent):
                left.unlink(missing_ok=True)
        with whole(file) as partial:
            partial.write_bytes(content)


def _locked(folder: Path, stack: ExitStack) -> bool:
    """Hold the lock of a folder's writers until the stack ends. False on a file system without locks.

    Raises:
        OSError: other processes held it for too long, or this user may not take it.
    """
    from filelock import FileLock, Timeout

    try:
        stack.enter_context(FileLock(folder / LOCK).acquire(timeout=_PATIENCE))
    except (Timeout, PermissionError):
        raise
    except NO_LOCK as error:
        raise_callers(error)
        return False
    return True


def write_checked(file: Path, content: bytes) -> None:
    """Write a file of the cache together with its digest. The errors are those of `write_cached`."""
    write_cached(file, hashlib.sha256(content).digest() + content)


def read_checked(file: Path) -> bytes | None:
    """Read a file that `write_checked` has written. None if it is missing or does not match its digest."""
    try:
        found = file.read_bytes()
    except OSError as error:
        raise_callers(error)
        return None
    digest, content = found[:_DIGEST], found[_DIGEST:]
    return content if hashlib.sha256(content).digest() == digest else None
