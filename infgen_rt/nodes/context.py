"""Contexts: what all tiles of a picture are decoded from, computed when and where it is needed."""

import sys
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from itertools import groupby
from math import prod
from threading import Lock
from typing import Any, Literal, cast

import numpy as np

from infgen_rt.backend.engine import Engine
from infgen_rt.backend.protocol import Values
from infgen_rt.bundle.manifest import Enlargement
from infgen_rt.common.pixels import FloatArray
from infgen_rt.geometry.shapes import Box
from infgen_rt.geometry.tiling import HaloTiling
from infgen_rt.nodes.cache import TileCache
from infgen_rt.nodes.moments import Gathering, gathered

Step = Literal["prefill", "decode", "reencode"]
"""What was just done: a stage's prefill or a part of it, a part of its picture, or a tile of the latent that is encoded
from it."""
Making = Generator[Step, None, FloatArray]
"""Yields after each step on the way to a latent, float32 [C, h, w], and returns it."""

_FLOAT = 4


def given(latent: FloatArray) -> Making:
    """A latent that is there."""
    yield from ()
    return latent


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


class Context:
    """A latent's contexts, one an enlargement, of which parts are cut out; threads share the work.

    What the whole latent has to be seen for is computed the first time that any of it is wanted, the rest tile by tile.

    Args:
        making: starts the making of the latent; called again if a step failed. It is let go of when the latent is
            there, and with it the stage that it may read from.
        engine: the loaded model.
    """

    def __init__(self, making: Callable[[], Making], engine: Engine) -> None:
        self._making: Callable[[], Making] | None = making
        self._engine = engine
        self._work: Iterator[Step] | None = None
        # What tiles are made of: prefill's features, or the latent and its statistics.
        self._features: Values | None = None
        self._latent: FloatArray | None = None
        self._moments: FloatArray | None = None
        self._lock = Lock()
        self._planned: dict[Enlargement, ContextPlan] = {}
        # One for all, or those of a picture and of its preview would together be more than either was planned with.
        self._tiles: TileCache[tuple[Enlargement, Box], Values] = TileCache(0)
        self._room = sys.maxsize
        self._tile_lock = Lock()
        engine.lends_to(self)

    def let_go(self) -> None:
        """See `engine.Borrower`."""
        self._tiles.clear()
        self._making = self._work = self._features = self._latent = self._moments = None

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
        if plan is None:
            return
        self._planned.setdefault(enlargement, plan)
        caches = [each.cache for each in self._planned.values()]
        self._room = min(self._room, plan.cache + room)
        self._tiles.resize(max(*caches, min(sum(caches), self._room)))

    def prepare(self) -> Iterator[Step]:
        """Do what is left to do before the first tile, yielding after each step but the last, which is a prefill.

        Between two steps nothing is locked: another thread may go on with the work, and a caller that stops leaves it
        where it is.
        """
        while (step := self._advance()) is not None:
            yield step

    def read(self, box: Box, enlargement: Enlargement) -> Values:
        """All channels [1, D, h, w] of some cells, where the backend computes."""
        for _ in self.prepare():
            pass
        self._engine.check_open()
        plan = self._planned.get(enlargement)
        if plan is None:
            assert self._features is not None
            part: Values = self._features[:, :, *box.slices]
            return part
        rows_of_parts = [
            [self._tile(tile, plan, enlargement)[:, :, *tile.intersect(box).relative_to(tile).slices] for tile in row]
            for _, row in groupby(plan.tiles.tiling.touching(box), key=lambda tile: tile.y)
        ]
        if len(rows_of_parts) == len(rows_of_parts[0]) == 1:
            return cast(Values, rows_of_parts[0][0])
        return cast(Values, _joined([_joined(parts, axis=3) for parts in rows_of_parts]))

    def _tile(self, tile: Box, plan: ContextPlan, enlargement: Enlargement) -> Values:
        with self._tile_lock:
            context = self._tiles.get((enlargement, tile))
            if context is None:
                window = plan.tiles.window_of(tile)
                features = self._features_of(window, plan.tiles.tiling.box)
                context = _cut(self._engine.refine(features, enlargement), tile, window)
                self._tiles.put((enlargement, tile), context, _FLOAT * prod(context.shape))
            return context

    def _features_of(self, window: Box, cells: Box) -> Values:
        """The features of some of the latent's cells."""
        if self._features is not None:
            return _cut(self._features, window, cells)
        assert self._latent is not None
        seen = window.grow(self._engine.manifest.halo.prefill, cells)
        latent = np.ascontiguousarray(self._latent[:, *seen.slices])
        return _cut(self._engine.prefill(latent, self._moments), window, seen)

    def _advance(self) -> Step | None:
        with self._lock:
            if self._making is None:
                return None
            self._work = self._work or self._compute(self._making)
            try:
                return next(self._work, None)
            except BaseException:
                # A generator that has raised is over: the next one who comes begins again.
                self._work = None
                raise

    def _compute(self, making: Callable[[], Making]) -> Iterator[Step]:
        latent = yield from making()
        gathering = next((plan.gathering for plan in self._planned.values()), None)
        if gathering is None:
            self._features = self._engine.prefill(latent)
        else:
            self._moments = yield from gathered(latent, gathering, self._engine)
            self._latent = latent
        self._making = None


def _cut(values: Values, box: Box, whole: Box) -> Values:
    """The cells of a box out of those of a larger one that holds it; a copy, unless it is all of them.

    A backend wants its inputs in one piece, and a view would keep what is around it alive.
    """
    return values if box == whole else cast(Values, _joined([values[:, :, *box.relative_to(whole).slices]]))


def _joined(parts: list[Any], axis: int = 2) -> Any:
    """Parts of an array one after another, or a copy of a single one, by the library that they are of."""
    library = sys.modules[type(parts[0]).__module__.partition(".")[0]]
    return getattr(library, "concatenate", np.concatenate)(parts, axis=axis)
