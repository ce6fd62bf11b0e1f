"""The plan of a decode: its stages and their tiles, with the expected memory and time."""

from dataclasses import dataclass, replace
from math import ceil

from infgen_rt.backend.choice import Choice
from infgen_rt.bundle.manifest import Enlargement, Halo
from infgen_rt.common.memory import format_bytes
from infgen_rt.geometry.grid import Grid
from infgen_rt.geometry.pictures import PictureTiles
from infgen_rt.geometry.shapes import Size
from infgen_rt.geometry.tiling import HaloTiling, Tiling
from infgen_rt.geometry.windows import CellWindows, TokenWindows, Windows
from infgen_rt.nodes.context import ContextPlan
from infgen_rt.nodes.resampled import SUPPORT
from infgen_rt.plan.estimates import estimated_seconds

LEAST_SCALE = 0.25
"""The smallest possible scale. Below it, the centre of a picture's last token could be outside the latent."""


@dataclass(frozen=True)
class StagePlan(PictureTiles):
    """The plan for decoding one latent to one size.

    Attributes:
        enlargement: the enlargement whose context is used.
        context: how the latent's context is computed. None if prefill computes it as a whole.
        scales: the smallest and largest scale that are decoded. Beyond them, the picture is resampled. None for any
            scale.
        halo: the reach of each graph.
        by_cells: whether whole cells are decoded if the scale is the enlargement's factor.
    """

    enlargement: Enlargement
    context: ContextPlan | None
    scales: tuple[float, float] | None
    halo: Halo
    by_cells: bool = False

    @property
    def decoded(self) -> Grid:
        """The grid of the picture that is decoded. If it is not the stage's own grid, the picture is resampled."""
        return decoded_grid(self.grid, self.scales)

    @property
    def windows(self) -> Windows:
        """What is decoded for a part of the picture."""
        return windows_of(self.decoded, self.enlargement, self.halo, self.by_cells)

    @property
    def decoded_tile(self) -> Size:
        """The size in tokens of the largest tile, with the margin for resampling."""
        made, tokens = self.decoded, self.decoded.tokens
        sides = []
        for tile, whole, side in zip(self.tile, self.grid.picture, made.picture, strict=True):
            if side != whole:
                tile = ceil((tile + 1) * side / whole + 2 * SUPPORT * max(1.0, side / whole) / made.patch) + 1
            sides.append(tile)
        return Size(*(min(side, most) for side, most in zip(sides, tokens, strict=True)))

    def __str__(self) -> str:
        pixels = Size(*(side * self.grid.patch for side in self.tile))
        tiles = "1 tile" if self.count == 1 else f"{self.count} tiles of {pixels} pixels at most"
        way = f"-> {self.decoded.picture}, by Lanczos " if self.decoded != self.grid else ""
        made = self.context.tiles if self.context else None
        parts = f" (context of {made})" if made and made.tiling.count > 1 else ""
        return f"latent {self.grid.cells}{parts} {way}-> picture {self.grid.picture}, {tiles}"

    def resized(self, picture: Size) -> "StagePlan":
        """The plan for a picture of another size from the same latent and context. Its tiles are not larger."""
        grid = Grid(self.grid.cells, picture, self.grid.patch)
        return replace(self, grid=grid, tiling=Tiling.of(grid.tokens, self.tile))


@dataclass(frozen=True)
class Plan:
    """The plan of a decode. Print it for a description.

    Attributes:
        stages: the stages, first to last. There is one, or several for iterative extrapolation (`Decoder.picture`).
        encodings: the tiles in which each stage's picture, except the last, is encoded for the next stage.
        runs: the backend, device and precision, with the reason for the choice.
        preparation: the number of steps before the first pixel.
        budget: the number of bytes that the decode may use.
        memory: the expected peak memory in bytes, with the cache and the rows of pixels that a writer holds.
        cache: the bytes of `memory` that are for decoded tiles that are kept.
        workers: the number of tiles that are decoded at the same time.
        work: the estimated number of multiply-adds for the whole picture.
        measured: the expected seconds, from the measured speed of the backend. None if the speed was not measured.
        writing: the bytes of `memory` for writing, beyond those that 8-bit PNG needs.
        kept: the bytes of `memory` that graphs keep, which pictures with the same plan use in turns.

    Examples:
        >>> import infgen_rt
        >>> latent = infgen_rt.load_sample("harbour").latent
        >>> with infgen_rt.open() as decoder:
        ...     plan = decoder.picture(latent, "4k").plan
        >>> plan.stages[0].grid.picture
        Size(width=3840, height=2160)
        >>> plan.memory <= plan.budget
        True
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
    kept: int = 0

    @property
    def estimated(self) -> bool:
        """Whether `seconds` is an estimate, because the backend's speed was not measured."""
        return self.measured is None

    @property
    def seconds(self) -> float:
        """The expected time in seconds for computing the whole picture, without resampling and writing.

        If the backend's speed was not measured, the time is estimated for the CPU, whatever the device is. The estimate
        needs a quick measurement, which takes a few hundredths of a second and is done once per process.
        """
        return estimated_seconds(self.work) if self.measured is None else self.measured

    def beside(self, extra: int) -> tuple[int, int]:
        """The memory of the decode together with a writer. The decode keeps fewer tiles to make room for it.

        Args:
            extra: the bytes that the writer needs beyond those of 8-bit PNG.

        Returns:
            The peak memory in bytes, and the bytes of it that are for tiles that are kept. A peak above `budget` is too
            much.
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
        lines.append(
            f"time: about {self.seconds:.1f} s for the model to compute the whole picture, and more to write it{guess}"
        )
        lines.append(f"backend: {self.runs}")
        return "\n".join(lines)


def windows_of(decoded: Grid, enlargement: Enlargement, halo: Halo, by_cells: bool) -> Windows:
    """What is decoded for a part of a picture.

    Args:
        decoded: the grid of the picture that is decoded.
        enlargement: the enlargement whose context is used.
        halo: the reach of each graph.
        by_cells: whether whole cells are decoded if the scale is the enlargement's factor.
    """
    factor = enlargement.factor
    if by_cells and factor and halo.cells is not None and decoded.is_at(factor):
        # A token sees the cells within the radius, and its pixels are interpolated from those beside its own.
        return CellWindows(decoded, halo.tokens, max(1, ceil(halo.cells - 0.5)), factor)
    return TokenWindows(decoded, halo.tokens, halo.cells)


def decoded_grid(grid: Grid, scales: tuple[float, float] | None) -> Grid:
    """The grid of the picture to decode for a requested one. It differs if the requested scale is beyond the scales.

    Args:
        grid: the grid of the requested picture.
        scales: the smallest and largest scale to decode. None for any scale.
    """
    if scales is None:
        return grid
    low, high = scales
    native = (grid.patch * side for side in grid.cells)
    sides = zip(grid.picture, native, strict=True)
    picture = Size(*(min(max(side, round(low * own)), round(high * own)) for side, own in sides))
    return Grid(grid.cells, picture, grid.patch)
