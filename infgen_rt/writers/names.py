"""Checks file names against the file system. Names are often whole prompts."""

import errno
import os
import sys
import unicodedata
from pathlib import Path

from infgen_rt.common.callers import raise_callers, suppress_but_callers
from infgen_rt.common.files import check_expanded
from infgen_rt.errors import OutputError, one_line, reason

_SHOWN = 60
# Paths may be short on Windows, and this comes in addition to the name itself.
_HIDDEN = 12


def check_name(path: Path) -> None:
    """Check with the file system that a file may have this name.

    Raises:
        OutputError: the name is not possible.
    """
    check_expanded(path, OutputError)
    if os.name == "nt" and ":" in path.name:
        raise OutputError(f"{path.name} cannot be a file's name on Windows, where ':' has a meaning: remove it")
    try:
        os.lstat(path)
    except FileNotFoundError:
        pass
    except ValueError as error:  # a NUL
        raise_callers(error)
        raise OutputError(
            f"{str(path)[:_SHOWN]!r} cannot be a file's name ({one_line(error)}): remove the character that no name "
            "may have"
        ) from None
    except OSError as error:
        raise_callers(error)
        if error.errno != errno.ENAMETOOLONG:
            raise OutputError(f"{path} cannot be a file here: {reason(error)}; choose another folder or name") from None
        name, whole = (len(os.fsencode(each)) for each in (path.name, path))
        raise OutputError(
            f"{path.name[:_SHOWN]}... is too long for the file system, with {name} bytes of {whole} in the whole path "
            "(most take 255 in a name): shorten it"
        ) from None


def rooted(path: Path) -> Path:
    """A path that stays the same when the process changes its working folder, if that one still exists."""
    try:
        return path.absolute()
    except OSError as error:
        raise_callers(error)
        return path


def identity(path: Path) -> str:
    """A text that is the same for paths that lead to the same file, which may not exist yet.

    A file system may not distinguish capitals, nor an accented letter from a letter and its accent (macOS).
    """
    try:
        real = os.path.realpath(path)
    except (OSError, ValueError) as error:  # no working folder, or a NUL
        raise_callers(error)
        real = str(path)
    return unicodedata.normalize("NFC", real.casefold()) if ignores_case(Path(real).parent) else real


def ignores_case(folder: Path) -> bool:
    """Whether names in a folder are the same if they differ in capitals only.

    This is tried with the folder's own name, or with that of the first folder above it that exists and has letters.
    """
    if sys.platform in ("win32", "darwin"):
        return True
    for each in (folder, *folder.parents):
        other = each.parent / each.name.swapcase()
        if other != each and os.path.isdir(each):
            with suppress_but_callers(OSError):  # there is no other
                return os.path.samefile(each, other)
            return False
    return False


def hidden_name(path: Path, mark: str) -> str:
    """The name of a hidden file: the start of a path's name, which may be very long, and a mark."""
    # The limits are in bytes and not in characters.
    return f".{path.name.encode(errors='ignore')[:_HIDDEN].decode(errors='ignore')}.{mark}"
