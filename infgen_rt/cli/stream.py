"""Writes a picture to standard output. It is first written to a file, because formats need to seek, and then copied."""

import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from infgen_rt.cli.latents import STREAM
from infgen_rt.errors import OutputError, WriteError, reason


@contextmanager
def target_of(output: Path, ending: str) -> Iterator[Path]:
    """Yield the file to write: `output` itself, or a temporary file if the output is standard output.

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
        WriteError: standard output cannot be written to, for example because its reader has closed it.
    """
    try:
        with path.open("rb") as file:
            shutil.copyfileobj(file, sys.stdout.buffer)
        sys.stdout.buffer.flush()
    except OSError as error:
        raise WriteError(f"cannot write to standard output: {reason(error)}") from error
