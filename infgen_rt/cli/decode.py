"""`infgen-rt decode`."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

from infgen_rt.cli.console import FAILED, Notes, Stopwatch, complain, log_to_stderr, warnings_to_stderr
from infgen_rt.cli.latents import STREAM, read_latent
from infgen_rt.cli.options import Command, picture_options
from infgen_rt.cli.request import Request
from infgen_rt.cli.writing import Writing
from infgen_rt.decoder import Decoder
from infgen_rt.errors import InfGenError


@click.command(
    cls=Command,
    epilog="""Examples:
  infgen-rt decode latent.safetensors -o picture.png --size 4k
  infgen-rt decode latent.safetensors -o wallpaper.png --display auto
  infgen-rt decode latent.npy -o picture.jpg --size 2x --memory 512MiB
  infgen-rt decode latent.npy -o large.png --size 8x --max-scale 4
  infgen-rt decode *.npy -o pictures --size 4k --resume
  infgen-rt decode klein.npy -o picture.png --normalisation vae
  infgen-rt decode latents -o pictures --size 2x
  infgen-rt decode ComfyUI_00001_.latent -o picture.png --metadata "Author=A. Painter"
  cat latent.npy | infgen-rt decode - -o - --format png > picture.png
  infgen-rt decode --sample NAME -o corner.png --size 8k --region 0,0,1024,1024""",
)
@picture_options
def decode(**options: Any) -> None:
    """Decode LATENT into a picture.

    LATENT is a .npy, .npz or .safetensors file, a folder of them, or - for standard input.

    A batch of latents in one array becomes several numbered pictures: picture-1.png, picture-2.png and so on.

    If there are several latents, or if -o is a folder or ends with a slash, the folder gets a picture for each latent,
    with the latent's name, and --json prints a line for each. A latent that fails is reported and skipped, and the
    exit code is then 1.
    """
    request = Request.of(**options)
    stopwatch = Stopwatch()
    with log_to_stderr(request.verbose), warnings_to_stderr(request.quiet) as notes:
        if request.several:
            _decode_several(request, notes)
            return
        with request.open() as jobs, Writing(request, notes, _raise) as writing:
            writing.add(None, jobs, stopwatch)
            writing.finish()
        request.tell_left_out()
        request.check_told()


def _decode_several(request: Request, notes: Notes) -> None:
    """Decode all latents. The model of each latent space is opened once."""
    outputs, names = request.outputs()
    decoders: dict[str, Decoder] = {}
    failed: list[Path] = []

    def fail(latent: Path, error: InfGenError) -> None:
        failed.append(latent)
        name = "standard input" if latent == STREAM else str(latent)
        text = str(error) if name in str(error) else f"{name}: {error}"
        complain(text, FAILED)
        if request.as_json:
            request.tell({"output": str(outputs[latent]), "error": text})

    with ExitStack() as opened, Writing(request, notes, fail) as writing:
        for latent, output in outputs.items():
            try:
                if request.resume and request.is_there(output):
                    request.left_out.append((1, 1))
                    request.leave_out(output)
                    continue
                with writing.planning():
                    stopwatch = Stopwatch()
                    array = read_latent(latent, request.key)
                    space = request.space_of(array)
                    if space not in decoders:
                        # Opening measures the ways of running the model, so nothing else may run.
                        writing.finish()
                        decoders[space] = opened.enter_context(request.decoder(space))
                    jobs = request.jobs(decoders[space], array, output, names, latent)
            except InfGenError as error:
                writing.add_failed(latent, error)
            else:
                writing.add(latent, jobs, stopwatch)
        writing.finish()
    request.tell_left_out()
    if count := len(failed):
        resume = "; --resume leaves out those that are done" if count < len(outputs) and not request.resume else ""
        raise InfGenError(f"{count} of {len(outputs)} latents failed, for the reasons above{resume}")
    request.check_told()


def _raise(latent: object, error: InfGenError) -> None:
    raise error
