"""Nodes for contexts, from which tiles are decoded. They are refined where needed, and shared between pictures."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from math import prod
from typing import cast

from infgen_rt.backend.engine import Engine
from infgen_rt.backend.protocol import Values
from infgen_rt.bundle.manifest import Enlargement, Manifest, Memory
from infgen_rt.common.pixels import FloatArray
from infgen_rt.geometry.shapes import Box, Size
from infgen_rt.geometry.tiling import HaloTiling
from infgen_rt.nodes.cache import TileCache
from infgen_rt.nodes.features import LocalFeatures, WholeFeatures, cut, joined
from infgen_rt.nodes.moments import Gathering, Moments
from infgen_rt.nodes.node import FLOAT, Cost, Node, Step


@dataclass(frozen=True)
class ContextPlan:
    """How a latent's context is made in tiles.

    Attributes:
        tiles: the tiles of the latent, with the halo of refine.
        cache: bytes of tiles that are kept.
        gathering: how the latent's statistics are gathered. None if the model has none.
        local: whether prefill is local although the model has no statistics.
    """

    tiles: HaloTiling
    cache: int
    gathering: Gathering | None = None
    local: bool = False

    @property
    def is_local(self) -> bool:
        """Whether features are computed where they are needed. Otherwise, prefill sees the whole latent."""
        return self.local or self.gathering is not None

    def cost(self, enlargement: Enlargement, refines: bool, manifest: Manifest, figures: Memory) -> Cost:
        """The cost of making one tile at a time, and of the tiles that are kept.

        Args:
            enlargement: the context's enlargement.
            refines: whether the recipe has a refine graph.
            manifest: the model's manifest.
            figures: the recipe's memory figures.
        """
        fine = (manifest.fine_channels or 0) * FLOAT * manifest.patch**2
        making = max(figures.trunk_per_cell, figures.refine_per_cell + fine) if refines else 0
        reading = making * self.tiles.window.area
        return Cost(held=self.cache, reading=reading, cells=self.tiles.computed * effort(enlargement, manifest))


class Refined:
    """The context [1, D, h, w] for one enlargement, made one tile at a time.

    Args:
        features: the features that it is refined from.
        tiles: its tiles, with the halo of refine.
        enlargement: its enlargement.
        kept: the cache for the tiles of this context and of the same latent's other contexts.
        engine: the engine, with the refine graph.
    """

    def __init__(
        self,
        features: Node[Values],
        tiles: HaloTiling,
        enlargement: Enlargement,
        kept: TileCache[tuple[Enlargement, Box], Values],
        engine: Engine,
    ) -> None:
        self._features, self._tiles, self._enlargement = features, tiles, enlargement
        self._kept, self._engine = kept, engine

    @property
    def size(self) -> Size:
        """Width and height in cells."""
        return self._features.size

    def prepare(self) -> Iterator[Step]:
        """Prepare the features; see `Node`."""
        return self._features.prepare()

    def read(self, box: Box) -> Values:
        """The context of some cells, on the backend's device."""
        for _ in self.prepare():
            pass
        self._engine.check_open()
        rows_of_parts = [
            [self._tile(tile)[:, :, *tile.intersect(box).relative_to(tile).slices] for tile in row]
            for _, row in groupby(self._tiles.tiling.touching(box), key=lambda tile: tile.y)
        ]
        if len(rows_of_parts) == len(rows_of_parts[0]) == 1:
            return cast(Values, rows_of_parts[0][0])
        return cast(Values, joined([joined(parts, axis=3) for parts in rows_of_parts]))

    def _tile(self, tile: Box) -> Values:
        def made() -> tuple[Values, int]:
            window = self._tiles.window_of(tile)
            context = cut(self._engine.refine(self._features.read(window), self._enlargement), tile, window)
            return context, FLOAT * prod(context.shape)

        return self._kept.get_or_make((self._enlargement, tile), made)


class Contexts:
    """A latent's contexts, one per enlargement. All pictures of the latent share these nodes.

    Args:
        latent: float32 [C, h, w].
        engine: the loaded model.
    """

    def __init__(self, latent: Node[FloatArray], engine: Engine) -> None:
        self._engine = engine
        # Released once there is a node for the features, which may not need it for long.
        self._latent: Node[FloatArray] | None = latent
        self._features: Node[Values] | None = None
        self._refined: dict[Enlargement, Refined] = {}
        self._planned: dict[Enlargement, ContextPlan] = {}
        # One cache for all contexts. Otherwise, a picture and its preview could together keep more than was planned.
        self._tiles: TileCache[tuple[Enlargement, Box], Values] = TileCache(0)
        self._room = sys.maxsize
        engine.lends_to(self)

    def let_go(self) -> None:
        """See `engine.Borrower`."""
        self._tiles.clear()
        self._refined.clear()
        self._latent = self._features = None

    def planned(self, enlargement: Enlargement) -> ContextPlan | None:
        """The plan for an enlargement's context, from the first picture that uses it. None if there is no plan yet."""
        return self._planned.get(enlargement)

    def plan(self, plan: ContextPlan | None, enlargement: Enlargement, room: int = 0, again: bool = False) -> None:
        """Set the plan for a context, before any part of it is read. The first plan for an enlargement is kept.

        The very first plan also determines how statistics are gathered for all contexts.

        Args:
            plan: the plan for the context. None if prefill gives it as a whole.
            enlargement: the picture's enlargement.
            room: bytes that the picture leaves for contexts of other enlargements.
            again: whether this plan replaces an earlier one. Pictures of the earlier plan can still be read.
        """
        if self._latent is not None:
            self._features = self._features_of(self._latent, plan)
            self._latent = None
        if plan is None or self._features is None:
            return
        if again and plan != self._planned.get(enlargement):
            self._planned.pop(enlargement, None)
            self._refined.pop(enlargement, None)
        self._planned.setdefault(enlargement, plan)
        if enlargement not in self._refined:
            tiles = self._planned[enlargement].tiles
            self._refined[enlargement] = Refined(self._features, tiles, enlargement, self._tiles, self._engine)
        caches = [each.cache for each in self._planned.values()]
        self._room = min(self._room, plan.cache + room)
        self._tiles.resize(max(*caches, min(sum(caches), self._room)))

    def of(self, enlargement: Enlargement) -> Node[Values]:
        """The context for an enlargement, which must be planned. Without a refine graph, this is the features."""
        node = self._refined.get(enlargement, self._features)
        assert node is not None, "a context is planned before it is used"
        return node

    def _features_of(self, latent: Node[FloatArray], plan: ContextPlan | None) -> Node[Values]:
        if plan is None or not plan.is_local:
            return WholeFeatures(latent, self._engine)
        moments = Moments(latent, plan.gathering, self._engine) if plan.gathering else None
        return LocalFeatures(latent, moments, self._engine)


def effort(enlargement: Enlargement, manifest: Manifest) -> float:
    """The work for a context, relative to that of the smallest enlargement, whose time is measured."""
    measured = manifest.contexts[0].work
    return enlargement.work / measured if enlargement.work and measured else 1.0
