"""Plans: what a decode will do, stage by stage, and what it will take."""

from dataclasses import dataclass, replace

from infgen_rt.backend.choice import Choice
from infgen_rt.bundle.manifest import Enlargement
from infgen_rt.common.memory import format_bytes
from infgen_rt.geometry.grid import Grid
from infgen_rt.geometry.pictures import PictureTiles
from infgen_rt.geometry.shapes import Size
from infgen_rt.geometry.tiling import HaloTiling, Tiling
from infgen_rt.nodes.context import ContextPlan

# Below this a picture has fewer pixels than a latent has detail, and its last token lies outside the latent.
LEAST_SCALE = 0.25


@dataclass(frozen=True)
class StagePlan(PictureTiles):
    """How one stage decodes one latent to one size.

    Attributes:
        enlargement: what the context is refined for.
        context: how the latent's is made; None if prefill gives it whole.
        scales: the smallest and the largest scale that are decoded; beyond them, that picture is resampled. None for
            any.
    """

    enlargement: Enlargement
    context: ContextPlan | None = None
    scales: tuple[float, float] | None = None

    @property
    def decoded(self) -> Grid:
        """The geometry of what is decoded: the stage's own, or that of the picture that is resampled to it."""
        return decoded_grid(self.grid, self.scales)

    def __str__(self) -> str:
        pixels = Size(*(side * self.grid.patch for side in self.tile))
        tiles = "1 tile" if self.count == 1 else f"{self.count} tiles of {pixels} pixels at most"
        way = f"-> {self.decoded.picture}, by Lanczos " if self.decoded != self.grid else ""
        made = self.context.tiles if self.context else None
        parts = f" (context of {made})" if made and made.tiling.count > 1 else ""
        return f"latent {self.grid.cells}{parts} {way}-> picture {self.grid.picture}, {tiles}"

    def resized(self, picture: Size) -> "StagePlan":
        """The plan for the same latent at another size, of the same context, with tiles that are no larger."""
        grid = Grid(self.grid.cells, picture, self.grid.patch)
        return replace(self, grid=grid, tiling=Tiling.of(grid.tokens, self.tile))


@dataclass(frozen=True)
class Plan:
    """What a decode will do; print it to see.

    Attributes:
        stages: the decodes, first to last.
        encodings: how the picture of each stage but the last is encoded for the next.
        runs: what runs it, in what precision and why.
        preparation: steps before the first pixel (`nodes.node.Step`).
        budget: bytes the decode may use.
        memory: bytes it is expected to use at most, output band and cache included.
        cache: bytes of `memory` that hold decoded tiles for reuse.
        workers: tiles that are decoded at the same time.
        seconds: that computing all of the last picture is expected to take, without resampling and writing; None where
            the backend's speed was not measured.
    """

    stages: tuple[StagePlan, ...]
    encodings: tuple[HaloTiling, ...]
    runs: Choice
    preparation: int
    budget: int
    memory: int
    cache: int
    workers: int = 1
    seconds: float | None = None

    def beside(self, extra: int) -> tuple[int, int]:
        """What is used with something beside the decode, which keeps fewer tiles then.

        Args:
            extra: bytes of what is beside it.

        Returns:
            Bytes in all at most, and how many of them may hold tiles. More than `budget` means that it does not fit.
        """
        needed = self.memory - self.cache + extra
        cache = max(0, min(self.cache, self.budget - needed))
        return needed + cache, cache

    def __str__(self) -> str:
        lines = []
        for number, stage in enumerate(self.stages, start=1):
            if number > 1:
                lines.append(f"picture {number - 1} encoded: latent of {self.encodings[number - 2]}")
            lines.append(f"stage {number}: {stage}" + (f", {self.workers} at a time" if self.workers > 1 else ""))
        lines.append(f"memory: about {format_bytes(self.memory)} of {format_bytes(self.budget)}")
        unknown = "not measured here: infgen-rt devices --measure"
        lines.append(f"time: {unknown if self.seconds is None else f'about {self.seconds:.1f} s of computing'}")
        lines.append(f"backend: {self.runs}")
        return "\n".join(lines)


def decoded_grid(grid: Grid, scales: tuple[float, float] | None) -> Grid:
    """The geometry of the picture that is decoded for another, which is resampled from it beyond some scales."""
    if scales is None:
        return grid
    low, high = scales
    native = (grid.patch * side for side in grid.cells)
    sides = zip(grid.picture, native, strict=True)
    picture = Size(*(min(max(side, round(low * own)), round(high * own)) for side, own in sides))
    return Grid(grid.cells, picture, grid.patch)
