"""Checks file names against the file system. Names are often whole prompts."""

import errno
import os
import unicodedata
from pathlib import Path

from infgen_rt.common.callers import raise_callers
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


def folded(path: Path) -> str:
    """A text that is the same for paths that a file system may take for the same file.

    A file system may not distinguish capitals, nor an accented letter from a letter and its accent (macOS).
    """
    return unicodedata.normalize("NFC", str(path).casefold())


def hidden_name(path: Path, mark: str) -> str:
    """The name of a hidden file: the start of a path's name, which may be very long, and a mark."""
    # The limits are in bytes and not in characters.
    return f".{path.name.encode(errors='ignore')[:_HIDDEN].decode(errors='ignore')}.{mark}"
