"""Measuring ways of running a bundle against one another, and remembering what came of it."""

import contextlib
import errno
import hashlib
import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from functools import partial
from importlib import metadata
from typing import Any

import numpy as np

from infgen_rt.backend import protocol
from infgen_rt.backend.candidates import LEAST_PSNR, Candidate, Precision, Way
from infgen_rt.backend.engine import Engine
from infgen_rt.backend.inputs import tile_inputs
from infgen_rt.bundle.folder import Bundle
from infgen_rt.bundle.manifest import Enlargement
from infgen_rt.common.folders import VARIABLE, alone, cache_folder, write_cached
from infgen_rt.common.notices import warn
from infgen_rt.common.pixels import FloatArray, fetch, psnr
from infgen_rt.common.schema import SchemaError, parse
from infgen_rt.errors import one_line
from infgen_rt.geometry.grid import Grid
from infgen_rt.geometry.shapes import Size
from infgen_rt.geometry.tiling import LARGEST_SHARED_TILE, LARGEST_TILE

FILE = "measurements.json"
# Seconds to wait for other processes: several times what measuring takes.
_PATIENCE = 60.0
# What is measured: a noise latent, and of its picture at twice the size tiles such as a plan has.
_CELLS, _RUNS = 32, 3
_EXACT_PSNR = 60.0
"""What two libraries that compute in float32 agree to at least; one level of 255 is 48 dB."""


@dataclass(frozen=True)
class Speed:
    """What was measured of a way of running a bundle.

    Attributes:
        decode: seconds for a megapixel of tiles, with as many at a time as are decoded so.
        context: seconds for the context of a thousand cells.
        encode: seconds for the encoding of a thousand cells; None without an encode graph.
    """

    decode: float
    context: float
    encode: float | None

    @property
    def typical(self) -> float:
        """Seconds for a thousand cells and their picture at twice the size, a quarter of a megapixel."""
        return self.context + self.decode / 4


@dataclass(frozen=True)
class Result:
    """What was measured of a candidate.

    Attributes:
        way: which one it is.
        exact: whether that is float32 throughout.
        speed: medians; None if it did not run.
        psnr: against the first exact candidate, in decibels; None for that one, or if it did not run.
        error: why it cannot be used, in one line, or None.
    """

    way: Way
    exact: bool
    speed: Speed | None
    psnr: float | None
    error: str | None

    def suits(self, precision: Precision) -> bool:
        """Whether it ran, verified, and is as exact as asked for."""
        return self.error is None and (self.exact or precision == "fast")

    def __str__(self) -> str:
        return str(self.way)


def measure(bundle: Bundle, candidates: Sequence[Candidate], threads: int | None) -> list[Result]:
    """Run each candidate on one tile, and compare what it gives with the first exact one's."""
    results, reference = [], None
    for candidate in sorted(candidates, key=lambda each: not each.exact):
        speed = psnr = error = None
        try:
            image, speed = _run(bundle, candidate, threads)
        # A driver may raise anything; what cannot run is not chosen.
        except Exception as failure:
            error = one_line(failure)
        else:
            reference = image if reference is None else reference
            if image is not reference:
                psnr = _psnr(image, reference)
                least = _EXACT_PSNR if candidate.exact else LEAST_PSNR
                error = None if psnr >= least else f"its picture has {psnr:.0f} dB, {least:.0f} are needed"
        results.append(Result(candidate.way, candidate.exact, speed, psnr, error))
    return results


def key(bundle: Bundle, threads: int | None) -> str:
    """What measurements hold for: the bundle, the threads, and the versions of all that could run it."""
    files = sorted((name, info.sha256) for name, info in bundle.manifest.files.items())
    versions = []
    for known in protocol.KNOWN.values():
        for distribution in known.distributions:
            with contextlib.suppress(metadata.PackageNotFoundError):
                versions.append((distribution, metadata.version(distribution)))
    others = sorted(
        (name, entry.dist.version if entry.dist else "") for name, entry in protocol.installed_backends().items()
    )
    text = json.dumps([files, threads, versions, others, platform.platform()])
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Record:
    """What is remembered under a key.

    Attributes:
        results: of every candidate that was measured.
        asked: questions (`auto`, `openvino`, `onnxruntime cuda`) whose candidates are all among them.
    """

    results: tuple[Result, ...] = ()
    asked: tuple[str, ...] = ()

    def add(self, results: Sequence[Result], *questions: str) -> "Record":
        """With newer results in place of older ones."""
        newer = {result.way for result in results}
        kept = (result for result in self.results if result.way not in newer)
        return Record((*kept, *results), tuple(dict.fromkeys((*self.asked, *questions))))


def recall(key: str) -> Record:
    """What was measured before under a key; nothing if that is missing or damaged."""
    try:
        return parse(Record, _records()[key], FILE)
    except (KeyError, SchemaError):
        return Record()


def turn() -> AbstractContextManager[None]:
    """Wait until no other process measures, which would make both slower than they are."""
    return alone("measuring", _PATIENCE)


def remember(key: str, results: Sequence[Result], *questions: str) -> None:
    """Keep results for the next start; a folder that cannot be written in is a warning.

    Args:
        key: what they hold for.
        results: newer ones than those that are kept.
        questions: whose candidates are all among them.
    """
    folder = cache_folder()
    try:
        if folder is None:
            raise OSError(errno.ENOENT, f"this user has no home: set {VARIABLE}")
        with alone("measurements", _PATIENCE):
            record = recall(key).add(results, *questions)
            text = json.dumps(_records() | {key: asdict(record)}, indent=1) + "\n"
            write_cached(folder / FILE, text.encode())
    except OSError as error:
        place = folder or "the user's cache folder"
        text = f"measurements cannot be kept in {place} ({error.strerror}): every start will measure again"
        warn(text)


def _records() -> dict[str, Any]:
    folder = cache_folder()
    if folder is None:
        return {}
    try:
        records = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return records if isinstance(records, dict) else {}


def _run(bundle: Bundle, candidate: Candidate, threads: int | None) -> tuple[FloatArray, Speed]:
    """The tile's pixels, and how fast all was."""
    manifest = bundle.manifest
    latent = np.random.default_rng(0).normal(0, 0.8, (manifest.latent_channels, _CELLS, _CELLS)).astype(np.float32)
    side = 2 * _CELLS * manifest.patch
    grid = Grid(Size(_CELLS, _CELLS), Size(side, side), manifest.patch)
    halo = manifest.halo.tokens
    engine = Engine(bundle, candidate, threads)
    largest = LARGEST_TILE if engine.workers == 1 else LARGEST_SHARED_TILE
    # Its context is the least there is, of which others are reckoned: see `plan.costs.seconds`.
    enlargement = manifest.contexts[0]
    largest = min([largest, *(min(shape.tokens) - 2 * halo for shape in candidate.recipe.shapes)])
    tokens = Size(largest, largest).box
    # Towards the rest of the picture the tile has no halo: its last pixels are not what any tiling gives.
    final = manifest.patch * (largest if tokens == grid.tokens.box else max(1, largest - halo))
    try:
        engine.load_for(enlargement)
        cells = grid.context_of(tokens, manifest.halo.cells)
        crop = engine.context(latent, enlargement)[:, :, *cells.slices]
        inputs = tile_inputs(grid, crop, cells, tokens)
        image = fetch(engine.decode(inputs, enlargement)[:, :final, :final], np.float32)
        megapixels, kilocells = tokens.size.area * manifest.patch**2 / 1e6, _CELLS**2 / 1e3
        decode = _seconds(partial(_decode_each, engine, inputs, enlargement), _RUNS) / megapixels / engine.workers
        context = _seconds(lambda: engine.context(latent, enlargement), _RUNS) / kilocells
        # Once: this is for estimates, and chooses nothing.
        encode = None
        if "encode" in candidate.recipe.graphs and not candidate.recipe.shapes:
            engine.load("encode")
            picture = np.zeros((3, _CELLS * manifest.patch, _CELLS * manifest.patch), np.float32)
            engine.encode(picture)
            encode = _seconds(lambda: engine.encode(picture)) / kilocells
    finally:
        engine.close()
    return image, Speed(decode, context, encode)


def _decode_each(engine: Engine, inputs: Mapping[str, Any], enlargement: Enlargement) -> None:
    """A tile for each of the engine's workers, all at a time."""
    if engine.workers == 1:
        engine.decode(inputs, enlargement)
        return
    engine.load_shared(enlargement)
    with ThreadPoolExecutor(engine.workers) as pool:
        list(pool.map(lambda _: engine.decode(inputs, enlargement, shared=True), range(engine.workers)))


def _seconds(run: Callable[[], object], count: int = 1) -> float:
    """Median of some runs."""
    times = []
    for _ in range(count):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _psnr(image: FloatArray, reference: FloatArray) -> float:
    if image.shape != reference.shape:
        rows, columns = (min(sides) for sides in zip(image.shape[1:], reference.shape[1:], strict=True))
        image, reference = image[:, :rows, :columns], reference[:, :rows, :columns]
    # Equal pictures have a finite number too.
    return min(200.0, psnr(image, reference))
