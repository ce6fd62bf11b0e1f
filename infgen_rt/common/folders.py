"""The folder of this user in which things may be kept that can be made again: measurements, compiled graphs."""

import os
import tempfile
from pathlib import Path

from infgen_rt.common.files import whole

VARIABLE = "INFGEN_RT_CACHE"
"""Environment variable that names another folder."""


def cache_folder() -> Path:
    """Where it is; it need not exist."""
    if chosen := os.environ.get(VARIABLE):
        return Path(chosen)
    from platformdirs import user_cache_path

    return user_cache_path("infgen-rt", appauthor=False)


def writable_cache(name: str) -> Path | None:
    """A folder in the cache, made if missing; None if it cannot be written in."""
    folder = cache_folder() / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError:
        return None


def write_cached(file: Path, text: str) -> None:
    """Write a text file of the cache, whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with whole(file) as partial:
        partial.write_text(text, encoding="utf-8")
