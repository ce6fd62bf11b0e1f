"""Measures and compares the ways of running a bundle, and stores the results for later processes."""

import contextlib
import errno
import hashlib
import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from contextvars import copy_context
from dataclasses import asdict, dataclass
from functools import partial
from importlib import metadata
from typing import Any

import numpy as np

from infgen_rt.backend import protocol
from infgen_rt.backend.candidates import LEAST_PSNR, Candidate, Precision, Way
from infgen_rt.backend.engine import Engine, cores
from infgen_rt.backend.inputs import tile_inputs
from infgen_rt.bundle.folder import Bundle
from infgen_rt.bundle.graphs import DECODE, ENCODE
from infgen_rt.bundle.manifest import Enlargement
from infgen_rt.common.callers import raise_callers
from infgen_rt.common.cancellation import current
from infgen_rt.common.folders import VARIABLE, alone, cache_folder, write_cached
from infgen_rt.common.notices import warn
from infgen_rt.common.pixels import FloatArray, fetch, psnr
from infgen_rt.common.processor import processor_name
from infgen_rt.common.progress import Counter, Tell
from infgen_rt.common.schema import SchemaError, parse
from infgen_rt.common.shortages import remedy
from infgen_rt.common.threads import Pool
from infgen_rt.errors import Cancelled, one_line, reason
from infgen_rt.geometry.grid import Grid
from infgen_rt.geometry.shapes import Size

FILE = "measurements.json"
_TURN, _WRITING = "measuring", "measurements"
LOCKS = (f"{_TURN}.lock", f"{_WRITING}.lock")
"""The names of the files that processes lock."""
# The seconds to wait for other processes. Measuring takes much less.
_PATIENCE = 60.0
# The test case is a latent of noise with so many cells per side. One tile of its picture at twice the size is decoded.
# The tile is as large as those of a plan, and the time is the median of so many runs.
_CELLS, _RUNS = 32, 3
# The smallest PSNR that is allowed between two libraries that compute in float32, in decibels. If all levels from 0 to
# 255 differ by one, it is 48 dB.
_EXACT_PSNR = 60.0


@dataclass(frozen=True)
class Speed:
    """The measured speed of a way of running a bundle.

    Attributes:
        decode: the seconds per megapixel of tiles, of which as many as the engine has workers are decoded at the same
            time.
        context: the seconds per thousand cells of the smallest context.
        encode: the seconds per thousand cells that are encoded. None without an encode graph.
    """

    decode: float
    context: float
    encode: float | None

    @property
    def typical(self) -> float:
        """The seconds for the context of a thousand cells and for a picture of a quarter of a megapixel.

        This is the picture of these cells at twice their own size. The way with the least time is chosen.
        """
        return self.context + self.decode / 4


@dataclass(frozen=True)
class Result:
    """The measurement of a candidate.

    Attributes:
        way: the way of running the bundle.
        exact: whether it is float32 throughout.
        speed: the medians of the runs. None if it did not run.
        psnr: the PSNR against the first exact candidate, in decibels. None for that candidate, or if it did not run.
        error: the reason why it cannot be used, in one line. None if it can be used.
    """

    way: Way
    exact: bool
    speed: Speed | None
    psnr: float | None
    error: str | None

    def suits(self, precision: Precision) -> bool:
        """Whether it ran, passed the comparison, and is as exact as requested."""
        return self.error is None and (self.exact or precision == "fast")

    def __str__(self) -> str:
        return str(self.way)


def measure(
    bundle: Bundle, candidates: Sequence[Candidate], threads: int | None, progress: Tell | None = None
) -> list[Result]:
    """Run each candidate on one tile, and compare its result with that of the first exact candidate.

    Args:
        bundle: the opened bundle.
        candidates: the ways of running it.
        threads: the number of CPU threads. None for each backend's default.
        progress: called before the first candidate and after each.

    Returns:
        A result for each candidate, also for those that failed. The exact ones come first.

    Raises:
        Cancelled: the current work was cancelled.
    """
    results, reference = [], None
    counter = Counter(len(candidates), progress, current())
    counter.begin("measure")
    for candidate in sorted(candidates, key=lambda each: not each.exact):
        speed = psnr = error = None
        try:
            image, speed = _run(bundle, candidate, threads)
        except Cancelled:
            raise
        # A driver may raise any exception. A candidate that raises one is not chosen.
        except Exception as failure:
            raise_callers(failure)
            current().check()
            error = one_line(failure)
        else:
            reference = image if reference is None else reference
            if image is not reference:
                psnr = _psnr(image, reference)
                least = _EXACT_PSNR if candidate.exact else LEAST_PSNR
                error = None if psnr >= least else f"its picture has {psnr:.0f} dB, {least:.0f} are needed"
        results.append(Result(candidate.way, candidate.exact, speed, psnr, error))
        counter.step("measure")
    return results


def key(bundle: Bundle, threads: int | None) -> str:
    """The key under which measurements are stored: a digest of everything that they depend on.

    These are the bundle's files, the numbers of threads and of processors, the versions of all backends' libraries, the
    kind of processor, and the system.
    """
    files = sorted((name, info.sha256) for name, info in bundle.manifest.files.items())
    versions = []
    for known in protocol.KNOWN.values():
        for distribution in known.distributions:
            with contextlib.suppress(metadata.PackageNotFoundError):
                versions.append((distribution, metadata.version(distribution)))
    others = sorted(
        (name, entry.dist.version if entry.dist else "") for name, entry in protocol.installed_backends().items()
    )
    text = json.dumps([files, threads, cores(), versions, others, processor_name(), platform.platform()])
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Record:
    """The stored measurements of a key.

    Attributes:
        results: the results of all measured candidates.
        asked: the requests whose candidates have all been measured: a backend, or a backend and a device such as
            `onnxruntime cuda`.
    """

    results: tuple[Result, ...] = ()
    asked: tuple[str, ...] = ()

    def add(self, results: Sequence[Result], *questions: str) -> "Record":
        """This record with new results, which replace those of the same ways, and with more requests in `asked`."""
        newer = {result.way for result in results}
        kept = (result for result in self.results if result.way not in newer)
        return Record((*kept, *results), tuple(dict.fromkeys((*self.asked, *questions))))


def recall(key: str) -> Record:
    """Load the stored measurements of a key. The record is empty if they are missing or damaged."""
    try:
        return parse(Record, _records()[key], FILE)
    except (KeyError, SchemaError):
        return Record()


def turn() -> AbstractContextManager[None]:
    """Wait until no other process measures, because measuring at the same time would slow down both.

    Raises:
        Cancelled: the current work was cancelled.
    """
    return alone(_TURN, _PATIENCE)


def remember(key: str, results: Sequence[Result], *questions: str) -> None:
    """Store results for the next start. If the folder is not writable, give a warning.

    Nothing is stored if a way failed for lack of memory or threads, because it may run the next time.

    Args:
        key: the key of the measurements.
        results: the new results.
        questions: the requests whose candidates have all been measured; see `Record.asked`.
    """
    if any(remedy(result.error or "") for result in results):
        return
    folder = cache_folder()
    try:
        if folder is None:
            raise OSError(errno.ENOENT, "this user has no home")
        with alone(_WRITING, _PATIENCE):
            record = recall(key).add(results, *questions)
            text = json.dumps(_records() | {key: asdict(record)}, indent=1) + "\n"
            write_cached(folder / FILE, text.encode())
    except OSError as error:
        raise_callers(error)
        place = folder or "the user's cache folder"
        text = (
            f"measurements cannot be kept in {place} ({reason(error)}): every start measures again; set {VARIABLE} to "
            "a folder that is writable"
        )
        warn(text)


def _records() -> dict[str, Any]:
    folder = cache_folder()
    if folder is None:
        return {}
    try:
        records = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise_callers(error)
        return {}
    return records if isinstance(records, dict) else {}


def _run(bundle: Bundle, candidate: Candidate, threads: int | None) -> tuple[FloatArray, Speed]:
    """Run a candidate, and return the pixels of its tile, float32 [3, h, w], and its speed."""
    manifest = bundle.manifest
    latent = np.random.default_rng(0).normal(0, 0.8, (manifest.latent_channels, _CELLS, _CELLS)).astype(np.float32)
    side = 2 * _CELLS * manifest.patch
    grid = Grid(Size(_CELLS, _CELLS), Size(side, side), manifest.patch)
    halo = manifest.halo.tokens
    engine = Engine(bundle, candidate, threads)
    alone, shared = engine.largest
    largest = alone if engine.workers == 1 else shared
    # Only the smallest context is measured. The times of others are derived from it; see `plan.costs.seconds`.
    enlargement = manifest.contexts[0]
    largest = min([largest, *grid.tokens, *(min(shape.tokens) - 2 * halo for shape in candidate.recipe.shapes)])
    tokens = Size(largest, largest).box
    # The tile has no halo towards the rest of the picture. Its last pixels are therefore not exact, and are left out.
    final = manifest.patch * (largest if tokens == grid.tokens.box else max(1, largest - halo))
    try:
        engine.load_for(enlargement)
        cells = grid.context_of(tokens, manifest.halo.cells)
        crop = engine.context(latent, enlargement)[:, :, *cells.slices]
        inputs = tile_inputs(grid, crop, cells, tokens)
        image = fetch(engine.run(DECODE, inputs, enlargement)[0][:, :final, :final], np.float32)
        megapixels, kilocells = tokens.size.area * manifest.patch**2 / 1e6, _CELLS**2 / 1e3
        decode = _seconds(partial(_decode_each, engine, inputs, enlargement), _RUNS) / megapixels / engine.workers
        context = _seconds(lambda: engine.context(latent, enlargement), _RUNS) / kilocells
        # Encoding is timed only once, because its speed is used for estimates and not for the choice.
        encode = None
        if candidate.recipe.has(ENCODE) and not candidate.recipe.shapes:
            engine.load(ENCODE.name)
            picture = {"image": np.zeros((1, 3, _CELLS * manifest.patch, _CELLS * manifest.patch), np.float32)}
            engine.run(ENCODE, picture)
            encode = _seconds(lambda: engine.run(ENCODE, picture)) / kilocells
    finally:
        engine.close()
    return image, Speed(decode, context, encode)


def _decode_each(engine: Engine, inputs: Mapping[str, Any], enlargement: Enlargement) -> None:
    """Decode one tile per worker of the engine, all at the same time."""
    if engine.workers == 1:
        engine.run(DECODE, inputs, enlargement)
        return
    engine.load_shared(DECODE, enlargement)
    with Pool(engine.workers) as pool:
        # The threads run in a copy of this context, because it has the current cancellation.
        runs = [
            pool.submit(copy_context().run, engine.run, DECODE, inputs, enlargement, True)
            for _ in range(engine.workers)
        ]
        for run in runs:
            run.result()


def _seconds(run: Callable[[], object], count: int = 1) -> float:
    """The median time of several runs, in seconds."""
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
    # The PSNR of equal pictures is infinite, which JSON cannot express.
    return min(200.0, psnr(image, reference))
