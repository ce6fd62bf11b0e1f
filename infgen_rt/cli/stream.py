"""A picture to standard output: it is written as a file, which needs seeking, and then poured."""

import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from infgen_rt.cli.latents import STREAM
from infgen_rt.errors import OutputError, WriteError


@contextmanager
def target_of(output: Path, ending: str) -> Iterator[Path]:
    """Give the file to write: `output` itself, or one that is removed afterwards if that is standard output.

    Raises:
        OutputError: standard output cannot take a picture.
    """
    if output != STREAM:
        yield output
        return
    if sys.stdout is None or sys.stdout.isatty():
        raise OutputError("standard output is no file or pipe: redirect it, or pass a name for -o")
    if ending == "dzi":
        raise OutputError("a .dzi is many files, and standard output is one: pass a name for -o")
    with tempfile.TemporaryDirectory(prefix="infgen-rt-") as folder:
        yield Path(folder) / f"picture.{ending}"


def pour(path: Path) -> None:
    """Copy a file to standard output.

    Raises:
        WriteError: who reads it has gone.
    """
    try:
        with path.open("rb") as file:
            shutil.copyfileobj(file, sys.stdout.buffer)
        sys.stdout.buffer.flush()
    except OSError as error:
        raise WriteError(f"cannot write to standard output: {error.strerror or error}") from error
