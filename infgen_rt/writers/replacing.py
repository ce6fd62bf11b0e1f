"""Replaces files carefully: follows symbolic links, keeps the mode, and replaces nothing but regular files."""

import os
import stat
from pathlib import Path

from infgen_rt.common.callers import raise_callers, suppress_but_callers
from infgen_rt.errors import OutputError

WINDOWS = os.name == "nt"
_KINDS = (
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISCHR, "a device"),
)


def target_of(path: Path) -> Path:
    """The file to write for a path: the path itself, or the target if it is a symbolic link.

    Raises:
        OutputError: the link leads to itself.
    """
    if not path.is_symlink():
        return path
    target = Path(os.path.realpath(path))
    if target.is_symlink():
        raise OutputError(f"{path} is a symbolic link that leads to itself: remove it, or choose another name")
    return target


def check_regular(path: Path) -> None:
    """Check that a path is a regular file or a folder, or does not exist.

    Raises:
        OutputError: it is something else, such as a named pipe, a socket or a device.
    """
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise_callers(error)
        return
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        kind = next((name for test, name in _KINDS if test(mode)), "no regular file")
        raise OutputError(f"{path} is {kind}, which a picture cannot replace: choose another name")


def check_not_in_use(path: Path) -> None:
    """Check that a file or a folder can be replaced. Windows does not replace what is read-only or open in a program.

    Raises:
        OutputError: it cannot.
    """
    if not WINDOWS or not path.exists():
        return
    if not os.access(path, os.W_OK):
        raise OutputError(f"{path} is read-only: allow writing to it, or choose another name")
    try:
        os.rename(path, path)
    except OSError as error:
        raise_callers(error)
        raise OutputError(f"{path} is open in another program: close it there, or choose another name") from None


def keep_attributes(old: Path, new: Path) -> None:
    """Copy the owner, group, mode, access list and other extended attributes of a file to the one that replaces it.

    What the system does not allow to be copied is left out. If the group cannot be kept, the file's new group gets no
    rights.
    """
    try:
        before = old.stat()
    except OSError as error:
        raise_callers(error)
        return
    if not stat.S_ISREG(before.st_mode):
        return
    mode = stat.S_IMODE(before.st_mode)
    if hasattr(os, "chown"):
        now = new.stat()
        if now.st_uid != before.st_uid:
            with suppress_but_callers(OSError):
                os.chown(new, before.st_uid, -1)
        if now.st_gid != before.st_gid:
            try:
                os.chown(new, -1, before.st_gid)
            except OSError as error:
                raise_callers(error)
                mode &= ~stat.S_IRWXG
        # The setuid and setgid bits are only for the original owner and group.
        if (new.stat().st_uid, new.stat().st_gid) != (before.st_uid, before.st_gid):
            mode &= ~(stat.S_ISUID | stat.S_ISGID)
    if hasattr(os, "listxattr"):
        with suppress_but_callers(OSError):
            for name in os.listxattr(old):
                with suppress_but_callers(OSError):
                    os.setxattr(new, name, os.getxattr(old, name))
    if not WINDOWS:  # there, the mode is only whether the file is read-only, and then it could not be moved
        with suppress_but_callers(OSError):
            new.chmod(mode)
