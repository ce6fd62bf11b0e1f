"""The command `infgen-rt`."""

import json
import re
import signal
import sys
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Event
from typing import Any, NoReturn, get_args

import click

from infgen_rt.backend.candidates import PRECISIONS, Precision
from infgen_rt.backend.protocol import installed_backends
from infgen_rt.backend.report import describe_devices
from infgen_rt.bundle.folder import DEFAULT_BUNDLE, Bundle
from infgen_rt.bundle.manifest import MANIFEST
from infgen_rt.common.folders import cache_folder, cached_bytes, clear_cache
from infgen_rt.common.memory import format_bytes, peak_memory
from infgen_rt.common.pixels import Bits
from infgen_rt.decoder import Decoder
from infgen_rt.decoder import open as open_decoder
from infgen_rt.display.named import display_size, named_displays
from infgen_rt.errors import InfGenError, InputError, LatentError, OutputError, PlanError
from infgen_rt.geometry.shapes import Box, Fit, Size, fit, fixed_size, parse_box
from infgen_rt.latent.arrays import Normalisation, as_latent
from infgen_rt.latent.files import read_array
from infgen_rt.latent.samples import load_sample, sample_names
from infgen_rt.latent.spaces import LatentSpace, latent_space
from infgen_rt.picture import Picture, Progress
from infgen_rt.version import __version__
from infgen_rt.writers import FORMATS, Format, TileFormat

_FAILED, _BAD_INPUT, _INTERRUPTED, _TERMINATED = 1, 2, 130, 143
# Seconds between two looks at signals where waiting cannot be interrupted (Windows).
_SIGNALS = 0.1


class _Command(click.Command):
    """A command whose epilog keeps its line breaks."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if self.epilog:
            formatter.write(f"\n{self.epilog}\n")


@click.group(invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="infgen-rt")
@click.pass_context
def cli(context: click.Context) -> None:
    """Decode diffusion latents into pictures of any size.

    Exit codes: 0 done, 1 the work failed, 2 bad input, 130 interrupted. A picture file is there whole or not
    at all.
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


_PICTURE_OPTIONS = (
    click.argument("latents", nargs=-1, metavar="[LATENT]...", type=click.Path(path_type=Path)),
    click.option(
        "-o",
        "--output",
        required=True,
        type=click.Path(path_type=Path),
        help="Picture to write: .png, .jpg, .webp, .avif, .tif or .dzi; for several latents, the folder for them.",
    ),
    click.option(
        "--format",
        "ending",
        type=click.Choice([ending.removeprefix(".") for ending in FORMATS]),
        default="png",
        show_default=True,
        help="Of the pictures in a folder.",
    ),
    click.option("--resume", is_flag=True, help="Leave out latents whose pictures are in the folder already."),
    click.option("--size", help="3840x2160, 1080p, 1440p, 4k, 8k, x2160 (keeps the shape) or 2x.  [default: 1x]"),
    click.option(
        "--display", help="Instead of a size: a name that `infgen-rt displays` lists, or auto for this screen."
    ),
    click.option(
        "--fit",
        type=click.Choice(get_args(Fit)),
        help="How to fit the latent's shape to a display, or to a size as 3840x2160: cover it and write the middle "
        "that is seen, contain the whole picture in it, or stretch.  [default: cover for a display, else stretch]",
    ),
    click.option("--region", help="Write only this part of what is seen: x,y,width,height in pixels."),
    click.option("--sample", help="Decode a latent that the package ships; `infgen-rt info` lists them."),
    click.option("--model", type=click.Path(path_type=Path), help="Bundle to use.  [default: the one in the package]"),
    click.option("--backend", default="auto", show_default=True, help="auto, a backend's name, or cuda."),
    click.option("--device", help="Device of the backend, as `infgen-rt devices` lists them.  [default: the fastest]"),
    click.option(
        "--precision",
        type=click.Choice(PRECISIONS),
        default="fast",
        show_default=True,
        help="exact: float32 throughout; fast: what the device does natively.",
    ),
    click.option("--threads", type=click.IntRange(min=1), help="CPU threads.  [default: the backend's choice]"),
    click.option("--memory", help="Memory to stay within, as 1GiB.  [default: 4GiB, or half of what is free if less]"),
    click.option("--stages", help="Decode in stages of these scales, as 2,2, encoding the picture between them."),
    click.option("--max-scale", type=float, help="The fewest stages that enlarge so much at most.  [default: 1 stage]"),
    click.option("--tile", type=int, help="Largest tile's side in pixels.  [default: what memory allows]"),
    click.option(
        "--normalisation",
        type=click.Choice(["model", "vae"]),
        default="model",
        show_default=True,
        help="The latent's: the diffusion model's, or the VAE's own, as diffusers' output_type='latent' returns.",
    ),
    click.option("--latent-size", help="WxH in pixels that the pipeline was asked for; only for packed latents."),
    click.option("--key", help="Name of the array, in a file of several."),
    click.option(
        "--bits", type=click.Choice(["8", "16"]), default="8", show_default=True, help="16 for .png and .tif."
    ),
    click.option(
        "--tile-format",
        type=click.Choice(get_args(TileFormat)),
        default="jpg",
        show_default=True,
        help="Tiles of a .dzi.",
    ),
    click.option("--force", is_flag=True, help="Replace an existing file."),
    click.option("--quiet", is_flag=True, help="Print errors only."),
    click.option("--json", "as_json", is_flag=True, help="Print one JSON object a picture."),
)


@dataclass(frozen=True)
class _Request:
    """The values of `_PICTURE_OPTIONS`: what to decode, and how."""

    latents: tuple[Path, ...]
    output: Path
    ending: str
    resume: bool
    size: str | None
    display: str | None
    fit: Fit | None
    region: str | None
    sample: str | None
    model: Path | None
    backend: str
    device: str | None
    precision: Precision
    threads: int | None
    memory: str | None
    stages: str | None
    max_scale: float | None
    tile: int | None
    normalisation: Normalisation
    latent_size: str | None
    key: str | None
    bits: str
    tile_format: TileFormat
    force: bool
    quiet: bool
    as_json: bool

    @property
    def writing(self) -> dict[str, Any]:
        """Arguments of `Picture.save` and of its check."""
        bits: Bits = 16 if self.bits == "16" else 8
        return {"bits": bits, "tile_format": self.tile_format, "force": self.force}

    @property
    def several(self) -> bool:
        """Whether a folder of pictures is asked for."""
        return len(self.latents) > 1 or (self.output.is_dir() and self.sample is None)

    @contextmanager
    def open(self) -> Iterator["_Job"]:
        """Open the model and plan the picture; all that can be wrong with the request is found here."""
        if self.several:
            raise LatentError(f"{len(self.latents)} latents: expected one, and a picture's name for -o")
        self._target()
        array = _read_latent(self.latents[0] if self.latents else None, self.sample, self.key)
        with self.decoder() as decoder:
            yield self.job(decoder, array, self.output)

    def decoder(self) -> Decoder:
        """Open the model."""
        return open_decoder(
            self.model,
            self.backend,
            device=self.device,
            precision=self.precision,
            threads=self.threads,
            memory=self.memory,
        )

    def job(self, decoder: Decoder, array: Any, output: Path) -> "_Job":
        """Plan the picture of one latent."""
        target, latent_size = self._target(), _parse_pair(self.latent_size)
        size: str | Size | None = self.size
        seen = None
        if target is not None:
            native = decoder.native_size(array, latent_size=latent_size)
            size, seen = fit(native, target, self.fit or "cover")
        picture = decoder.picture(
            array,
            size,
            stages=_parse_stages(self.stages),
            max_scale=self.max_scale,
            tile=self.tile,
            normalisation=self.normalisation,
            latent_size=latent_size,
        )
        box = seen or picture.size.box
        if self.region:
            box = parse_box(self.region, box.size).placed_in(box)
        return _Job(decoder, picture, output, box, picture.check_save(output, region=box, **self.writing))

    def outputs(self) -> dict[Path, Path]:
        """The picture of each latent, in the folder that `output` is.

        Raises:
            OutputError: the folder cannot be made, or two latents would be the same picture.
        """
        if self.sample is not None:
            raise LatentError("expected either LATENT files or --sample NAME")
        outputs: dict[Path, Path] = {}
        for latent in self.latents:
            output = self.output / f"{latent.stem}.{self.ending}"
            if twin := next((other for other, name in outputs.items() if name == output), None):
                raise OutputError(f"{twin} and {latent} would both be {output}: decode them into folders of their own")
            outputs[latent] = output
        try:
            self.output.mkdir(exist_ok=True)
        except OSError as error:
            raise OutputError(f"{self.output} cannot be a folder of pictures: {error.strerror}") from None
        return outputs

    def _target(self) -> Size | None:
        """What the picture is fitted to; None when `size` alone says it."""
        if self.display is not None:
            if self.size is not None:
                raise PlanError("--display and --size exclude each other: expected one of them")
            return display_size(self.display)
        if self.fit is None:
            return None
        target = fixed_size(self.size or "")
        if target is None:
            raise PlanError("--fit needs something to fit to: expected --display, or --size with width and height")
        return target


@dataclass(frozen=True)
class _Job:
    """A request that can be carried out: the part `box` of `picture`, written to `output` as `form`."""

    decoder: Decoder
    picture: Picture
    output: Path
    box: Box
    form: Format

    def run(self, request: _Request, stopwatch: "_Stopwatch", notes: Sequence[str]) -> None:
        """Decode and write, with progress; then tell of it."""
        with _progress_bar(not request.quiet and sys.stderr.isatty()) as show:

            def on_progress(progress: Progress) -> None:
                stopwatch.lap(progress.stage)
                show(progress)

            def save(cancel: Event) -> None:
                self.picture.save(self.output, region=self.box, **request.writing, progress=on_progress, cancel=cancel)

            _beside(save)
        if request.as_json:
            told = {"seconds": stopwatch.seconds, "peak_memory": peak_memory(), "warnings": list(notes)}
            click.echo(json.dumps(self.describe() | told))
        elif not request.quiet:
            click.echo(f"{self.output}: {self.box.size}, {stopwatch.seconds['total']:.1f} s")

    def describe(self) -> dict[str, Any]:
        """What `decode` and `plan` both tell programs."""
        plan = self.picture.plan
        stages = [
            {
                "latent": stage.grid.cells,
                "size": stage.grid.picture,
                "tiles": stage.count,
                "tile_tokens": stage.tile,
            }
            for stage in plan.stages
        ]
        encoded = [encoding.tiling.count for encoding in plan.encodings]
        return {
            "output": str(self.output),
            "format": self.form.name,
            "size": self.box.size,
            "region": self.box,
            "picture": self.picture.size,
            "parts": sum(1 for _ in self.picture.parts(self.box)),
            "array_bytes": 3 * self.box.size.area,
            "model": self.decoder.manifest.model.name,
            "backend": asdict(self.decoder.backend),
            "plan": {
                "stages": stages,
                "encoded_tiles": encoded,
                "memory": plan.memory,
                "budget": plan.budget,
                "seconds": plan.seconds,
            },
        }


def _beside(work: Callable[[Event], None]) -> None:
    """Do work in another thread, so that signals, which Python attends to in the main one, cancel it at once."""
    cancel = Event()
    with ThreadPoolExecutor(1, "infgen-save") as pool:
        future = pool.submit(work, cancel)
        try:
            while not wait([future], timeout=_SIGNALS).done:
                pass
        finally:
            cancel.set()
        future.result()


def _picture_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that `decode` and `plan` share."""
    for option in reversed(_PICTURE_OPTIONS):
        command = option(command)
    return command


@cli.command(
    cls=_Command,
    epilog="""Examples:
  infgen-rt decode latent.safetensors -o picture.png --size 4k
  infgen-rt decode latent.safetensors -o wallpaper.png --display auto
  infgen-rt decode latent.npy -o picture.jpg --size 2x --memory 512MiB
  infgen-rt decode latent.npy -o large.png --size 8x --max-scale 4
  infgen-rt decode *.npy -o pictures --size 4k --resume
  infgen-rt decode pipeline.npy -o picture.png --normalisation vae
  infgen-rt decode --sample NAME -o corner.png --size 8k --region 0,0,1024,1024""",
)
@_picture_options
def decode(**options: Any) -> None:
    """Decode LATENT, a .npy, .npz or .safetensors file, into a picture.

    Several, or -o with a folder: each into a picture of its name, with --json a line each. One that fails is told and
    passed over; the exit code is 1 then.
    """
    request = _Request(**options)
    stopwatch = _Stopwatch()
    with _warnings_to_stderr(request.quiet) as notes:
        if request.several:
            _decode_several(request, notes)
            return
        with request.open() as job:
            stopwatch.lap("open")
            job.run(request, stopwatch, notes)


def _decode_several(request: _Request, notes: list[str]) -> None:
    """Decode every latent with one opened model."""
    outputs, failed = request.outputs(), 0
    with request.decoder() as decoder:
        for latent, output in outputs.items():
            if request.resume and output.exists():
                continue
            stopwatch = _Stopwatch()
            notes.clear()
            try:
                job = request.job(decoder, read_array(latent, request.key)[0], output)
                stopwatch.lap("open")
                job.run(request, stopwatch, notes)
            except InfGenError as error:
                failed += 1
                _complain(str(error), _FAILED)
                if request.as_json:
                    click.echo(json.dumps({"output": str(output), "error": str(error)}))
    if failed:
        raise InfGenError(f"{failed} of {len(outputs)} latents failed")


@cli.command(
    cls=_Command,
    epilog="""Examples:
  infgen-rt plan latent.safetensors -o picture.png --size 8k --memory 1GiB
  infgen-rt plan --sample NAME -o wallpaper.jpg --display iphone-16 --json""",
)
@_picture_options
def plan(**options: Any) -> None:
    """Say what `decode` would do with LATENT and the same options, without doing it.

    What decode would refuse before it starts, this refuses too.
    """
    request = _Request(**options)
    with _warnings_to_stderr(request.quiet) as notes, request.open() as job:
        facts = job.describe()
    if request.as_json:
        click.echo(json.dumps(facts | {"warnings": notes}))
    elif not request.quiet:
        parts = "1 part" if facts["parts"] == 1 else f"{facts['parts']} parts"
        click.echo(job.picture.plan)
        click.echo(f"region: {job.box}, decoded in {parts}, {format_bytes(facts['array_bytes'])} of pixels")
        click.echo(f"output: {request.output}, {job.box.size}, {job.form.name}")


@cli.command(
    cls=_Command,
    epilog="""Examples:
  infgen-rt displays
  infgen-rt displays --json""",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def displays(as_json: bool) -> None:
    """List the displays that `--display` knows by name, with their sizes in pixels."""
    known = named_displays()
    if as_json:
        click.echo(json.dumps({name: asdict(display) for name, display in known.items()}))
        return
    for name, display in known.items():
        click.echo(f"{name:24}{display.size!s:>10}  {display.kind:8}{display.title}")


@cli.command(
    cls=_Command,
    epilog="""Examples:
  infgen-rt info
  infgen-rt info latent.safetensors
  infgen-rt info model.zip --json""",
)
@click.argument("path", required=False, type=click.Path(path_type=Path))
@click.option("--space", default="flux2", show_default=True, help="Latent space of a latent.")
@click.option("--normalisation", type=click.Choice(["model", "vae"]), default="model", help="As for decode.")
@click.option("--latent-size", help="As for decode.")
@click.option("--key", help="As for decode.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def info(
    path: Path | None, space: str, normalisation: Normalisation, latent_size: str | None, key: str | None, as_json: bool
) -> None:
    """Describe PATH, a model bundle or a latent; without PATH, this installation."""
    with _warnings_to_stderr(quiet=False):
        if path is None:
            facts = _describe_installation()
        elif _is_bundle(path):
            facts = _describe_bundle(path)
        else:
            facts = _describe_latent(path, key, latent_space(space), normalisation, _parse_pair(latent_size))
    if as_json:
        click.echo(json.dumps(facts))
    else:
        _print_facts(facts)


@cli.command(
    cls=_Command,
    epilog="""Examples:
  infgen-rt devices
  infgen-rt devices --measure --threads 2""",
)
@click.option("--measure", "fresh", is_flag=True, help="Measure all that is usable now, and remember it.")
@click.option("--model", type=click.Path(path_type=Path), help="Bundle to measure.  [default: the one in the package]")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads.  [default: the backend's choice]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def devices(fresh: bool, model: Path | None, threads: int | None, as_json: bool) -> None:
    """List what can run a model here, how fast, and for the rest what to install."""
    with _warnings_to_stderr(quiet=False):
        facts = describe_devices(Bundle.open(model), threads, fresh)
    if as_json:
        click.echo(json.dumps([asdict(fact) for fact in facts]))
    else:
        click.echo("\n".join(str(fact) for fact in facts))


@cli.command()
@click.option("--clear", is_flag=True, help="Remove everything; it is made again when it is needed.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def cache(clear: bool, as_json: bool) -> None:
    """Show what is kept in this user's cache folder: measurements and compiled graphs."""
    sizes, folder = cached_bytes(), cache_folder()
    if clear:
        try:
            clear_cache()
        except OSError as error:
            raise click.ClickException(f"{folder} cannot be cleared: {error.strerror}") from error
    if as_json:
        click.echo(json.dumps({"folder": str(folder), "bytes": sizes, "cleared": clear}))
        return
    click.echo(f"{folder}{' (cleared)' if clear else ''}")
    for name, size in sizes.items():
        click.echo(f"{name}: {format_bytes(size)}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: the command line without the program's name; None for the process's own.

    Returns:
        The exit code.
    """
    # An app that stops its helper sends SIGTERM; as with Ctrl-C, nothing half-written is to stay behind.
    signal.signal(signal.SIGTERM, _on_terminate)
    try:
        return cli.main(arguments, prog_name="infgen-rt", standalone_mode=False) or 0
    except click.Abort:
        return _complain("interrupted", _INTERRUPTED)
    except click.ClickException as error:
        return _complain(error.format_message(), _BAD_INPUT)
    except InputError as error:
        return _complain(str(error), _BAD_INPUT)
    except InfGenError as error:
        return _complain(str(error), _FAILED)
    except MemoryError:
        return _complain("out of memory: pass a smaller --memory", _FAILED)


def _complain(text: str, code: int) -> int:
    click.echo(f"Error: {' '.join(text.split())}", err=True)
    return code


def _on_terminate(number: int, frame: object) -> NoReturn:
    sys.exit(_TERMINATED)


class _Stopwatch:
    """Seconds a phase, and in all."""

    def __init__(self) -> None:
        self._began = self._last = time.perf_counter()
        self.seconds: dict[str, float] = {}

    def lap(self, phase: str) -> None:
        """Book the time since the last lap on a phase."""
        now = time.perf_counter()
        self.seconds[phase] = self.seconds.get(phase, 0.0) + now - self._last
        self.seconds["total"] = now - self._began
        self._last = now


@contextmanager
def _warnings_to_stderr(quiet: bool) -> Iterator[list[str]]:
    """Print warnings as one line each, as they come, and gather them."""
    notes: list[str] = []

    def show(message: Warning | str, *args: Any, **options: Any) -> None:
        notes.append(str(message))
        if not quiet:
            click.echo(f"Warning: {message}", err=True)

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = show
        yield notes


@contextmanager
def _progress_bar(wanted: bool) -> Iterator[Callable[[Progress], None]]:
    if not wanted:
        yield lambda progress: None
        return
    with click.progressbar(length=1, file=sys.stderr, width=40) as bar:

        def show(progress: Progress) -> None:
            bar.length = progress.total
            bar.label = f"{progress.stage:8}"
            bar.update(progress.done - bar.pos)

        yield show


def _read_latent(path: Path | None, sample: str | None, key: str | None) -> Any:
    if path is not None and sample is None:
        return read_array(path, key)[0]
    if sample is not None and path is None:
        return load_sample(sample).latent
    raise LatentError("expected either a LATENT file or --sample NAME")


def _parse_pair(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    match = re.fullmatch(r"(\d{1,6})x(\d{1,6})", text.lower())
    if match is None:
        raise LatentError(f"latent size {text!r} is not understood: expected pixels as 1024x1024")
    return int(match[1]), int(match[2])


def _parse_stages(text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise PlanError(f"stages {text!r} are not understood: expected their scales, as 2,2") from None


def _is_bundle(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return path.is_dir()
    with zipfile.ZipFile(path) as archive:
        return MANIFEST in archive.namelist()


def _describe_installation() -> dict[str, Any]:
    return {
        "version": __version__,
        "backends": list(installed_backends()),
        "samples": {name: load_sample(name).title for name in sample_names()},
        "model": _describe_bundle(DEFAULT_BUNDLE) if DEFAULT_BUNDLE.is_dir() else None,
    }


def _describe_bundle(path: Path) -> dict[str, Any]:
    manifest = Bundle.open(path).manifest
    return {
        "bundle": str(path),
        **asdict(manifest.model),
        "latent_space": manifest.latent_space,
        "scale_range": manifest.scale_range,
        "recipes": [f"{recipe.name} ({recipe.target}, {recipe.precision})" for recipe in manifest.recipes],
        "size": format_bytes(sum(file.bytes for file in manifest.files.values())),
        "verification": [_describe_verification(entry) for entry in manifest.verification],
    }


def _describe_verification(entry: dict[str, Any]) -> str:
    """One line of what the exporter proved; bundles of other exporters may say it in other words."""
    try:
        errors = [check["max_error"] for check in entry["checks"]]
        return f"{entry['recipe']} {entry['graph']}: error {max(errors):.1e} at most in {len(errors)} shapes"
    except (KeyError, TypeError, ValueError):
        return json.dumps(entry)


def _describe_latent(
    path: Path, key: str | None, space: LatentSpace, normalisation: Normalisation, latent_size: tuple[int, int] | None
) -> dict[str, Any]:
    array, metadata = read_array(path, key)
    try:
        latent = as_latent(array, space, normalisation=normalisation, latent_size=latent_size)
    except LatentError as error:
        raise LatentError(f"{path}: {error}") from None
    return {
        "latent": str(path),
        "stored_shape": array.shape,
        "channels": space.channels,
        "cells": latent.shape[:0:-1],
        "native_size": space.native_size(latent),
        "mean": round(float(latent.mean()), 4),
        "std": round(float(latent.std()), 4),
        **metadata,
    }


def _print_facts(facts: dict[str, Any], indent: str = "") -> None:
    for name, value in facts.items():
        if isinstance(value, dict):
            click.echo(f"{indent}{name}:")
            _print_facts(value, indent + "  ")
        elif isinstance(value, (list, tuple)):
            items = [str(item) for item in value]
            click.echo(f"{indent}{name}: {', '.join(items) or 'none'}")
        else:
            click.echo(f"{indent}{name}: {value}")
