"""Plans of decodes, stage by stage, with their expected costs."""

from dataclasses import dataclass, replace

from infgen_rt.backend.choice import Choice
from infgen_rt.bundle.manifest import Enlargement
from infgen_rt.common.memory import format_bytes
from infgen_rt.geometry.grid import Grid
from infgen_rt.geometry.pictures import PictureTiles
from infgen_rt.geometry.shapes import Size
from infgen_rt.geometry.tiling import HaloTiling, Tiling
from infgen_rt.nodes.context import ContextPlan
from infgen_rt.plan.estimates import estimated_seconds

# Below this scale, a picture has fewer pixels than its latent has detail, and its last token is outside the latent.
LEAST_SCALE = 0.25


@dataclass(frozen=True)
class StagePlan(PictureTiles):
    """The plan for decoding one latent to one size.

    Attributes:
        enlargement: the enlargement for which the context is refined.
        context: how the latent's context is made. None if prefill gives the whole context.
        scales: the smallest and largest scale that are decoded. Beyond them, the picture is resampled. None for any
            scale.
    """

    enlargement: Enlargement
    context: ContextPlan | None = None
    scales: tuple[float, float] | None = None

    @property
    def decoded(self) -> Grid:
        """The grid of the decoded picture, which is the stage's own or is resampled to it."""
        return decoded_grid(self.grid, self.scales)

    def __str__(self) -> str:
        pixels = Size(*(side * self.grid.patch for side in self.tile))
        tiles = "1 tile" if self.count == 1 else f"{self.count} tiles of {pixels} pixels at most"
        way = f"-> {self.decoded.picture}, by Lanczos " if self.decoded != self.grid else ""
        made = self.context.tiles if self.context else None
        parts = f" (context of {made})" if made and made.tiling.count > 1 else ""
        return f"latent {self.grid.cells}{parts} {way}-> picture {self.grid.picture}, {tiles}"

    def resized(self, picture: Size) -> "StagePlan":
        """The plan for the same latent and context at another size, with tiles that are no larger."""
        grid = Grid(self.grid.cells, picture, self.grid.patch)
        return replace(self, grid=grid, tiling=Tiling.of(grid.tokens, self.tile))


@dataclass(frozen=True)
class Plan:
    """The plan of a decode. Print it for a description.

    Attributes:
        stages: the decodes, first to last.
        encodings: the tiles in which each stage's picture, except the last, is encoded for the next stage.
        runs: the backend, device and precision, with the reason for the choice.
        preparation: the number of steps before the first pixel (`nodes.node.Step`).
        budget: bytes that the decode may use.
        memory: the expected peak memory in bytes, including the output band and the cache.
        cache: bytes of `memory` that hold decoded tiles for reuse.
        workers: the number of tiles that are decoded at the same time.
        work: the estimated number of multiply-adds for all of the last picture.
        measured: the expected seconds from the measured speed of the backend. None if it was not measured.
        writing: bytes of `memory` for writing, beyond those that a writer of 8-bit PNG needs.
    """

    stages: tuple[StagePlan, ...]
    encodings: tuple[HaloTiling, ...]
    runs: Choice
    preparation: int
    budget: int
    memory: int
    cache: int
    workers: int = 1
    work: float = 0.0
    measured: float | None = None
    writing: int = 0

    @property
    def estimated(self) -> bool:
        """Whether `seconds` is an estimate, because the backend's speed was not measured."""
        return self.measured is None

    @property
    def seconds(self) -> float:
        """The expected time for computing all of the last picture, without resampling and writing.

        If the backend was not measured, the time is estimated from the work and a quick measurement of the CPU, which
        takes a few hundredths of a second, once per process. It is the CPU's also for other devices.
        """
        return estimated_seconds(self.work) if self.measured is None else self.measured

    def beside(self, extra: int) -> tuple[int, int]:
        """The memory of the decode together with something else, for which the decode keeps fewer tiles.

        Args:
            extra: bytes of the other part, such as a writer.

        Returns:
            The peak memory in bytes, and the bytes of it that may hold tiles. A peak above `budget` does not fit.
        """
        needed = self.memory - self.cache - self.writing + extra
        cache = max(0, min(self.cache, self.budget - needed))
        return needed + cache, cache

    def __str__(self) -> str:
        lines = []
        for number, stage in enumerate(self.stages, start=1):
            if number > 1:
                lines.append(f"picture {number - 1} encoded: latent of {self.encodings[number - 2]}")
            lines.append(f"stage {number}: {stage}" + (f", {self.workers} at a time" if self.workers > 1 else ""))
        lines.append(f"memory: about {format_bytes(self.memory)} of {format_bytes(self.budget)}")
        guess = ", estimated for this CPU; measured by: infgen-rt devices --measure" if self.estimated else ""
        lines.append(f"time: about {self.seconds:.1f} s of computing{guess}")
        lines.append(f"backend: {self.runs}")
        return "\n".join(lines)


def decoded_grid(grid: Grid, scales: tuple[float, float] | None) -> Grid:
    """The grid of the picture to decode for another one, which is resampled from it beyond the scales."""
    if scales is None:
        return grid
    low, high = scales
    native = (grid.patch * side for side in grid.cells)
    sides = zip(grid.picture, native, strict=True)
    picture = Size(*(min(max(side, round(low * own)), round(high * own)) for side, own in sides))
    return Grid(grid.cells, picture, grid.patch)
