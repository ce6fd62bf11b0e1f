"""What is compared with what: methods, pictures, and how one run of all of it goes."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.peers import PEERS, write_peer
from benchmarks.process import Order, median, run, start
from infgen_export.quiet import quiet

ENGINES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO", "torch": "PyTorch"}
PROJECT = "infgen-rt"
ENLARGED = "TAEF2 + Real-ESRGAN"
"""A tiny decoder and a strong enlarger: what comes near this project's picture."""
PACKAGES = ("infgen_rt", "infgen_model", "infgen_runtimes", "infgen_export", "infgen_training")
LIBRARIES = (PROJECT, "numpy", "pillow", "onnxruntime", "openvino", "torch", "diffusers")


@dataclass(frozen=True)
class Method:
    """One way to a picture.

    Attributes:
        name: For people.
        kind: A function of ``benchmarks.contender``.
        peer: Name of its network in ``peers.PEERS``; none for this project.
        quality: What the evaluation command calls its result, where it measures that.
        backend: Or engine.
        precision: ``"exact"`` or ``"fast"``.
        upscaler: Name of a second network, which takes tens of seconds: run once, and for few pictures.
        tiling: See ``Order``.
        native: Whether it decodes a latent as large as the picture / 8 instead of enlarging a small picture.
        heavy: Minutes rather than seconds: run once, and for few pictures.
        untiled: Whether this project decodes the picture as one tile: what tiling costs is the difference.
        full: Whether it is for ``--full`` alone.
    """

    name: str
    kind: str
    peer: str | None = None
    quality: str | None = None
    backend: str = "onnxruntime"
    precision: str = "exact"
    upscaler: str | None = None
    tiling: bool = False
    native: bool = False
    heavy: bool = False
    untiled: bool = False
    full: bool = False

    @property
    def label(self) -> str:
        """Name and engine."""
        return f"{self.name}, {self.engine}"

    @property
    def engine(self) -> str:
        """What computes."""
        return ENGINES[self.backend] + (" fast" if self.precision == "fast" else "")


METHODS = (
    Method("infgen-rt", "infgen", quality="infgen"),
    Method("infgen-rt", "infgen", quality="infgen", backend="openvino"),
    Method("infgen-rt", "infgen", quality="infgen", backend="openvino", precision="fast"),
    Method("infgen-rt", "infgen", quality="infgen", backend="torch", full=True),
    Method("infgen-rt, one tile", "infgen", quality="infgen", untiled=True),
    Method("TAEF2 + bicubic", "graph", "taef2", "teacher + bicubic"),
    Method("TAEF2 + bicubic", "graph", "taef2", "teacher + bicubic", backend="openvino"),
    Method("TAEF2 + bicubic", "graph", "taef2", "teacher + bicubic", backend="openvino", precision="fast"),
    Method("TAEF2 at full size", "graph", "taef2", native=True),
    Method("TAEF2 at full size", "graph", "taef2", backend="openvino", native=True),
    Method("TAEF2 at full size", "graph", "taef2", backend="openvino", precision="fast", native=True),
    Method("FLUX.2 VAE + bicubic", "graph", "vae", heavy=True),
    Method("FLUX.2 VAE + bicubic", "graph", "vae", backend="openvino", heavy=True),
    Method("FLUX.2 VAE + bicubic", "diffusers", backend="torch", heavy=True),
    Method("FLUX.2 VAE, tiling, + bicubic", "diffusers", backend="torch", tiling=True, heavy=True),
    Method("FLUX.2 VAE at full size", "graph", "vae", native=True, heavy=True),
    Method("FLUX.2 VAE at full size", "graph", "vae", backend="openvino", native=True, heavy=True, full=True),
    Method(
        "FLUX.2 VAE at full size",
        "graph",
        "vae",
        backend="openvino",
        precision="fast",
        native=True,
        heavy=True,
        full=True,
    ),
    Method(
        "FLUX.2 VAE, tiling, at full size",
        "diffusers",
        backend="torch",
        tiling=True,
        native=True,
        heavy=True,
        full=True,
    ),
    Method(ENLARGED, "graph", "taef2", "teacher + Real-ESRGAN", upscaler="esrgan"),
    Method(ENLARGED, "graph", "taef2", "teacher + Real-ESRGAN", backend="openvino", upscaler="esrgan", full=True),
    Method(
        ENLARGED, "graph", "taef2", "teacher + Real-ESRGAN", backend="openvino", precision="fast", upscaler="esrgan"
    ),
    Method("FLUX.2 VAE + Real-ESRGAN", "graph", "vae", upscaler="esrgan", heavy=True, full=True),
)


@dataclass(frozen=True)
class Job:
    """A latent of ``cells`` (height, width) to a picture of ``size`` (width, height)."""

    cells: tuple[int, int]
    size: tuple[int, int]

    @property
    def pixels(self) -> int:
        """Of the picture."""
        return self.size[0] * self.size[1]

    def __str__(self) -> str:
        return f"{self.size[0]}x{self.size[1]} from {self.cells[1]}x{self.cells[0]} cells"


@dataclass(frozen=True)
class Extent:
    """How much is measured.

    Attributes:
        jobs: Pictures that light methods make.
        heavy: Those that heavy ones make too.
        enlarged: Those that methods with an upscaler make; larger than their latent's own size.
        viewport: Of which the middle is read.
        start: To which a start is timed, from nothing; of heavy methods if they make pictures of such latents.
        native: Pixels of the largest picture that peers decode from a latent of its size; heavy ones a quarter of it,
            and the rest in tiles.
        repeat: Runs of each; what takes minutes is run once.
        full: Whether methods are measured that are for ``--full`` alone.
    """

    jobs: tuple[Job, ...]
    heavy: tuple[Job, ...]
    enlarged: tuple[Job, ...]
    viewport: Job
    start: Job
    native: int
    repeat: int
    full: bool = True

    @property
    def methods(self) -> tuple[Method, ...]:
        """Those that are measured at all."""
        return tuple(method for method in METHODS if self.full or not method.full)

    def includes(self, method: Method, job: Job) -> bool:
        """Whether one of its methods makes a picture."""
        if method.native:  # gigabytes a megapixel
            whole = job.pixels <= (self.native // 4 if method.heavy else self.native)
            return not whole and job.pixels <= self.native if method.tiling else whole
        if method.upscaler and job not in self.enlarged:
            return False
        if method.untiled and job.pixels > SIZES[2][0] * SIZES[2][1]:
            return False
        return not method.heavy or job in self.heavy

    def once(self, method: Method, job: Job) -> bool:
        """Whether it takes so long that one run must do."""
        return method.heavy or method.upscaler is not None or (method.native and job.pixels > self.native // 4)

    def starts(self, method: Method) -> bool:
        """Whether a method's start is timed: of those that decode the small latent, and do nothing more."""
        seen = not method.heavy or self.start.cells in {job.cells for job in self.heavy}
        return seen and not (method.native or method.untiled or method.upscaler)


SIZES = ((1024, 1024), (1920, 1080), (3840, 2160), (7680, 4320))
VIEWPORT = Job((64, 64), (16384, 16384))
START = Job((64, 64), (512, 512))
QUICK = Extent(
    jobs=(Job((64, 64), SIZES[2]),),
    heavy=(Job((32, 32), SIZES[0]),),
    enlarged=(Job((32, 32), SIZES[0]),),
    viewport=VIEWPORT,
    start=START,
    native=4 * 1024**2,
    repeat=2,
    full=False,
)
FULL = Extent(
    jobs=tuple(Job(cells, size) for cells in ((64, 64), (128, 128)) for size in SIZES),
    heavy=(Job((64, 64), SIZES[0]), Job((64, 64), SIZES[2])),
    enlarged=tuple(Job((64, 64), size) for size in SIZES[:3]),
    viewport=VIEWPORT,
    start=START,
    native=SIZES[2][0] * SIZES[2][1],
    repeat=3,
)
Quality = dict[str, dict[str, dict[str, float | None]]]
"""Means by scale, method and metric, as the evaluation command writes them; None for what no picture has."""


@dataclass
class Results:
    """All that a run found.

    Attributes:
        machine: Processor, system, threads, versions, and which of ``peers.PEERS`` had trained weights.
        costs: Multiply-adds of a peer's network an input position.
        own: Multiply-adds of this project's, by scale; see ``cost.decoder_cost``.
        peaks: Most multiply-adds a second of a matrix product, an engine and precision each.
        runs: Every sample of a method at a job.
        viewport: Every sample of a viewport, a backend and precision each.
        starts: Every sample of a start.
        installed: Bytes of the packages that a method needs.
        quality: What the evaluation command found, if its report was given.
    """

    machine: dict[str, Any]
    costs: dict[str, float] = field(default_factory=dict)
    own: dict[str, dict[str, float]] = field(default_factory=dict)
    peaks: dict[str, float] = field(default_factory=dict)
    runs: dict[str, dict[str, list[dict[str, Any]]]] = field(default_factory=dict)
    viewport: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    starts: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    installed: dict[str, int] = field(default_factory=dict)
    quality: Quality = field(default_factory=dict)

    @classmethod
    def load(cls, file: Path) -> Results:
        """Reads what ``save`` wrote.

        Raises:
            click.ClickException: It did not write that.
        """
        try:
            return cls(**json.loads(file.read_text()))
        except (TypeError, ValueError) as error:
            raise click.ClickException(f"{file} is not the results.json of a run: {error}") from error

    def save(self, file: Path) -> None:
        """Writes it as JSON."""
        file.write_text(json.dumps(asdict(self), indent=1) + "\n")

    def seconds(self, method: Method, job: Job) -> float | None:
        """Median, or None if it was not run."""
        runs = self.runs.get(str(job), {}).get(method.label)
        return median(runs, "seconds") if runs else None


def measure(
    extent: Extent,
    model: Path,
    weights: Mapping[str, Path],
    threads: int,
    folder: Path,
    say: Callable[[str], None],
) -> Results:
    """Runs everything, methods in turns.

    Args:
        extent: How much.
        model: Bundle of this project.
        weights: Python files that load networks of ``peers.PEERS``; the others have random weights.
        threads: CPU threads for all.
        folder: For graphs and latents.
        say: Told what is being done.
    """
    results = Results(_machine(threads) | {"trained": sorted(weights)})
    for name in PEERS:
        say(f"building {name}")
        with quiet():
            results.costs[name] = write_peer(name, weights.get(name), folder / f"{name}.onnx")
    product = folder / "product.onnx"
    _write_product(product)
    orders = [
        (method, job, _order(method, job, model, threads, folder))
        for job in dict.fromkeys((*extent.heavy, *extent.jobs))
        for method in extent.methods
        if extent.includes(method, job)
    ]
    for number in range(extent.repeat):
        done: dict[Order, dict[str, Any]] = {}  # a peer at full size does the same whatever the latent of a job
        for method, job, order in orders:
            if number and extent.once(method, job):
                continue
            if order not in done:
                say(f"[{number + 1}/{extent.repeat}] {method.label}: {job}")
                done[order] = run(order)
            results.runs.setdefault(str(job), {}).setdefault(method.label, []).append(done[order])
        for method in extent.methods:
            if extent.starts(method) and not (number and method.heavy):
                say(f"[{number + 1}/{extent.repeat}] {method.label}: start")
                order = _order(method, extent.start, model, threads, folder)
                order = replace(order, kind="first_tile" if method.kind == "infgen" else method.kind)
                results.starts.setdefault(method.label, []).append(start(order))
            if method.kind == "infgen" and not method.untiled:
                order = replace(_order(method, extent.viewport, model, threads, folder), kind="viewport")
                results.viewport.setdefault(method.label, []).append(run(order))
        # Other work on the machine only lowers a peak, so the largest of all rounds counts.
        for engine, precision in (("onnxruntime", "exact"), ("openvino", "exact"), ("openvino", "fast")):
            order = Order("products", product, latent_file(folder, (1, 1)), (1, 1), threads, engine, "cpu", precision)
            name = f"{engine} {precision}"
            results.peaks[name] = max(results.peaks.get(name, 0), run(order)["rate"])
    results.installed = {name: size for name in LIBRARIES if (size := _installed(name))}
    return results


def _order(method: Method, job: Job, model: Path, threads: int, folder: Path) -> Order:
    cells = (-(-job.size[1] // 8), -(-job.size[0] // 8)) if method.native else job.cells
    return Order(
        kind=method.kind,
        model=folder / f"{method.peer}.onnx" if method.peer else model,
        latent=latent_file(folder, cells),
        size=job.size,
        threads=threads,
        backend=method.backend,
        precision=method.precision,
        upscaler=folder / f"{method.upscaler}.onnx" if method.upscaler else None,
        tiling=method.tiling,
        memory="12GiB" if method.untiled else None,
        tile=max(job.size) if method.untiled else None,
    )


def latent_file(folder: Path, cells: Sequence[int]) -> Path:
    """Noise: what it costs to decode a latent does not depend on what it shows."""
    file = folder / f"{cells[0]}x{cells[1]}.npy"
    if not file.exists():
        np.save(file, np.random.default_rng(0).normal(0, 0.8, (32, *cells)).astype(np.float32))
    return file


def _write_product(file: Path) -> None:
    """A matrix product with a constant as an ONNX graph."""
    import torch

    with quiet():
        torch.onnx.export(
            torch.nn.Linear(2048, 2048, bias=False).requires_grad_(False),
            (torch.zeros(2048, 2048),),
            file,
            dynamo=True,
            external_data=False,
            verbose=False,
        )


def _machine(threads: int) -> dict[str, Any]:
    versions = {}
    for name in LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "processor": _processor(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "threads": threads,
        "versions": versions,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown"


def _installed(name: str) -> int:
    """Bytes of a distribution's files, or of this project's packages, which may be installed from their folders."""
    if name == PROJECT:
        found = (importlib.util.find_spec(package) for package in PACKAGES)
        folders = [Path(spec.origin).parent for spec in found if spec is not None and spec.origin]
        paths = [path for folder in folders for path in folder.rglob("*") if "__pycache__" not in path.parts]
    else:
        try:
            paths = [Path(str(file.locate())) for file in metadata.files(name) or []]
        except metadata.PackageNotFoundError:
            return 0
    return sum(path.stat().st_size for path in paths if path.is_file())
