"""`infgen-rt serve`."""

import os
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import click

from infgen_rt.cli import options
from infgen_rt.cli.console import late_progress_bar, say, warnings_to_stderr
from infgen_rt.cli.interruption import interruptible
from infgen_rt.cli.latents import expand
from infgen_rt.errors import LatentError
from infgen_rt.viewing.opening import Opener


@click.command(
    cls=options.Command,
    epilog="""Examples:
  infgen-rt serve latent.safetensors
  infgen-rt serve latents
  infgen-rt serve --sample NAME --size 16k --port 0""",
)
@click.argument("latent", required=False, type=options.ANY_PATH)
@options.opening
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="The address to listen at. The default is loopback."
)
@click.option("--port", type=click.IntRange(0, 65535), default=8322, show_default=True, help="0 for any that is free.")
def serve(latent: Path | None, sample: str | None, host: str, port: int, **opening: Any) -> None:
    """Serve the picture of LATENT to a browser on this machine, tile by tile. Only the visible part is decoded.

    LATENT is a .npy, .npz or .safetensors file, or a folder of them, whose pictures the page offers one by one.

    The command prints the address of a page that shows the picture. Other programs can read the tiles by the IIIF
    Image API 3, level 0. Ctrl-C ends the command.
    """
    if (latent is None) == (sample is None):
        raise LatentError("expected either a LATENT file or --sample NAME")
    from infgen_rt.viewing.server import TileServer

    with closing(Opener(**opening)) as opener, warnings_to_stderr():
        files: Sequence[Path | None] = [None] if latent is None else expand([latent])
        with late_progress_bar(True) as show, interruptible() as cancel:
            opened = [opener.open(file, sample, progress=show, cancel=cancel) for file in files]
        pictures = [picture for each in opened for picture in each.pictures]
        title = opened[0].title if latent is None or latent == files[0] else os.path.basename(os.path.abspath(latent))
        with TileServer(pictures, host, port, title) as server:
            what = f"{pictures[0].size}" if len(pictures) == 1 else f"{len(pictures)} pictures"
            say(f"{server.address} shows {title}, {what}. Ctrl-C ends this.")
            with suppress(KeyboardInterrupt):
                server.serve_forever()
