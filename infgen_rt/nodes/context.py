"""Contexts: what all tiles of a picture are decoded from, refined where it is needed, and shared among pictures."""

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
    """How a latent's context is made: in tiles.

    Attributes:
        tiles: of the latent, with the halo of refine.
        cache: bytes of tiles that are kept.
        gathering: how the latent's statistics are; None if prefill sees the whole latent instead.
    """

    tiles: HaloTiling
    cache: int
    gathering: Gathering | None = None

    def cost(self, enlargement: Enlargement, refines: bool, manifest: Manifest, figures: Memory) -> Cost:
        """A tile at a time, and those that are kept.

        Args:
            enlargement: what it is for.
            refines: whether the recipe has a refine graph.
            manifest: the model's.
            figures: the recipe's.
        """
        reading = figures.refine_per_cell * self.tiles.window.area if refines else 0
        return Cost(held=self.cache, reading=reading, cells=self.tiles.computed * effort(enlargement, manifest))


class Refined:
    """The context [1, D, h, w] for one enlargement, made a tile at a time.

    Args:
        features: what it is refined from.
        tiles: with the halo of refine.
        enlargement: what it is for.
        kept: tiles of this context and of others of the same latent.
        engine: with the refine graph.
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
        """The context of some cells, where the backend computes."""
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
    """A latent's contexts, one per enlargement: the nodes that all pictures of the latent share.

    Args:
        latent: float32 [C, h, w].
        engine: the loaded model.
    """

    def __init__(self, latent: Node[FloatArray], engine: Engine) -> None:
        self._engine = engine
        # Let go of once features are made of it, which may not need it for long.
        self._latent: Node[FloatArray] | None = latent
        self._features: Node[Values] | None = None
        self._refined: dict[Enlargement, Refined] = {}
        self._planned: dict[Enlargement, ContextPlan] = {}
        # One for all, or those of a picture and of its preview would together be more than either was planned with.
        self._tiles: TileCache[tuple[Enlargement, Box], Values] = TileCache(0)
        self._room = sys.maxsize
        engine.lends_to(self)

    def let_go(self) -> None:
        """See `engine.Borrower`."""
        self._tiles.clear()
        self._refined.clear()
        self._latent = self._features = None

    def planned(self, enlargement: Enlargement) -> ContextPlan | None:
        """How that of an enlargement is made, by the first picture with it; None where nobody has said."""
        return self._planned.get(enlargement)

    def plan(self, plan: ContextPlan | None, enlargement: Enlargement, room: int = 0) -> None:
        """Say how one is made, before any part of it is wanted; what was said first stays.

        The first plan of all says how statistics are gathered, which all of them are made with.

        Args:
            plan: of a picture; None if prefill gives it whole.
            enlargement: the picture's.
            room: bytes that the picture leaves for those of other enlargements.
        """
        if self._latent is not None:
            self._features = self._features_of(self._latent, plan.gathering if plan else None)
            self._latent = None
        if plan is None or self._features is None:
            return
        self._planned.setdefault(enlargement, plan)
        if enlargement not in self._refined:
            tiles = self._planned[enlargement].tiles
            self._refined[enlargement] = Refined(self._features, tiles, enlargement, self._tiles, self._engine)
        caches = [each.cache for each in self._planned.values()]
        self._room = min(self._room, plan.cache + room)
        self._tiles.resize(max(*caches, min(sum(caches), self._room)))

    def of(self, enlargement: Enlargement) -> Node[Values]:
        """The context for an enlargement, which is planned; without a refine graph, the features."""
        node = self._refined.get(enlargement, self._features)
        assert node is not None, "a context is planned before it is used"
        return node

    def _features_of(self, latent: Node[FloatArray], gathering: Gathering | None) -> Node[Values]:
        if gathering is None:
            return WholeFeatures(latent, self._engine)
        return LocalFeatures(latent, Moments(latent, gathering, self._engine), self._engine)


def effort(enlargement: Enlargement, manifest: Manifest) -> float:
    """How much more there is to multiply for a context than for the smallest enlargement's, which is measured."""
    measured = manifest.contexts[0].work
    return enlargement.work / measured if enlargement.work and measured else 1.0
