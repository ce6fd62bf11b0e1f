"""`infgen-rt displays`."""

import json
from dataclasses import asdict

import click

from infgen_rt.cli import options
from infgen_rt.cli.console import say
from infgen_rt.display.named import named_displays


@click.command(
    cls=options.Command,
    epilog="""Examples:
  infgen-rt displays
  infgen-rt displays --json""",
)
@options.as_json
def displays(as_json: bool) -> None:
    """List the displays that `--display` knows by name, with their sizes in pixels."""
    known = named_displays()
    if as_json:
        say(json.dumps({name: asdict(display) for name, display in known.items()}), needed=True)
        return
    for name, display in known.items():
        say(f"{name:24}{display.size!s:>10}  {display.kind:8}{display.title}", needed=True)
