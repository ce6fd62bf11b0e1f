"""Options that several benchmarks have on their command lines."""

from __future__ import annotations

import os
from pathlib import Path

import click

from infgen_rt.bundle.folder import DEFAULT_BUNDLE

model = click.option(
    "--model",
    type=click.Path(path_type=Path),
    default=DEFAULT_BUNDLE,
    help="Bundle.  [default: the one in the package]",
)
threads = click.option("--threads", default=os.cpu_count() or 1, show_default=True, help="Number of CPU threads.")
