"""`infgen-rt plan`."""

import json
from typing import Any

import click

from infgen_rt.cli.console import warnings_to_stderr
from infgen_rt.cli.options import Command, picture_options
from infgen_rt.cli.request import Request
from infgen_rt.common.memory import format_bytes


@click.command(
    cls=Command,
    epilog="""Examples:
  infgen-rt plan latent.safetensors -o picture.png --size 8k --memory 1GiB
  infgen-rt plan --sample NAME -o wallpaper.jpg --display iphone-16 --json""",
)
@picture_options
def plan(**options: Any) -> None:
    """Say what `decode` would do with LATENT and the same options, without doing it.

    `plan` refuses what `decode` would refuse before it starts.
    """
    request = Request(**options)
    with warnings_to_stderr(request.quiet) as notes, request.open() as job:
        facts = job.describe()
    if request.as_json:
        click.echo(json.dumps(facts | {"warnings": notes}))
    elif not request.quiet:
        parts = "1 part" if facts["parts"] == 1 else f"{facts['parts']} parts"
        click.echo(job.picture.plan)
        click.echo(f"region: {job.box}, decoded in {parts}, {format_bytes(facts['array_bytes'])} of pixels")
        click.echo(f"output: {request.output}, {job.box.size}, {job.form.name}")
