"""`infgen-rt devices`."""

import json
from dataclasses import asdict
from pathlib import Path

import click

from infgen_rt.backend.report import describe_devices
from infgen_rt.bundle.folder import Bundle
from infgen_rt.cli import options
from infgen_rt.cli.console import late_progress_bar, say, warnings_to_stderr
from infgen_rt.cli.interruption import interruptible

_ABOUT = "Without --backend, * is taken (--precision fast). The order is by the time of a small picture, fastest first."
_NOT_MEASURED = "Without --backend, the fastest is taken. It is measured at the first use, or with --measure."


@click.command(
    cls=options.Command,
    epilog="""Examples:
  infgen-rt devices
  infgen-rt devices --measure --threads 2""",
)
@click.option("--measure", "fresh", is_flag=True, help="Measure all usable devices now, and store the results.")
@options.model
@options.threads
@options.as_json
def devices(fresh: bool, model: Path | None, threads: int | None, as_json: bool) -> None:
    """List the backends and devices that can run a model here, with their speed, and what the others need.

    Those that can run it are marked + and come first, by the time that a small picture takes. The one that is taken
    without --backend and with --precision fast is marked *.
    """
    with warnings_to_stderr(), late_progress_bar(True) as show, interruptible() as cancel:
        bundle = Bundle.open(model)
        facts = describe_devices(bundle, threads, fresh, progress=show, cancel=cancel)
    if as_json:
        say(json.dumps([asdict(fact) for fact in facts]), needed=True)
    else:
        say("\n".join(str(fact) for fact in facts), needed=True)
        say(_ABOUT if any(fact.auto for fact in facts) else _NOT_MEASURED, needed=True)
