"""A request of `decode` or `plan`, and the jobs that it consists of."""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from threading import Event
from typing import Any

from infgen_rt.backend.candidates import Precision
from infgen_rt.cli.console import Stopwatch, late_progress_bar, say
from infgen_rt.cli.interruption import interruptible
from infgen_rt.cli.latents import STREAM, expand, read_one
from infgen_rt.cli.metadata import metadata_of
from infgen_rt.cli.names import Names
from infgen_rt.cli.stream import pour, target_of
from infgen_rt.common.memory import peak_memory
from infgen_rt.common.pixels import Bits
from infgen_rt.common.progress import Tell
from infgen_rt.decoder import Decoder, open_bundle
from infgen_rt.decoder import open as open_decoder
from infgen_rt.display.named import display_size
from infgen_rt.errors import InfGenError, InputError, LatentError, OutputError, PlanError, reason
from infgen_rt.geometry.shapes import Box, Fit, Size, fit, fixed_size, parse_box
from infgen_rt.latent.arrays import Normalisation
from infgen_rt.latent.choosing import space_among
from infgen_rt.latent.spaces import latent_space
from infgen_rt.picture import Picture
from infgen_rt.writers import FORMATS, Format, TileFormat


@dataclass(frozen=True)
class Request:
    """The values of `options.picture_options`: what to decode, and how."""

    latents: tuple[Path, ...]
    output: Path
    into_folder: bool
    format: str | None
    resume: bool
    size: str | None
    display: str | None
    fit: Fit | None
    region: str | None
    sample: str | None
    model: Path | None
    space: str | None
    backend: str
    device: str | None
    precision: Precision
    threads: int | None
    memory: str | None
    stages: tuple[float, ...] | None
    max_scale: float | None
    tile: int | None
    normalisation: Normalisation | None
    latent_size: tuple[int, int] | None
    key: str | None
    bits: Bits
    tile_format: TileFormat | None
    quality: int | None
    lossless: bool
    metadata: dict[str, str]
    no_metadata: bool
    force: bool
    quiet: bool
    verbose: bool
    as_json: bool

    @classmethod
    def of(cls, output: str, **options: Any) -> "Request":
        """The request of these options. A slash at the end of the output says that it is a folder, which paths lose."""
        separators = tuple(each for each in (os.sep, os.altsep) if each)
        return cls(output=Path(output), into_folder=output.endswith(separators), **options)

    def __post_init__(self) -> None:
        """Check the options that can be checked without a file.

        Raises:
            InputError: two options contradict each other.
        """
        if self.quiet and self.verbose:
            raise InputError("--quiet and --verbose exclude each other: expected one of them")
        if self.resume and self.force:
            raise InputError("--resume and --force exclude each other: one keeps pictures, and one replaces them")
        if self.sample is not None and self.key is not None:
            raise InputError("--key names the array of a file, and a sample has one: leave it out")
        form = FORMATS.get(self.output.suffix.lower())
        contradicts = form is not None and self.format is not None and form.name != FORMATS[f".{self.format}"].name
        if contradicts and not self.several:
            raise InputError(
                f"--format {self.format} contradicts {self.output}, whose ending determines the format: leave out "
                "--format, or change the ending"
            )

    @cached_property
    def left_out(self) -> list[tuple[int, int]]:
        """For each latent, the number of its pictures that `--resume` has left out, and that of all its pictures."""
        return []

    @staticmethod
    def is_there(output: Path) -> bool:
        """Whether a picture exists.

        Raises:
            OutputError: a part of it is missing, so that it is neither complete nor free.
        """
        form = FORMATS.get(output.suffix.lower())
        parts = form.outputs(output) if form else (output,)
        found = [part for part in parts if os.path.exists(part)]
        if found and len(found) < len(parts):
            missing = next(part for part in parts if part not in found)
            raise OutputError(
                f"{found[0]} is not complete, because {missing.name} is missing: remove it, and try again"
            )
        return bool(found)

    @property
    def ending(self) -> str:
        """The ending of pictures whose names the user does not choose, without a dot."""
        return self.format or "png"

    @property
    def writing(self) -> dict[str, Any]:
        """The arguments of `Picture.save` and `Picture.check_save`, without the metadata."""
        names = ("bits", "tile_format", "quality", "lossless", "force")
        return {name: getattr(self, name) for name in names}

    @property
    def several(self) -> bool:
        """Whether a folder of pictures is requested."""
        if self.output == STREAM:
            return False
        many = len(self.latents) > 1 or any(os.path.isdir(path) for path in self.latents)
        return many or ((self.into_folder or os.path.isdir(self.output)) and self.sample is None)

    @contextmanager
    def open(self) -> Iterator[list["Job"]]:
        """Open the model and plan the picture, or each picture of a batch. Errors in the request are found here."""
        if self.several:
            files = expand(self.latents)
            if len(files) > 1:
                raise LatentError(f"{len(files)} latents: expected one, and a picture's name for -o")
            if self.into_folder or os.path.isdir(self.output):
                name = self.output / f"picture.{self.ending}"
                raise OutputError(f"{self.output} is a folder: expected a picture's name for -o, such as {name}")
            raise LatentError(f"{self.latents[0]} is a folder: expected the latent in it, {files[0]}")
        self._target()
        if self.output != STREAM and not self.output.suffix and self.output.name[:1] != ".":
            raise OutputError(
                f"{self.output} has no known picture format: expected a name such as {self.output}.{self.ending}, or "
                f"{self.output}{os.sep} for a folder"
            )
        files = expand(self.latents)
        if len(files) > 1:
            raise OutputError(f"{len(files)} latents cannot all be standard output: pass a folder for -o")
        array = read_one(files, self.sample, self.key)
        with target_of(self.output, self.ending) as output, self.decoder(self.space_of(array)) as decoder:
            jobs = self.jobs(decoder, array, output, Names(files))
            if self.output == STREAM and len(jobs) > 1:
                raise OutputError(f"{len(jobs)} pictures cannot all be standard output: pass a name for -o")
            yield jobs

    def space_of(self, array: Any) -> str:
        """The name of the latent space of an array.

        Raises:
            LatentError: no space is requested, and the model has several that the array may be in.
        """
        if self.space is not None:
            return latent_space(self.space).name
        return space_among(array, self._spaces, latent_size=self.latent_size)

    @cached_property
    def _spaces(self) -> tuple[str, ...]:
        return open_bundle(self.model).spaces

    def decoder(self, space: str) -> Decoder:
        """Open the model of a latent space."""
        with late_progress_bar(not self.quiet) as show, interruptible() as cancel:
            decoder = open_decoder(
                self.model,
                self.backend,
                space=space,
                device=self.device,
                precision=self.precision,
                threads=self.threads,
                memory=self.memory,
                progress=show,
                cancel=cancel,
            )
        # Each picture's report has its own warnings. On the terminal, each cause is reported once.
        decoder.notices.repeat = True
        return decoder

    def jobs(self, decoder: Decoder, array: Any, output: Path, names: Names, latent: Path | None = None) -> list["Job"]:
        """Plan the picture of a latent, or of each latent in a batch. The pictures of a batch are numbered from 1.

        Args:
            decoder: the opened model.
            array: the latent or latents.
            output: the picture's name, to which numbers are added.
            names: the names of the pictures of all latents.
            latent: the file of the latent, if it is one of several.
        """
        target = self._target()
        size: str | Size | None = self.size
        seen = None
        if target is not None:
            native = decoder.native_size(array, latent_size=self.latent_size)
            size, seen = fit(native, target, self.fit or "cover")
        pictures = decoder.pictures(
            array,
            size,
            stages=self.stages,
            max_scale=self.max_scale,
            tile=self.tile,
            normalisation=self.normalisation,
            latent_size=self.latent_size,
        )
        box = seen or pictures[0].size.box
        if self.region is not None:
            try:
                box = parse_box(self.region, box.size).placed_in(box)
            except PlanError as error:
                if seen is None:
                    raise
                raise PlanError(f"{error}; with --display or --fit, that is the part which is shown") from None
        digits, jobs, there = len(str(len(pictures))), list[Job](), 0
        for number, picture in enumerate(pictures, start=1):
            name = output if len(pictures) == 1 else output.with_stem(f"{output.stem}-{number:0{digits}}")
            if latent is not None:
                names.take(name, latent)
            if self.resume and self.is_there(name):
                there += 1
                self.leave_out(name)
                continue
            names.check(name)
            form = picture.check_save(name, region=box, **self.writing)
            metadata = metadata_of(None if self.no_metadata else array, self.metadata, form, decoder.notices)
            title = "-" if self.output == STREAM else str(name)
            jobs.append(
                Job(decoder, picture.for_saving(form, box.size, self.bits), name, title, box, form, self.bits, metadata)
            )
        self.left_out.append((there, len(pictures)))
        return jobs

    @cached_property
    def untold(self) -> list[Exception]:
        """The errors of lines for programs that could not be printed."""
        return []

    def tell(self, facts: dict[str, Any], err: bool = False) -> None:
        """Print a line for programs. If this is not possible, the work goes on, and `check_told` fails at its end."""
        try:
            say(json.dumps(facts), err=err, needed=True)
        except (InfGenError, BrokenPipeError) as error:
            self.untold.append(error)

    def check_told(self) -> None:
        """Raise the error of the first line for programs that could not be printed, if there is one."""
        if self.untold:
            raise self.untold[0]

    def leave_out(self, output: Path) -> None:
        """Report a picture that is there already, to programs."""
        if self.as_json:
            self.tell({"output": str(output), "left_out": True})

    def tell_left_out(self) -> None:
        """Say how many pictures `--resume` has left out."""
        there, whole = (sum(counts) for counts in zip(*self.left_out, strict=True)) if self.left_out else (0, 0)
        if there and not self.quiet:
            say(f"{there} of {whole} pictures were there already, and were left out", err=True)

    def outputs(self) -> tuple[dict[Path, Path], Names]:
        """The picture of each latent, in the folder `output`, and the names of all of them.

        Raises:
            LatentError: there is no latent.
            OutputError: the folder cannot be made, or two latents would have the same picture.
        """
        if self.sample is not None or not self.latents:
            raise LatentError("expected either LATENT files or --sample NAME")
        files = expand(self.latents)
        if self.output.suffix.lower() in FORMATS and not os.path.lexists(self.output):
            raise OutputError(
                f"{self.output} is a picture's name, but several latents or a folder of them become a folder: pass its "
                "name for -o"
            )
        outputs: dict[Path, Path] = {}
        names = Names(files)
        for latent in files:
            stem = "stdin" if latent == STREAM else latent.stem
            outputs[latent] = self.output / f"{stem}.{self.ending}"
            names.take(outputs[latent], latent)
        try:
            self.output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"{self.output} cannot be a folder of pictures: {reason(error)}; pass another name for -o"
            ) from None
        return outputs, names

    def _target(self) -> Size | None:
        """The size to which the picture is fitted. None if `size` alone determines the picture's size."""
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
class Job:
    """A job that has been checked: write the part `box` of `picture` to `output` as `form`, with `metadata`.

    In reports, `title` stands for the output. It is `-` for standard output.
    """

    decoder: Decoder
    picture: Picture
    output: Path
    title: str
    box: Box
    form: Format
    bits: Bits
    metadata: dict[str, str]

    def save(self, request: Request, tell: Tell, cancel: Event) -> None:
        """Decode and write the picture."""
        writing = request.writing | {"metadata": self.metadata}
        self.picture.save(self.output, region=self.box, **writing, progress=tell, cancel=cancel)

    def report(self, request: Request, stopwatch: Stopwatch, notes: Sequence[str]) -> None:
        """Print that the picture is written."""
        # Messages must not be mixed with the bytes of a picture, so they go to standard error.
        streamed = request.output == STREAM
        if streamed:
            pour(self.output)
        if request.as_json:
            told = {"seconds": stopwatch.seconds, "peak_memory": peak_memory(), "warnings": list(notes)}
            request.tell(self.describe() | told, err=streamed)
        elif not request.quiet:
            name = "standard output" if streamed else self.output
            say(f"{name}: {self.box.size}, {stopwatch.seconds['total']:.1f} s", err=streamed)

    @property
    def memory(self) -> int:
        """The peak memory of decoding and writing, in bytes."""
        return self.picture.memory_to_save(self.form, self.box.size, self.bits)[0]

    def describe(self) -> dict[str, Any]:
        """The facts that both `decode` and `plan` report as JSON."""
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
            "output": self.title,
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
                "memory": self.memory,
                "budget": plan.budget,
                "seconds": plan.seconds,
                "estimated": plan.estimated,
            },
        }
