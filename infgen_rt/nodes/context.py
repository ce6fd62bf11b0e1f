"""Links the nodes from a latent to its contexts. All pictures of a latent share its contexts."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from threading import Lock

from infgen_rt.backend.engine import Engine, Purpose
from infgen_rt.backend.protocol import Values
from infgen_rt.bundle.graphs import REFINE, TRUNK
from infgen_rt.bundle.manifest import Enlargement, Manifest, Recipe
from infgen_rt.common.pixels import FloatArray
from infgen_rt.geometry.shapes import Size
from infgen_rt.geometry.tiling import HaloTiling
from infgen_rt.nodes.features import LocalFeatures, WholeFeatures
from infgen_rt.nodes.kept import ContextCache, Kept
from infgen_rt.nodes.moments import Gathering, Moments
from infgen_rt.nodes.node import Cost, Node
from infgen_rt.nodes.refining import Features, Grown, Inputs, Refined


@dataclass(frozen=True)
class ContextPlan:
    """How a latent's context is made in tiles.

    Attributes:
        tiles: the tiles of the latent, with the halo of all graphs between features and context.
        cache: the maximum number of bytes of tiles to keep.
        gathering: how the latent's statistics are gathered. None if the model has no statistics.
        local: whether prefill is local although the model has no statistics.
        refine_halo: the halo of refine alone, in cells. None if it is the same as that of `tiles`.
        keeps: whether the graphs keep their working memory for the next latent, which takes a tenth less time.
    """

    tiles: HaloTiling
    cache: int
    gathering: Gathering | None = None
    local: bool = False
    refine_halo: int | None = None
    keeps: bool = False

    @property
    def refined(self) -> HaloTiling:
        """The tiles with the halo of refine alone."""
        return self.tiles if self.refine_halo is None else HaloTiling(self.tiles.tiling, self.refine_halo)

    @property
    def is_local(self) -> bool:
        """Whether features are computed where they are needed. Otherwise, prefill sees the whole latent."""
        return self.local or self.gathering is not None

    def cost(self, enlargement: Enlargement, manifest: Manifest) -> Cost:
        """The cost of the tiles that are kept, and of making each of them once."""
        # Most of the work for the smallest enlargement is done by the trunk, and the additional work for a larger one
        # by refine, which has a smaller halo.
        more = effort(enlargement, manifest) - 1
        return Cost(held=self.cache, cells=self.tiles.computed + self.refined.computed * more)


class Contexts:
    """A latent's contexts, one per enlargement. All pictures of the latent share these nodes.

    Args:
        latent: float32 [C, h, w].
        engine: the loaded model.
    """

    def __init__(self, latent: Node[FloatArray], engine: Engine) -> None:
        self._engine = engine
        # Released as soon as there is a node for the features, because that node may not need it for long.
        self._latent: Node[FloatArray] | None = latent
        self._features: Node[Values] | None = None
        self._kept: dict[Enlargement, Kept] = {}
        self._planned: dict[Enlargement, ContextPlan] = {}
        # One cache for all contexts. Otherwise, a picture and its preview could together keep more than was planned.
        self._tiles: ContextCache = ContextCache(0)
        self._room = sys.maxsize
        self._planning = Lock()
        engine.lends_to(self)

    def let_go(self) -> None:
        """See `engine.Borrower`."""
        self._tiles.clear()
        self._kept.clear()
        self._latent = self._features = None

    def planned(self, enlargement: Enlargement) -> ContextPlan | None:
        """The plan for an enlargement's context, from the first picture that uses it. None if there is no plan yet."""
        return self._planned.get(enlargement)

    def plan(self, plan: ContextPlan | None, enlargement: Enlargement, room: int = 0, again: bool = False) -> None:
        """Set the plan for a context, before any part of it is read.

        The first plan for an enlargement is kept, but if there is too little room for a later picture, the graphs no
        longer keep their memory. The first plan of all also determines how the statistics are gathered for all
        contexts.

        Args:
            plan: the plan for the context. None if prefill computes the context as a whole.
            enlargement: the enlargement of the context.
            room: the bytes that the picture leaves for contexts of other enlargements.
            again: whether this plan replaces an earlier one. Pictures of the earlier plan can still be read.
        """
        with self._planning:
            latent, self._latent = self._latent, None
            if latent is not None:
                self._features = self._features_of(latent, plan, enlargement)
            features = self._features
            if plan is None or features is None:
                return
            before = self._planned.get(enlargement)
            made = plan if before is None or again else replace(before, keeps=before.keeps and plan.keeps)
            if made != before or enlargement not in self._kept:
                context, tiling = self._context_of(features, made, enlargement), made.tiles.tiling
                # The old context is replaced at once, because another thread may be asking for it.
                purpose = _purpose(made, enlargement)
                self._kept[enlargement] = Kept(context, tiling, enlargement, self._tiles, purpose, self._engine)
                self._planned[enlargement] = made
            caches = [each.cache for each in self._planned.values()]
            self._room = min(self._room, plan.cache + room)
            self._tiles.resize(max(*caches, min(sum(caches), self._room)))

    def of(self, enlargement: Enlargement) -> Node[Values]:
        """The context for an enlargement, which must be planned. If it has no tiles, the features are the context.

        Raises:
            DecodeError: the engine is closed.
        """
        node = self._kept.get(enlargement, self._features)
        self._engine.check_open()  # if the decoder was closed before, there is no node
        assert node is not None, "a context is planned before it is used"
        return node

    def _features_of(
        self, latent: Node[FloatArray], plan: ContextPlan | None, enlargement: Enlargement
    ) -> Node[Values]:
        purpose = _purpose(plan, enlargement)
        if plan is None or not plan.is_local:
            return WholeFeatures(latent, purpose, self._engine)
        moments = Moments(latent, plan.gathering, self._engine, purpose) if plan.gathering else None
        return LocalFeatures(latent, moments, self._engine)

    def _context_of(self, features: Node[Values], plan: ContextPlan, enlargement: Enlargement) -> Node[Values]:
        if not self._engine.has(REFINE):
            return features
        inputs: Node[Inputs] = Features(features)
        if self._engine.has(TRUNK):
            inputs = Grown(inputs, plan.tiles.halo - plan.refined.halo, self._engine)
        return Refined(inputs, plan.refined.halo, enlargement, self._engine)


def _purpose(plan: ContextPlan | None, enlargement: Enlargement) -> Purpose:
    """What the graphs of a picture run for. Pictures with the same plan need the same amounts of memory."""
    return Purpose((plan, enlargement), plan is not None and plan.keeps)


def context_costs(
    plan: ContextPlan | None, cells: Size, enlargement: Enlargement, manifest: Manifest, recipe: Recipe
) -> Iterator[Cost]:
    """The costs of the nodes from a latent to its context, as `Contexts` links them.

    Args:
        plan: the plan for the context. None if prefill computes the context as a whole.
        cells: the latent's width and height in cells.
        enlargement: the context's enlargement.
        manifest: the model's manifest.
        recipe: the recipe that will run.
    """
    costs = _graph_costs(plan, cells, enlargement, manifest, recipe)
    if plan is None:
        yield from costs
        yield Cost(cells=cells.area * effort(enlargement, manifest))
        return
    for cost in costs:
        yield replace(cost, held=cost.held + max(cost.making, cost.reading), reading=0) if plan.keeps else cost
    yield plan.cost(enlargement, manifest)


def _graph_costs(
    plan: ContextPlan | None, cells: Size, enlargement: Enlargement, manifest: Manifest, recipe: Recipe
) -> Iterator[Cost]:
    """The costs of the nodes that run graphs, if the graphs do not keep their working memory."""
    figures, has = manifest.memory(recipe), {kind.name for kind in manifest.kinds(recipe)}
    if plan is None or not plan.is_local:
        yield WholeFeatures.cost(cells, plan is not None, enlargement, manifest, figures)
    if plan is None:
        return
    if plan.gathering is not None:
        yield plan.gathering.cost(figures)
    if plan.is_local:
        yield LocalFeatures.cost(plan.tiles, manifest, figures)
    if TRUNK.name in has:
        yield Grown.cost(plan.tiles, plan.refined, manifest, figures)
    if REFINE.name in has:
        yield Refined.cost(plan.refined, manifest, figures)


def effort(enlargement: Enlargement, manifest: Manifest) -> float:
    """The work for a context, divided by the work for the smallest enlargement, for which the time is measured."""
    measured = manifest.contexts[0].work
    return enlargement.work / measured if enlargement.work and measured else 1.0
