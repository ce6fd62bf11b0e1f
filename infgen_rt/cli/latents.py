"""Reads latents for the command line from files, folders, standard input and samples."""

import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from infgen_rt.common.callers import raise_callers
from infgen_rt.common.memory import format_bytes
from infgen_rt.errors import LatentError, reason
from infgen_rt.latent.files import MAX_FILE, Stored, parse_array, read_array, read_most
from infgen_rt.latent.samples import load_sample

# The name for standard input and output.
STREAM = Path("-")
_ENDINGS = (".npy", ".npz", ".safetensors", ".latent")


def expand(paths: Iterable[Path]) -> tuple[Path, ...]:
    """Replace each folder by the files in it that have a latent's ending, in the order of their names.

    Hidden files are left out.

    Raises:
        LatentError: a folder has no such files, or cannot be read.
    """
    files: list[Path] = []
    for path in paths:
        if path == STREAM or not os.path.isdir(path):
            files.append(path)
            continue
        try:
            found = sorted(file for file in path.iterdir() if _is_latent(file))
        except OSError as error:
            raise_callers(error)
            raise LatentError(f"the folder {path} cannot be read: {reason(error)}") from None
        if not found:
            raise LatentError(f"the folder {path} has no latent: expected files ending in {', '.join(_ENDINGS)}")
        files += found
    return tuple(files)


def _is_latent(file: Path) -> bool:
    # macOS keeps what other file systems cannot store of a file in `._NAME`.
    return file.suffix.lower() in _ENDINGS and not file.name.startswith(".") and file.is_file()


def read_latent(path: Path, key: str | None) -> Stored:
    """Read a file, or standard input for `-`. Results and errors are those of `read_array`."""
    if path != STREAM:
        return read_array(path, key)
    if sys.stdin is None:
        raise LatentError("there is no standard input: pass a file")
    data = read_most(sys.stdin.buffer)
    if data is None:
        raise LatentError(
            f"standard input is longer than {format_bytes(MAX_FILE)}, the most that is read: split a batch of so many"
        )
    return parse_array(data, "standard input", key)


def read_one(paths: tuple[Path, ...], sample: str | None, key: str | None) -> Any:
    """Read the array of the named latent file, or of the sample.

    Raises:
        LatentError: it is not usable, or neither or both are named.
    """
    if len(paths) == 1 and sample is None:
        return read_latent(paths[0], key)
    if sample is not None and not paths:
        return load_sample(sample).latent
    raise LatentError("expected either a LATENT file or --sample NAME")
