"""The methods that are compared, and the pictures that they make."""

from __future__ import annotations

from dataclasses import dataclass

ENGINES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO", "torch": "PyTorch"}
PROJECT = "infgen-rt"
ENLARGED = "TAEF2 + Real-ESRGAN"
"""Name of a tiny decoder with a strong enlarger. Of all methods, its pictures are closest to this project's."""

ONE_STAGE = 5
"""Largest scale at which this project decodes in one stage unless requested otherwise."""


@dataclass(frozen=True)
class Method:
    """One way to make a picture.

    Attributes:
        name: Name for people.
        kind: Name of a function in ``benchmarks.contender.KINDS``.
        peer: Name of its network in ``peers.PEERS``. ``None`` for this project.
        quality: Name of its result in the evaluation command, if it is measured there.
        backend: Backend or engine.
        precision: ``"exact"`` or ``"fast"``.
        upscaler: Name of a second network, which takes tens of seconds. It is run once, and for few pictures.
        tiling: Whether its network decodes in tiles.
        native: Whether it decodes a latent with a cell for every 8x8 pixels, instead of enlarging a small picture.
        heavy: Whether it takes minutes rather than seconds. It is then run once, and for few pictures.
        untiled: Whether this project decodes the picture as one tile. The difference is the cost of tiling.
        one_stage: Whether this project decodes in one stage where two are its default.
        full: Whether it is measured only with ``--full``.
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
    one_stage: bool = False
    full: bool = False

    @property
    def label(self) -> str:
        """Name, engine and precision."""
        return f"{self.name}, {self.engine}"

    @property
    def engine(self) -> str:
        """The engine and precision."""
        return ENGINES[self.backend] + (" fast" if self.precision == "fast" else "")


METHODS = (
    Method("infgen-rt", "infgen", quality="infgen"),
    Method("infgen-rt", "infgen", quality="infgen", backend="openvino"),
    Method("infgen-rt", "infgen", quality="infgen", backend="openvino", precision="fast"),
    Method("infgen-rt", "infgen", quality="infgen", backend="torch", full=True),
    Method("infgen-rt, one stage", "infgen", one_stage=True),
    Method("infgen-rt, one stage", "infgen", backend="openvino", one_stage=True),
    Method("infgen-rt, one stage", "infgen", backend="openvino", precision="fast", one_stage=True),
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
    """Decoding a latent of ``cells`` (height, width) to a picture of ``size`` (width, height)."""

    cells: tuple[int, int]
    size: tuple[int, int]

    @property
    def pixels(self) -> int:
        """Number of pixels of the picture."""
        return self.size[0] * self.size[1]

    @property
    def scale(self) -> float:
        """Number of pixels per pixel of the VAE's picture, along the side where it is larger."""
        return max(self.size[0] / self.cells[1], self.size[1] / self.cells[0]) / 8

    def __str__(self) -> str:
        return f"{self.size[0]}x{self.size[1]} from {self.cells[1]}x{self.cells[0]} cells"


@dataclass(frozen=True)
class Extent:
    """The pictures and methods that are measured.

    Attributes:
        jobs: Pictures that light methods make.
        heavy: Pictures that heavy methods also make.
        enlarged: Pictures that methods with an upscaler make. They are larger than their latent's own size.
        viewport: The picture whose middle is read.
        start: The picture for which the time from the start of a process is measured. Heavy methods take part if they
            also make other pictures of latents of this size.
        native: Number of pixels of the largest picture that native methods make. Heavy methods make a quarter of it at
            once, and larger pictures in tiles.
        full: Whether to measure the methods that are only for ``--full``.
    """

    jobs: tuple[Job, ...]
    heavy: tuple[Job, ...]
    enlarged: tuple[Job, ...]
    viewport: Job
    start: Job
    native: int
    full: bool = True

    @property
    def methods(self) -> tuple[Method, ...]:
        """The methods that are measured."""
        return tuple(method for method in METHODS if self.full or not method.full)

    def includes(self, method: Method, job: Job) -> bool:
        """Whether a method makes the picture of a job."""
        if method.native:  # these take gigabytes of memory per megapixel
            whole = job.pixels <= (self.native // 4 if method.heavy else self.native)
            return not whole and job.pixels <= self.native if method.tiling else whole
        if method.upscaler and job not in self.enlarged:
            return False
        if method.one_stage and job.scale <= ONE_STAGE:
            return False
        if method.untiled and job.pixels > SIZES[2][0] * SIZES[2][1]:
            return False
        return not method.heavy or job in self.heavy

    def once(self, method: Method, job: Job) -> bool:
        """Whether a method takes so long for a job that it is run only once."""
        return method.heavy or method.upscaler is not None or (method.native and job.pixels > self.native // 4)

    def starts(self, method: Method) -> bool:
        """Whether a method's start is measured. It must decode a small latent without an upscaler."""
        seen = not method.heavy or self.start.cells in {job.cells for job in self.heavy}
        return seen and not (method.native or method.untiled or method.one_stage or method.upscaler)


SIZES = ((1024, 1024), (1920, 1080), (3840, 2160), (7680, 4320))
VIEWPORT = Job((64, 64), (16384, 16384))
START = Job((64, 64), (512, 512))
SMALL = Job((32, 32), SIZES[0])
QUICK = Extent(
    jobs=(Job((64, 64), SIZES[2]),),
    heavy=(SMALL,),
    enlarged=(SMALL,),
    viewport=VIEWPORT,
    start=START,
    native=4 * 1024**2,
    full=False,
)
FULL = Extent(
    jobs=tuple(Job(cells, size) for cells in ((64, 64), (128, 128)) for size in SIZES),
    heavy=(SMALL, Job((64, 64), SIZES[0]), Job((64, 64), SIZES[2])),
    enlarged=(SMALL, *(Job((64, 64), size) for size in SIZES[:3])),
    viewport=VIEWPORT,
    start=START,
    native=SIZES[2][0] * SIZES[2][1],
)
