"""`infgen-rt view`."""

import signal
import sys
from pathlib import Path
from typing import Any

import click

from infgen_rt.cli import options
from infgen_rt.cli.console import SIGNALLED, warnings_to_stderr
from infgen_rt.common.remedies import installing, missing_library
from infgen_rt.errors import InputError, LatentError, one_line
from infgen_rt.viewing.opening import Opener


@click.command(
    cls=options.Command,
    epilog="""Examples:
  infgen-rt view latent.safetensors
  infgen-rt view latent.npy --size 16k --normalisation vae
  infgen-rt view --sample NAME --size 16384x""",
)
@click.argument("latent", required=False, type=options.ANY_PATH)
@options.opening
def view(latent: Path | None, sample: str | None, **opening: Any) -> None:
    """Show LATENT in a window: zoom, move, save and copy. Only the visible part is decoded.

    Without LATENT, the window is empty, and a file can be dropped on it.
    """
    if latent is not None and sample is not None:
        raise LatentError("expected either a LATENT file or --sample NAME")
    try:
        from infgen_rt.qt.app import run
    except ImportError as error:
        remedy = missing_library(error) or installing("viewer")
        raise InputError(f"the viewer needs PySide6, which is not usable here ({one_line(error)}): {remedy}") from error
    with warnings_to_stderr():
        received = run(Opener(**opening), latent, sample)
    if received == signal.SIGINT:
        raise click.Abort
    if received:
        sys.exit(SIGNALLED + received)
