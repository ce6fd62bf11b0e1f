"""Options that several benchmarks have on their command lines."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from infgen_rt.bundle.folder import DEFAULT_BUNDLE
from infgen_rt.errors import InfGenError

model = click.option(
    "--model",
    type=click.Path(path_type=Path),
    default=DEFAULT_BUNDLE,
    help="Bundle.  [default: the one in the package]",
)
threads = click.option(
    "--threads",
    type=click.IntRange(min=1),
    default=os.cpu_count() or 1,
    show_default=True,
    help="Number of CPU threads.",
)


class Command(click.Command):
    """A command whose errors of this project's own are messages, and not tracebacks."""

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command."""
        try:
            return super().invoke(ctx)
        except InfGenError as error:
            raise click.ClickException(str(error)) from error
