"""Replacing a file as careful editors do: through a link, with its mode, and never what is no file."""

import os
import stat
from contextlib import suppress
from pathlib import Path

from infgen_rt.errors import OutputError

_KINDS = (
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISCHR, "a device"),
)


def target_of(path: Path) -> Path:
    """The file that a name stands for: itself, or where a symbolic link leads.

    Raises:
        OutputError: the link leads to itself.
    """
    if not path.is_symlink():
        return path
    target = Path(os.path.realpath(path))
    if target.is_symlink():
        raise OutputError(f"{path} is a symbolic link that leads nowhere: choose another name")
    return target


def check_regular(path: Path) -> None:
    """Refuse what exists and is neither a file nor a folder.

    Raises:
        OutputError: it is a named pipe, a socket or a device.
    """
    try:
        mode = path.stat().st_mode
    except OSError:
        return
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        kind = next((name for test, name in _KINDS if test(mode)), "no regular file")
        raise OutputError(f"{path} is {kind}, which a picture cannot replace: choose another name")


def keep_attributes(old: Path, new: Path) -> None:
    """Give a file the owner, group, mode, access list and other extended attributes of the one that it replaces.

    What the system does not allow stays as it is. A group that cannot be kept gets none of its rights.
    """
    try:
        before = old.stat()
    except OSError:
        return
    if not stat.S_ISREG(before.st_mode):
        return
    mode = stat.S_IMODE(before.st_mode)
    if hasattr(os, "chown"):
        now = new.stat()
        if now.st_uid != before.st_uid:
            with suppress(OSError):
                os.chown(new, before.st_uid, -1)
        if now.st_gid != before.st_gid:
            try:
                os.chown(new, -1, before.st_gid)
            except OSError:
                mode &= ~stat.S_IRWXG
        # The bits that lend an owner's or a group's rights are for those alone.
        if (new.stat().st_uid, new.stat().st_gid) != (before.st_uid, before.st_gid):
            mode &= ~(stat.S_ISUID | stat.S_ISGID)
    if hasattr(os, "listxattr"):
        with suppress(OSError):
            for name in os.listxattr(old):
                with suppress(OSError):
                    os.setxattr(new, name, os.getxattr(old, name))
    with suppress(OSError):
        new.chmod(mode)
