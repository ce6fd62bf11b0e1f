"""`infgen-rt decode`."""

import json
from typing import Any

import click

from infgen_rt.cli.console import FAILED, Stopwatch, complain, warnings_to_stderr
from infgen_rt.cli.options import Command, picture_options
from infgen_rt.cli.request import Request
from infgen_rt.errors import InfGenError
from infgen_rt.latent.files import read_array


@click.command(
    cls=Command,
    epilog="""Examples:
  infgen-rt decode latent.safetensors -o picture.png --size 4k
  infgen-rt decode latent.safetensors -o wallpaper.png --display auto
  infgen-rt decode latent.npy -o picture.jpg --size 2x --memory 512MiB
  infgen-rt decode latent.npy -o large.png --size 8x --max-scale 4
  infgen-rt decode *.npy -o pictures --size 4k --resume
  infgen-rt decode pipeline.npy -o picture.png --normalisation vae
  infgen-rt decode --sample NAME -o corner.png --size 8k --region 0,0,1024,1024""",
)
@picture_options
def decode(**options: Any) -> None:
    """Decode LATENT, a .npy, .npz or .safetensors file, into a picture.

    With several latents, or if -o is a folder, each becomes a picture of its name in that folder, and --json prints a
    line for each. A latent that fails is reported and skipped, and the exit code is then 1.
    """
    request = Request(**options)
    stopwatch = Stopwatch()
    with warnings_to_stderr(request.quiet) as notes:
        if request.several:
            _decode_several(request, notes)
            return
        with request.open() as job:
            stopwatch.lap("open")
            job.run(request, stopwatch, notes)


def _decode_several(request: Request, notes: list[str]) -> None:
    """Decode every latent with one opened model."""
    outputs, failed = request.outputs(), 0
    with request.decoder() as decoder:
        for latent, output in outputs.items():
            if request.resume and output.exists():
                continue
            stopwatch = Stopwatch()
            notes.clear()
            try:
                job = request.job(decoder, read_array(latent, request.key)[0], output)
                stopwatch.lap("open")
                job.run(request, stopwatch, notes)
            except InfGenError as error:
                failed += 1
                complain(str(error), FAILED)
                if request.as_json:
                    click.echo(json.dumps({"output": str(output), "error": str(error)}))
    if failed:
        raise InfGenError(f"{failed} of {len(outputs)} latents failed")
