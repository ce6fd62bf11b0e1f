"""Options and parameter types of the commands, and their command class."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import click

from infgen_rt.backend.candidates import PRECISIONS
from infgen_rt.cli.metadata import entries
from infgen_rt.common.files import check_possible
from infgen_rt.errors import InputError, LatentError, PlanError
from infgen_rt.geometry.shapes import Fit
from infgen_rt.latent.arrays import Normalisation
from infgen_rt.writers import FORMATS, TileFormat

Decorator = Callable[[Callable[..., None]], Callable[..., None]]


class Command(click.Command):
    """A command whose epilog keeps its line breaks."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if self.epilog:
            formatter.write(f"\n{self.epilog}\n")


# Parameter types. They raise this package's errors, whose messages are shown unchanged.


class _AnyPath(click.Path):
    """A path, which need not exist. For text that cannot be a path, click would fail with a ValueError."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":  # click would take it for the current folder
            raise InputError("a name is empty: pass a file or a folder, or set the variable that the name comes from")
        check_possible(value, InputError)
        return super().convert(value, param, ctx)


ANY_PATH = _AnyPath(path_type=Path)
_PATH_AS_WRITTEN = _AnyPath(path_type=str)


def pixel_pair(text: str) -> tuple[int, int]:
    """Parse a width and a height, such as 1024x1024."""
    match = re.fullmatch(r"(\d{1,6})[x\N{MULTIPLICATION SIGN}](\d{1,6})", text.lower())
    if match is None:
        raise LatentError(f"latent size {text!r} is not understood: expected pixels as 1024x1024")
    return int(match[1]), int(match[2])


def scales(text: str) -> tuple[float, ...]:
    """Parse the scales of stages, such as 2,2."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise PlanError(f"stages {text!r} are not understood: expected their scales, as 2,2") from None


def _number(context: click.Context, parameter: click.Parameter, value: str) -> int:
    """Convert a choice to a number. click 8.1 keeps it as text."""
    return int(value)


# Options that several commands have.

model = click.option("--model", type=ANY_PATH, help="The model bundle to use.  [default: the one in the package]")
space = click.option(
    "--space",
    help="The latent's space, or the name of a model that uses it (see infgen-rt spaces), if the bundle has several.  "
    "[default: the only one that fits the latent's shape]",
)
backend = click.option("--backend", default="auto", show_default=True, help="auto, a backend's name, or cuda.")
device = click.option(
    "--device", help="The backend's device, as `infgen-rt devices` lists them.  [default: the fastest]"
)
threads = click.option("--threads", type=click.IntRange(min=1), help="CPU threads.  [default: the backend's choice]")
normalisation = click.option(
    "--normalisation",
    type=click.Choice(get_args(Normalisation)),
    help="The latent's normalisation: the diffusion model's, or the VAE's own. With output_type='latent', "
    "Flux2Pipeline of diffusers 0.36 to 0.42.1 returns the model's, and Flux2KleinPipeline of 0.37 to 0.42.1 the VAE's "
    "own.  [default: model, with a warning if the numbers contradict it or are ambiguous]",
)
latent_size = click.option(
    "--latent-size",
    type=pixel_pair,
    metavar="WxH",
    help="The size in pixels that was requested from the pipeline. Only packed latents need it.",
)
key = click.option("--key", help="The name of the array, if the file has several.")
as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")

# Options of `view` and `serve`, in the order of the help.
_OPENING_OPTIONS: tuple[Decorator, ...] = (
    click.option(
        "--size",
        default="4x",
        show_default=True,
        help="The picture's size, as for decode. A width and height, or a name such as 16k, is the largest size: the "
        "picture keeps the proportions of its latent.",
    ),
    click.option("--sample", help="Show a latent that the package ships. `infgen-rt info` lists them."),
    model,
    space,
    backend,
    device,
    click.option(
        "--precision", type=click.Choice(PRECISIONS), default="fast", show_default=True, help="As for decode."
    ),
    threads,
    click.option("--memory", help="The memory for decoding, as for decode. Decoded tiles take up to 256 MiB more."),
    normalisation,
    latent_size,
    key,
)


def opening(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that `view` and `serve` share to a command."""
    for option in reversed(_OPENING_OPTIONS):
        command = option(command)
    return command


# Options of `decode` and `plan`, in the order of the help.
_PICTURE_OPTIONS: tuple[Decorator, ...] = (
    click.argument("latents", nargs=-1, metavar="[LATENT]...", type=ANY_PATH),
    click.option(
        "-o",
        "--output",
        required=True,
        type=_PATH_AS_WRITTEN,
        help=f"The picture to write: {', '.join(FORMATS)}. For several latents, or with a slash at the end, the folder "
        "for their pictures. - is standard output, in the format of --format.",
    ),
    click.option(
        "--format",
        type=click.Choice([ending.removeprefix(".") for ending in FORMATS]),
        help="The format of the pictures in a folder, or of standard output.  [default: png]",
    ),
    click.option("--resume", is_flag=True, help="Leave out pictures that exist already."),
    click.option("--size", help="3840x2160, 1080p, 1440p, 4k, 8k, 16k, x2160 (keeps the shape) or 2x.  [default: 1x]"),
    click.option(
        "--display",
        help="Take the size of a display: a name that `infgen-rt displays` lists, or auto for this machine's screen.",
    ),
    click.option(
        "--fit",
        type=click.Choice(get_args(Fit)),
        help="How a picture fits a display, or a size such as 3840x2160, of other proportions. cover: the picture "
        "fills the display, and only its visible middle is written. contain: the whole picture is visible. stretch: "
        "the picture's proportions change.  [default: cover for a display, else stretch]",
    ),
    click.option("--region", help="Write only this part of the visible picture: x,y,width,height in pixels."),
    click.option("--sample", help="Decode a latent that the package ships. `infgen-rt info` lists them."),
    model,
    space,
    backend,
    device,
    click.option(
        "--precision",
        type=click.Choice(PRECISIONS),
        default="fast",
        show_default=True,
        help="exact: float32 throughout. fast: the arithmetic that is fastest on the device.",
    ),
    threads,
    click.option(
        "--memory",
        help="The memory limit, such as 1GiB.  [default: 4GiB, or half of the free memory if that is less]",
    ),
    click.option(
        "--stages",
        type=scales,
        metavar="SCALES",
        help="Decode in stages of these scales, such as 2,2. The picture is encoded again between two stages.",
    ),
    click.option(
        "--max-scale",
        type=float,
        help="Use as few stages as possible, none of which enlarges more than this. With inf, there is one.  "
        "[default: one stage up to 5x, and two above]",
    ),
    click.option("--tile", type=int, help="The largest tile's side in pixels.  [default: as large as memory allows]"),
    normalisation,
    latent_size,
    key,
    click.option(
        "--bits",
        type=click.Choice(["8", "16"]),
        default="8",
        show_default=True,
        callback=_number,
        help=f"Bits per channel. 16 is for {', '.join(ending for ending, form in FORMATS.items() if 16 in form.bits)}.",
    ),
    click.option(
        "--tile-format",
        type=click.Choice(get_args(TileFormat)),
        help="The format of a .dzi's tiles.  [default: jpg]",
    ),
    click.option(
        "--quality",
        type=click.IntRange(1, 100),
        help="The quality of .jpg, .webp, .avif and jpg tiles.  [default: 95, or 90 for .avif]",
    ),
    click.option("--lossless", is_flag=True, help="Write .webp without loss. .png and .tif are always without loss."),
    click.option(
        "--metadata",
        multiple=True,
        metavar="KEY=TEXT",
        callback=entries,
        help="Text to write into the pictures. The option can be repeated.",
    ),
    click.option(
        "--no-metadata",
        is_flag=True,
        help="Do not write text from the latent's file, such as ComfyUI's prompt and workflow, into the picture.",
    ),
    click.option("--force", is_flag=True, help="Replace an existing file."),
    click.option("--quiet", is_flag=True, help="Print errors only."),
    click.option("--verbose", is_flag=True, help="Print each step with its time on standard error."),
    click.option("--json", "as_json", is_flag=True, help="Print one JSON object per picture."),
)


def picture_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that `decode` and `plan` share to a command."""
    for option in reversed(_PICTURE_OPTIONS):
        command = option(command)
    return command
