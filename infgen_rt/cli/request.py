"""A request to decode, as `decode` and `plan` are given it, and the work that it comes to."""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Event
from typing import Any

import click

from infgen_rt.backend.candidates import Precision
from infgen_rt.cli.console import Stopwatch, progress_bar
from infgen_rt.common.memory import peak_memory
from infgen_rt.common.pixels import Bits
from infgen_rt.decoder import Decoder
from infgen_rt.decoder import open as open_decoder
from infgen_rt.display.named import display_size
from infgen_rt.errors import LatentError, OutputError, PlanError
from infgen_rt.geometry.shapes import Box, Fit, Size, fit, fixed_size, parse_box
from infgen_rt.latent.arrays import Normalisation
from infgen_rt.latent.files import read_array
from infgen_rt.latent.samples import load_sample
from infgen_rt.picture import Picture
from infgen_rt.saving import Progress
from infgen_rt.writers import Format, TileFormat

# Seconds between two looks at signals where waiting cannot be interrupted (Windows).
_SIGNALS = 0.1


@dataclass(frozen=True)
class Request:
    """The values of `options.picture_options`: what to decode, and how."""

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
    stages: tuple[float, ...] | None
    max_scale: float | None
    tile: int | None
    normalisation: Normalisation
    latent_size: tuple[int, int] | None
    key: str | None
    bits: Bits
    tile_format: TileFormat
    force: bool
    quiet: bool
    as_json: bool

    @property
    def writing(self) -> dict[str, Any]:
        """Arguments of `Picture.save` and of its check."""
        return {"bits": self.bits, "tile_format": self.tile_format, "force": self.force}

    @property
    def several(self) -> bool:
        """Whether a folder of pictures is asked for."""
        return len(self.latents) > 1 or (self.output.is_dir() and self.sample is None)

    @contextmanager
    def open(self) -> Iterator["Job"]:
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

    def job(self, decoder: Decoder, array: Any, output: Path) -> "Job":
        """Plan the picture of one latent."""
        target = self._target()
        size: str | Size | None = self.size
        seen = None
        if target is not None:
            native = decoder.native_size(array, latent_size=self.latent_size)
            size, seen = fit(native, target, self.fit or "cover")
        picture = decoder.picture(
            array,
            size,
            stages=self.stages,
            max_scale=self.max_scale,
            tile=self.tile,
            normalisation=self.normalisation,
            latent_size=self.latent_size,
        )
        box = seen or picture.size.box
        if self.region:
            box = parse_box(self.region, box.size).placed_in(box)
        return Job(decoder, picture, output, box, picture.check_save(output, region=box, **self.writing))

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
class Job:
    """A request that can be carried out: the part `box` of `picture`, written to `output` as `form`."""

    decoder: Decoder
    picture: Picture
    output: Path
    box: Box
    form: Format

    def run(self, request: Request, stopwatch: Stopwatch, notes: Sequence[str]) -> None:
        """Decode and write, with progress; then tell of it."""
        with progress_bar(not request.quiet and sys.stderr.isatty()) as show:

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


def _read_latent(path: Path | None, sample: str | None, key: str | None) -> Any:
    if path is not None and sample is None:
        return read_array(path, key)[0]
    if sample is not None and path is None:
        return load_sample(sample).latent
    raise LatentError("expected either a LATENT file or --sample NAME")
