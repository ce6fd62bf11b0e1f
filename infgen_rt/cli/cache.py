"""`infgen-rt cache`."""

import contextlib
import errno
import json
import os
from pathlib import Path

import click

from infgen_rt.cli import options
from infgen_rt.cli.console import say
from infgen_rt.common.folders import VARIABLE, cache_folder
from infgen_rt.common.memory import format_bytes
from infgen_rt.errors import reason


@click.command()
@click.option(
    "--clear", is_flag=True, help="Remove everything in the folder. Files that are needed later are made again."
)
@options.as_json
def cache(clear: bool, as_json: bool) -> None:
    """Show this user's cache folder, which has measurements and compiled graphs."""
    folder = cache_folder()
    if folder is None:
        raise click.ClickException(f"this user has no home, and so no cache: set {VARIABLE} to a folder for it")
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
    for folder, _, files in os.walk(root):
        for file in files:
            path = Path(folder, file)
            with contextlib.suppress(OSError):
                entry = path.relative_to(root).parts[0]
                sizes[entry] = sizes.get(entry, 0) + path.stat().st_size
    return dict(sorted(sizes.items()))


def _clear_cache(root: Path) -> None:
    """Remove all entries. Files and folders that other processes write in the meantime stay.

    Raises:
        OSError: an entry cannot be removed.
    """
    for folder, _, files in os.walk(root, topdown=False):
        for file in files:
            Path(folder, file).unlink(missing_ok=True)
        try:
            Path(folder).rmdir()
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTEMPTY):
                raise
