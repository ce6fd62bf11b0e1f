"""The folder of this user in which things may be kept that can be made again: measurements, compiled graphs.

Several processes use it at once. What is in it appears whole under its name and is never changed afterwards.
"""

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from infgen_rt.common.files import whole

if TYPE_CHECKING:
    from filelock import BaseFileLock

VARIABLE = "INFGEN_RT_CACHE"
"""Environment variable that names another folder."""

_DIGEST = hashlib.sha256().digest_size
_PLACES = 64
# What a lock fails with: it is held, the folder cannot be written in, or its file system has none.
_NO_LOCK = (OSError, NotImplementedError)
_held: "list[BaseFileLock]" = []


def cache_folder() -> Path | None:
    """Where it is; it need not exist. None for a user without a home, as in a container under a number of its own."""
    if chosen := os.environ.get(VARIABLE):
        return Path(chosen)
    from platformdirs import user_cache_path

    with suppress(RuntimeError, KeyError, OSError):
        folder = user_cache_path("infgen-rt", appauthor=False)
        # Where nothing is known of a home, `~` stays as it is.
        return folder if folder.is_absolute() else None
    return None


def writable_cache(name: str) -> Path | None:
    """A folder in the cache, made if missing; None if it cannot be written in."""
    root = cache_folder()
    if root is None:
        return None
    folder = root / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError:
        return None


@cache
def private_folder(folder: Path) -> Path | None:
    """A folder in a folder that no other process uses while this one lives; a later one may have it again.

    It is for libraries that write files of their own and know of no other process.
    """
    from filelock import FileLock

    for place in range(_PLACES):
        lock = FileLock(folder / f"{place}.lock")
        with suppress(*_NO_LOCK):
            lock.acquire(timeout=0)
            _held.append(lock)
            own = folder / str(place)
            own.mkdir(exist_ok=True)
            return own
    return None


@contextmanager
def alone(name: str, patience: float) -> Iterator[None]:
    """Wait for other processes that are in a block of this name.

    It goes on without where there are no locks, and when its patience is at an end: a process may be stopped.

    Args:
        name: of the block.
        patience: seconds.
    """
    root = cache_folder()
    with ExitStack() as stack:
        if root is not None:
            from filelock import FileLock

            with suppress(*_NO_LOCK):
                root.mkdir(parents=True, exist_ok=True)
                stack.enter_context(FileLock(root / f"{name}.lock").acquire(timeout=patience))
        yield


def write_cached(file: Path, content: bytes) -> None:
    """Write a file of the cache, whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with whole(file) as partial:
        partial.write_bytes(content)


def write_checked(file: Path, content: bytes) -> None:
    """Write a file of the cache with its digest; raises what `write_cached` does."""
    write_cached(file, hashlib.sha256(content).digest() + content)


def read_checked(file: Path) -> bytes | None:
    """What `write_checked` wrote; None if it is not there, or not as it was written."""
    try:
        found = file.read_bytes()
    except OSError:
        return None
    digest, content = found[:_DIGEST], found[_DIGEST:]
    return content if hashlib.sha256(content).digest() == digest else None
