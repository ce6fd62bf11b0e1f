"""A latent from which pictures are made, and the stages that lead from it to a picture of a given size."""

from collections.abc import Sequence
from dataclasses import dataclass

from infgen_rt.backend.choice import Choice
from infgen_rt.backend.engine import Engine
from infgen_rt.common.notices import Notices
from infgen_rt.common.progress import Counter
from infgen_rt.errors import PlanError
from infgen_rt.geometry.grid import Grid
from infgen_rt.geometry.shapes import Size, parse_size
from infgen_rt.geometry.stages import chain, two_stages
from infgen_rt.nodes.chain import next_latent, picture_of
from infgen_rt.nodes.context import Contexts
from infgen_rt.nodes.tiles import Tiles
from infgen_rt.plan.costs import PLAIN, Writing
from infgen_rt.plan.making import Limits, make_plan
from infgen_rt.plan.plan import LEAST_SCALE, Plan, StagePlan

# Where two stages are the default, the first one enlarges by this factor.
_FIRST = 2.0
# Below this factor beyond the largest trained scale, two stages are not better than Lanczos
# (`benchmarks.studies.extrapolation`).
_WORTH = 1.25
# The largest stretch that is not visible. Rounding a side to whole cells may cause such a stretch.
_UNSEEN_STRETCH = 1.02


@dataclass(frozen=True)
class Stage:
    """The decode of one latent to one size.

    Attributes:
        contexts: the latent's contexts, which other stages of the same latent may share.
        plan: the plan for decoding the picture.
        tiles: the picture, which is the last node of the stage.
        engine: the loaded model.
    """

    contexts: Contexts
    plan: StagePlan
    tiles: Tiles
    engine: Engine

    @classmethod
    def of(cls, contexts: Contexts, plan: StagePlan, engine: Engine, cache: int = 0, workers: int = 1) -> "Stage":
        """Link the nodes of a stage, whose context must be planned. For the arguments, see `nodes.chain.picture_of`."""
        tiles = picture_of(contexts, plan.enlargement, plan.decoded, plan.windows, plan, engine, cache, workers)
        return cls(contexts, plan, tiles, engine)

    @property
    def least_scale(self) -> float:
        """The smallest scale that the model was trained for."""
        return max(LEAST_SCALE, self.engine.manifest.scale_range[0])

    def prepare(self, steps: int, counter: Counter) -> None:
        """Do the work before the first tile, and count its steps.

        Args:
            steps: the planned number of steps. Other threads may have done some of them.
            counter: counts all of them.
        """
        if steps:
            for step in self.tiles.prepare():
                counter.step(step)
            counter.step("prefill", steps)

    def resized(self, size: Size, workers: int = 1) -> "Stage | None":
        """A stage for the same latent at another size. It shares the contexts and keeps no tiles.

        None if the scale is smaller than those that the model was trained for.
        """
        plan = self.plan.resized(size)
        if min(plan.grid.scale) < self.least_scale:
            return None
        return Stage.of(self.contexts, plan, self.engine, workers=workers)


@dataclass(frozen=True)
class Source:
    """A latent and everything that its pictures share.

    Attributes:
        contexts: the latent's contexts.
        cells: the width and height of the latent.
        native: the width and height of its picture at scale 1, in pixels.
        engine: the loaded model.
        runs: how the model is run.
        budget: the number of bytes that a decode may use.
        tile: the side of the largest tile in pixels. None to let the budget decide.
        part: the side in cells of the largest part of a context. None to let the budget decide.
        notices: gives the warnings about sizes.
    """

    contexts: Contexts
    cells: Size
    native: Size
    engine: Engine
    runs: Choice
    budget: int
    tile: int | None
    part: int | None
    notices: Notices

    def picture(
        self,
        size: str | float | Size | tuple[int, int] | None,
        stages: Sequence[float] | None = None,
        max_scale: float | None = None,
        warns: bool = True,
    ) -> tuple[Plan, Stage]:
        """Plan a picture and link its nodes. The other arguments and the errors are those of `Decoder.picture`.

        Args:
            size: the size.
            stages: the scales of the stages.
            max_scale: the largest scale of a stage.
            warns: whether to warn of an unusual scale or shape.

        Returns:
            The plan, and the last stage.
        """
        manifest = self.engine.manifest
        whole = Grid(self.cells, parse_size(size, self.native), manifest.patch)
        missing = None
        if stages is None and max_scale is None:
            plan, missing = self._usual_plan(whole)
        else:
            # Beyond the scales that it was trained for, the model leaves patterns. Scales in `stages` are the user's
            # choice and not limited.
            limits = manifest.scale_range if stages is None else None
            plan = self._plan(chain(whole, stages, max_scale), limits, PLAIN)
        for each in plan.stages:
            self.engine.load_for(each.enlargement)
        first = plan.stages[0]
        self.contexts.plan(first.context, first.enlargement, plan.budget - plan.memory)
        if warns:
            _warn_of_scale(plan.stages, self.engine.manifest.scale_range, self.native, missing, self.notices)
        return plan, self._linked(plan)

    def _usual_plan(self, whole: Grid) -> tuple[Plan, str | None]:
        """The plan for a picture whose stages the user leaves open, and why it has one stage where two are better."""
        limits, missing = self.engine.manifest.scale_range, None
        if limits[1] >= _FIRST and max(whole.scale) > _WORTH * limits[1]:
            try:
                # With little memory, two stages take many times as long as one.
                return self._plan(two_stages(whole, _FIRST), limits, PLAIN, spares=True), None
            except PlanError as error:
                missing = str(error).removesuffix(": use one stage")
        return self._plan((whole,), limits, PLAIN), missing

    def for_writing(self, plan: Plan, writing: Writing) -> Plan:
        """A plan for the same picture that leaves memory for writing it.

        Raises:
            TooLittleMemory: the budget is too small even for the smallest tiles.
        """
        return self._plan([stage.grid for stage in plan.stages], plan.stages[0].scales, writing)

    def linked(self, plan: Plan) -> Stage:
        """The last stage of a plan from `for_writing`."""
        first = plan.stages[0]
        self.contexts.plan(first.context, first.enlargement, plan.budget - plan.memory, again=True)
        return self._linked(plan)

    def _plan(
        self, grids: Sequence[Grid], scales: tuple[float, float] | None, writing: Writing, spares: bool = False
    ) -> Plan:
        limits = Limits(self.budget, self.tile, self.part, self.engine.workers, self.engine.largest, scales, spares)
        manifest, recipe = self.engine.manifest, self.engine.recipe
        return make_plan(grids, manifest, recipe, self.runs, limits, made=self.contexts.planned, writing=writing)

    def _linked(self, plan: Plan) -> Stage:
        """Link the nodes of a plan. Its first context must be planned."""
        first, engine = plan.stages[0], self.engine
        if plan.encodings:
            engine.load_encoder()
        stage = Stage.of(self.contexts, first, engine, plan.cache, plan.workers)
        for encoding, each in zip(plan.encodings, plan.stages[1:], strict=True):
            later = next_latent(stage.tiles, encoding, engine)
            later.plan(each.context, each.enlargement)
            stage = Stage.of(later, each, engine, plan.cache, plan.workers)
        return stage


def _warn_of_scale(
    stages: Sequence[StagePlan], limits: tuple[float, float], native: Size, missing: str | None, notices: Notices
) -> None:
    low, high = limits
    own = f"the latent's own {native}"
    for number, stage in enumerate(stages, start=1):
        grid, resamples = stage.grid, stage.decoded != stage.grid
        scale_y, scale_x = grid.scale
        # Reducing a picture by resampling does not lower its quality.
        if max(scale_y, scale_x) > high or (min(scale_y, scale_x) < low and not resamples):
            which = f"stage {number}: " if len(stages) > 1 else ""
            edge = low if max(scale_y, scale_x) < low else high
            beyond = ", what is beyond is enlarged by Lanczos" if resamples else ""
            better = f"; two stages would be better, but {missing}" if missing else ""
            cause = "scale of stages" if not resamples else "one stage" if missing else "scale"
            notices.warn(
                cause,
                f"{which}{grid.picture} is {scale_x:.2f}x{scale_y:.2f} times {own}; "
                f"the model was trained for {low:g} to {high:g} times{beyond}; "
                f"{Size(*(round(edge * side * grid.patch) for side in grid.cells))} is within that{better}",
            )
        own = f"{grid.picture}"
    size = stages[-1].grid.picture
    wider = size.width * native.height / (size.height * native.width)
    stretch = max(wider, 1 / wider)
    if stretch > _UNSEEN_STRETCH:
        # One side is reduced, so that this size is possible too.
        fitting = parse_size(f"x{size.height}" if wider > 1 else f"{size.width}x", native)
        notices.warn(
            "shape",
            f"{size} stretches the latent's own {native} by {stretch:.2f} in one direction; "
            f"{fitting} would keep its shape",
        )
