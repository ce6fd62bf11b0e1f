"""`infgen-rt cache`."""

import contextlib
import errno
import json
import os
from pathlib import Path

import click

from infgen_rt.backend import measuring
from infgen_rt.backend.protocol import KNOWN, installed_backends
from infgen_rt.cli import options
from infgen_rt.cli.console import say
from infgen_rt.common.claims import LOCK
from infgen_rt.common.files import leftovers
from infgen_rt.common.folders import VARIABLE, cache_folder
from infgen_rt.common.memory import format_bytes
from infgen_rt.errors import reason


@click.command()
@click.option(
    "--clear", is_flag=True, help="Remove what the package keeps there. Files that are needed later are made again."
)
@options.as_json
def cache(clear: bool, as_json: bool) -> None:
    """Show this user's cache folder, which has measurements and compiled graphs."""
    folder = cache_folder()
    if folder is None:
        raise click.ClickException(f"this user has no home, and so no cache: set {VARIABLE} to a folder for it")
    for each in (folder, folder.parent):
        if os.path.exists(each) and not os.path.isdir(each):  # the methods of `Path` fail if the name is too long
            raise click.ClickException(f"{each} is a file, so that nothing is cached: set {VARIABLE} to a folder")
    sizes = _cached_bytes(folder)
    if clear:
        try:
            _clear_cache(folder)
        except OSError as error:
            raise click.ClickException(
                f"{folder} cannot be cleared: {reason(error)}; remove it as its owner, or set {VARIABLE} to another "
                "folder"
            ) from error
    if as_json:
        say(json.dumps({"folder": str(folder), "bytes": sizes, "cleared": clear}), needed=True)
        return
    say(f"{folder}{' (cleared)' if clear else ''}", needed=True)
    for name, size in sizes.items():
        say(f"{name}: {format_bytes(size)}", needed=True)


def _cached_bytes(root: Path) -> dict[str, int]:
    """The bytes of each entry of the cache, by name. Files that other processes remove in the meantime do not count."""
    sizes: dict[str, int] = {}
    for entry in _entries(root):
        for file in _files(entry):
            with contextlib.suppress(OSError):
                sizes[entry.name] = sizes.get(entry.name, 0) + file.stat().st_size
    return sizes


def _clear_cache(root: Path) -> None:
    """Remove all entries. Files and folders that other processes write in the meantime stay.

    Raises:
        OSError: an entry cannot be removed.
    """
    for entry in _entries(root):
        for file in _files(entry):
            file.unlink(missing_ok=True)
        for folder, _, _ in os.walk(entry, topdown=False):
            _remove_empty(Path(folder))
    _remove_empty(root)


def _entries(root: Path) -> list[Path]:
    """What the package keeps in its cache folder. Everything else there, and every link, belongs to somebody else."""
    names = {measuring.FILE, *measuring.LOCKS, LOCK, *KNOWN, *installed_backends()}
    found = [root / name for name in sorted(names)] + (leftovers(root) if os.path.isdir(root) else [])
    return [path for path in found if os.path.exists(path) and not os.path.islink(path)]


def _files(entry: Path) -> list[Path]:
    """The files in a folder and its subfolders, or the file itself."""
    if entry.is_file():
        return [entry]
    return [Path(folder, file) for folder, _, files in os.walk(entry) for file in files]


def _remove_empty(folder: Path) -> None:
    try:
        folder.rmdir()
    except OSError as error:
        # It is gone or not empty, or it is a link that the user has made.
        if error.errno not in (errno.ENOENT, errno.ENOTEMPTY, errno.ENOTDIR):
            raise
