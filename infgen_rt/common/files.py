"""Files that appear under their names only when they are complete."""

import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from infgen_rt.common.callers import raise_callers
from infgen_rt.errors import InfGenError

_TEMPORARY = re.compile(r"\..*\.[0-9a-f]{8}\.partial", re.DOTALL)


def is_possible(path: str | Path) -> bool:
    """Whether the system accepts a path. It refuses paths with a NUL or half of a surrogate pair."""
    try:
        os.lstat(path)
    except ValueError as error:
        raise_callers(error)
        return False
    except OSError as error:
        raise_callers(error)
    return True


def check_possible(path: str | Path, error: type[InfGenError]) -> None:
    """Raise an error of a type if the system accepts no such path, or if it begins with a ~ that is no folder."""
    if not is_possible(path):
        raise error(f"{str(path)!r} cannot be a file's name: remove the character that no name may have")
    check_expanded(path, error)


def check_expanded(path: str | Path, error: type[InfGenError]) -> None:
    """Raise an error of a type if a path begins with ~ for the user's home, which shells expand and Python does not."""
    if Path(path).parts[:1] == ("~",) and not os.path.lexists("~"):
        raise error(f"{path} begins with ~, which is not expanded here: pass os.path.expanduser({str(path)!r})")


def leftovers(folder: Path) -> list[Path]:
    """The temporary files of `whole` in a folder, including those that are being written."""
    return [path for path in folder.iterdir() if _TEMPORARY.fullmatch(path.name)]


@contextmanager
def whole(file: Path) -> Iterator[Path]:
    """Yield a temporary path next to a file. It is renamed to the file when the block ends without an error.

    Raises:
        OSError: it cannot be renamed.
    """
    partial = file.with_name(f".{file.name}.{secrets.token_hex(4)}.partial")
    try:
        yield partial
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)
