"""Opening a model and making pictures with it."""

import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from infgen_rt.backend.candidates import AUTO, Precision
from infgen_rt.backend.choice import Choice, choose
from infgen_rt.backend.engine import Engine
from infgen_rt.bundle.folder import Bundle
from infgen_rt.bundle.manifest import Manifest
from infgen_rt.common.memory import default_budget, parse_bytes
from infgen_rt.errors import BackendError, InfGenWarning
from infgen_rt.geometry.grid import Grid
from infgen_rt.geometry.shapes import Size, parse_size
from infgen_rt.geometry.stages import chain
from infgen_rt.latent.arrays import Normalisation, as_latent, native_size
from infgen_rt.latent.spaces import latent_space
from infgen_rt.nodes.context import Context, given
from infgen_rt.nodes.decoded import Stage
from infgen_rt.nodes.reencode import reencoded
from infgen_rt.picture import Picture
from infgen_rt.plan.plan import make_plan

# A stretch that nobody sees, such as that of rounding a side to whole cells.
_UNSEEN_STRETCH = 1.02


def open(
    path: str | Path | None = None,
    backend: str = AUTO,
    *,
    device: str | None = None,
    precision: Precision = "fast",
    threads: int | None = None,
    memory: str | int | None = None,
) -> "Decoder":
    """Open a model.

    Args:
        path: a bundle, a folder or a zip; None for the model that the package ships.
        backend: a backend's name, `cuda`, or `auto` for the fastest one here, measured once and remembered.
        device: which of the backend's devices (`cpu`, `cuda:1`, `gpu`, `npu`); None for the fastest. What is named is
            used or refused.
        precision: `fast` for what the device does natively, at 45 dB against float32 or better; `exact` for
            float32 throughout.
        threads: CPU threads to compute with; None for the backend's own choice.
        memory: what a decode may use, in bytes or as text (`1GiB`); None for 4 GiB, or half of what is free
            if that is less.

    Returns:
        A decoder, to be closed after use or used as a context manager.

    Raises:
        BundleError: there is no bundle, or it is damaged.
        BackendError: the backend or the device is unknown, not installed or cannot run the bundle.
        PlanError: `memory` is not an amount.
    """
    if threads is not None and threads < 1:
        raise BackendError(f"{threads} threads are not possible: expected 1 or more")
    budget = parse_bytes(memory) if memory is not None else default_budget()
    bundle = Bundle.open(path)
    candidate, choice = choose(bundle, backend, device, precision, threads)
    return Decoder(Engine(bundle, candidate, threads), choice, budget)


class Decoder:
    """An opened model; one serves several threads. Made by `open`."""

    def __init__(self, engine: Engine, choice: Choice, budget: int) -> None:
        self._engine = engine
        self._choice = choice
        self._budget = budget

    @property
    def manifest(self) -> Manifest:
        """What is known of the model: name, licence, bounds, verification."""
        return self._engine.manifest

    @property
    def backend(self) -> Choice:
        """What runs it, in what precision, and why; `backend.name` is what `open` calls it."""
        return self._choice

    def native_size(self, latent: Any, *, latent_size: tuple[int, int] | None = None) -> Size:
        """The size of a latent's picture at scale 1, to `fit` to a display.

        Args:
            latent: as for `picture`.
            latent_size: as for `picture`.

        Returns:
            Width and height in pixels.

        Raises:
            LatentError: the latent is not usable.
        """
        return native_size(latent, latent_space(self.manifest.latent_space), latent_size=latent_size)

    def picture(
        self,
        latent: Any,
        size: str | float | tuple[int, int] | None = None,
        *,
        stages: Sequence[float] | None = None,
        max_scale: float | None = None,
        tile: int | None = None,
        normalisation: Normalisation = "model",
        latent_size: tuple[int, int] | None = None,
    ) -> Picture:
        """Plan a picture; nothing is decoded yet.

        Args:
            latent: a NumPy array or torch tensor: [C, h, w], patchified [4C, h/2, w/2] or packed
                [tokens, 4C], with or without a batch axis of 1.
            size: (width, height) in pixels, a name such as `4k`, a factor such as `2x`, `x2160`; None for the
                latent's native size. See `geometry.parse_size`.
            stages: reach the size by iterative extrapolation: decode at the first scale, encode that picture, decode it
                at the next, and so on; the scales multiply to the size's. None for one stage, up to the scale that the
                model was trained for; what is beyond is enlarged by Lanczos.
            max_scale: the same in the fewest stages that enlarge no more than so many times each.
            tile: the largest tile's side in pixels; None to let the memory budget decide.
            normalisation: `vae` for what diffusers' Flux2Pipeline returns with `output_type="latent"`.
            latent_size: width and height in pixels that the pipeline was asked for; only for packed latents.

        Raises:
            LatentError: the latent is not usable.
            PlanError: the size, the stages or the tile are not possible, or the memory budget is too small.
            BackendError: the graph that several stages need cannot be loaded.
        """
        manifest = self.manifest
        space = latent_space(manifest.latent_space)
        array = as_latent(latent, space, normalisation=normalisation, latent_size=latent_size)
        cells = Size(*array.shape[:0:-1])
        context = Context(partial(given, array), self._engine)
        return self._picture(context, cells, space.native_size(array), tile, size, stages, max_scale)

    def _picture(
        self,
        context: Context,
        cells: Size,
        native: Size,
        tile: int | None,
        size: str | float | tuple[int, int] | None,
        stages: Sequence[float] | None = None,
        max_scale: float | None = None,
    ) -> Picture:
        grids = chain(Grid(cells, parse_size(size, native), self.manifest.patch), stages, max_scale)
        # Beyond what it was trained for the model leaves patterns; stages that were asked for are done as asked.
        scales = self.manifest.scale_range if stages is None and max_scale is None else None
        plan = make_plan(
            grids,
            self.manifest,
            self._engine.recipe,
            runs=self._choice,
            budget=self._budget,
            tile=tile,
            scales=scales,
            made=context.planned,
            workers=self._engine.workers,
        )
        for each in plan.stages:
            self._engine.load_for(each.enlargement)
        context.plan(plan.stages[0].context, plan.stages[0].enlargement, plan.budget - plan.memory)
        _warn_of_scale(grids, self.manifest, native, plan.stages[0].decoded != grids[0])
        if plan.encodings:
            self._engine.load("encode")
        stage = Stage(context, plan.stages[0], self._engine, plan.cache, plan.workers)
        for encoding, each in zip(plan.encodings, plan.stages[1:], strict=True):
            later = Context(partial(reencoded, stage, encoding, self._engine), self._engine)
            later.plan(each.context, each.enlargement)
            stage = Stage(later, each, self._engine, plan.cache, plan.workers)
        return Picture(stage, plan, partial(self._picture, context, cells, native, tile))

    def close(self) -> None:
        """Free the model, and what its pictures hold: those that are still open can no longer be read."""
        self._engine.close()

    def __enter__(self) -> "Decoder":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _warn_of_scale(grids: Sequence[Grid], manifest: Manifest, native: Size, resamples: bool) -> None:
    low, high = manifest.scale_range
    beyond = ", what is beyond is enlarged by Lanczos" if resamples else ""
    for number, grid in enumerate(grids, start=1):
        scale_y, scale_x = grid.scale
        # What is reduced by resampling is as good as what it is reduced from.
        if max(scale_y, scale_x) > high or (min(scale_y, scale_x) < low and not resamples):
            which = f"stage {number}: " if len(grids) > 1 else ""
            own = f"the latent's own {native}" if number == 1 else f"{grids[number - 2].picture}"
            warnings.warn(
                f"{which}{grid.picture} is {scale_x:.2f}x{scale_y:.2f} times {own}; "
                f"the model was trained for {low:g} to {high:g} times" + beyond,
                InfGenWarning,
                stacklevel=4,
            )
    size = grids[-1].picture
    stretch = size.width * native.height / (size.height * native.width)
    stretch = max(stretch, 1 / stretch)
    if stretch > _UNSEEN_STRETCH:
        fitting = parse_size(f"x{size.height}", native)
        warnings.warn(
            f"{size} stretches the latent's own {native} by {stretch:.2f} in one direction; "
            f"{fitting} would keep its shape",
            InfGenWarning,
            stacklevel=4,
        )
