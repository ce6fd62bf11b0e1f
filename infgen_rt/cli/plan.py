"""`infgen-rt plan`."""

import json
from typing import Any

import click

from infgen_rt.cli.console import log_to_stderr, say, warnings_to_stderr
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
    """Show what `decode` would do with LATENT and the same options. Nothing is decoded.

    If `decode` would refuse the input before it starts, `plan` fails with the same error.
    """
    request = Request.of(**options)
    with log_to_stderr(request.verbose), warnings_to_stderr(request.quiet) as notes, request.open() as jobs:
        described = [(job, job.describe()) for job in jobs]
    request.tell_left_out()
    if not described:  # with --resume, all may be there
        return
    job, facts = described[0]
    if request.as_json:
        for _, each in described:
            say(json.dumps(each | {"warnings": notes}), needed=True)
    elif not request.quiet:
        parts = "1 part" if facts["parts"] == 1 else f"{facts['parts']} parts"
        say(str(job.picture.plan), needed=True)
        say(f"region: {job.box}, decoded in {parts}, {format_bytes(facts['array_bytes'])} of pixels", needed=True)
        count = "" if len(jobs) == 1 else f", {len(jobs)} of these, to {jobs[-1].title}"
        say(
            f"output: {job.title}, {job.box.size}, {job.form.name}{count}; {format_bytes(job.memory)} in all",
            needed=True,
        )
