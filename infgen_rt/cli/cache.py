"""`infgen-rt cache`."""

import json
import shutil

import click

from infgen_rt.cli import options
from infgen_rt.common.folders import cache_folder
from infgen_rt.common.memory import format_bytes


@click.command()
@click.option("--clear", is_flag=True, help="Remove all of it. What is needed is made again.")
@options.as_json
def cache(clear: bool, as_json: bool) -> None:
    """Show what is kept in this user's cache folder: measurements and compiled graphs."""
    sizes, folder = _cached_bytes(), cache_folder()
    if clear:
        try:
            _clear_cache()
        except OSError as error:
            raise click.ClickException(f"{folder} cannot be cleared: {error.strerror}") from error
    if as_json:
        click.echo(json.dumps({"folder": str(folder), "bytes": sizes, "cleared": clear}))
        return
    click.echo(f"{folder}{' (cleared)' if clear else ''}")
    for name, size in sizes.items():
        click.echo(f"{name}: {format_bytes(size)}")


def _cached_bytes() -> dict[str, int]:
    """Bytes of each thing in the cache, by its name there."""
    folder = cache_folder()
    if not folder.is_dir():
        return {}
    sizes = {}
    for entry in sorted(folder.iterdir()):
        files = entry.rglob("*") if entry.is_dir() else [entry]
        sizes[entry.name] = sum(file.stat().st_size for file in files if file.is_file())
    return sizes


def _clear_cache() -> None:
    """Remove all of it.

    Raises:
        OSError: something cannot be removed.
    """
    folder = cache_folder()
    if folder.is_dir():
        shutil.rmtree(folder)
