"""Folders that a process claims while it writes in them. If the process crashes, another one removes the folder.

A claimed folder has a lock file, which is locked until the work is done. The system releases the locks of a process
that has crashed. Another process can therefore tell whether a folder was left behind or is in use.
"""

import re
import secrets
import shutil
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

from infgen_rt.common.callers import raise_callers, suppress_but_callers

LOCK = "writing.lock"
"""The name of the file that a process locks while it writes in a folder."""
NO_LOCK = (OSError, NotImplementedError)
"""The errors of taking a lock: it is held, the folder is gone or not writable, or the file system has no locks."""
_TRIES = 10


def claim(name: Callable[[str], Path], held: ExitStack, mode: int = 0o777) -> Path:
    """Make a folder, and lock it until the stack ends.

    Args:
        name: returns the folder's path. Its argument is eight characters that make the path unique.
        held: the stack that holds the lock.
        mode: the folder's mode, before the umask.

    Raises:
        OSError: it cannot be made.
    """
    from filelock import FileLock, Timeout

    for _ in range(_TRIES):
        folder = name(secrets.token_hex(4))
        folder.mkdir(mode=mode)
        # Until it is locked, another process may think that its owner has crashed, and lock and remove it.
        try:
            with suppress(NotImplementedError):
                held.enter_context(FileLock(folder / LOCK).acquire(timeout=0))
        except Timeout:
            continue
        except OSError as error:  # a file system without locks, on which nothing is removed
            raise_callers(error)
        if folder.is_dir():
            break
    return folder


def remove_leftovers(parent: Path, names: re.Pattern[str], needed: Callable[[Path], bool] = lambda _: False) -> None:
    """Remove the claimed folders whose processes have died. Those that are in use are locked, and stay.

    Args:
        parent: the folder that contains them.
        names: matches the whole names of claimed folders.
        needed: returns whether a folder must stay although its process has died.
    """
    with suppress_but_callers(OSError):
        for folder in [each for each in parent.iterdir() if names.fullmatch(each.name)]:
            with suppress_but_callers(OSError):  # for example another user's
                _remove_if_left(folder, needed)


def _remove_if_left(folder: Path, needed: Callable[[Path], bool]) -> None:
    from filelock import FileLock

    lock = folder / LOCK
    # A folder without a lock file is either not locked yet, or was not made by this package.
    if folder.is_symlink() or lock.is_symlink() or not lock.is_file() or needed(folder):
        return
    with suppress_but_callers(*NO_LOCK), FileLock(lock).acquire(timeout=0):
        shutil.rmtree(folder, ignore_errors=True)
    # Windows does not remove a file that is locked.
    if not lock.exists():
        shutil.rmtree(folder, ignore_errors=True)
