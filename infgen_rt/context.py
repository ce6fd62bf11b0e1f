"""Contexts: what all tiles of a picture are decoded from, computed when and where it is needed."""

import sys
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from itertools import groupby
from math import prod
from threading import Lock
from typing import Any, Literal, cast

from .backends import Values
from .cache import TileCache
from .engine import Engine
from .geometry import Box
from .pixels import FloatArray
from .tiling import HaloTiling

Step = Literal["prefill", "decode", "reencode"]
"""What was just done: a stage's prefill, a part of its picture, or a tile of the latent that is encoded from it."""
Making = Generator[Step, None, FloatArray]
"""Yields after each step on the way to a latent, float32 [C, h, w], and returns it."""

_FLOAT = 4


def given(latent: FloatArray) -> Making:
    """A latent that is there."""
    yield from ()
    return latent


@dataclass(frozen=True)
class Refining:
    """How a context is made of a latent's features: in tiles.

    Attributes:
        tiles: of the latent.
        cache: bytes of tiles that are kept.
    """

    tiles: HaloTiling
    cache: int


class Context:
    """[1, D, h, w], of which parts are cut out as from an array; serves several threads, which share the work.

    What needs the whole latent is computed the first time that any of it is wanted, the rest tile by tile.

    Args:
        latent: starts the making of the latent; called again if a step failed. It is let go of when the features are
            there, and with it the stage that it may read from.
        engine: the loaded model.
    """

    def __init__(self, latent: Callable[[], Making], engine: Engine) -> None:
        self._latent: Callable[[], Making] | None = latent
        self._engine = engine
        self._work: Iterator[Step] | None = None
        self._features: Values | None = None
        self._lock = Lock()
        self._refining: Refining | None = None
        self._tiles: TileCache[Box, Values] = TileCache(0)
        self._refine_lock = Lock()

    @property
    def refining(self) -> Refining | None:
        """How it is made of the features, by the plan of the first picture; None if they are it."""
        return self._refining

    def plan(self, refining: Refining | None) -> None:
        """Say how it is made, before any part of it is wanted; what was said first stays."""
        if self._refining is None and refining is not None:
            self._tiles, self._refining = TileCache(refining.cache), refining

    def prepare(self) -> Iterator[Step]:
        """Compute the features, yielding after each step but the last, which is the prefill.

        Between two steps nothing is locked: another thread may go on with the work, and a caller that stops leaves it
        where it is.
        """
        while (step := self._advance()) is not None:
            yield step

    def __getitem__(self, index: tuple[slice, slice, slice, slice]) -> Values:
        """A part of it, where the backend computes; all channels of the cells that the last two slices tell."""
        for _ in self.prepare():
            pass
        assert self._features is not None
        if self._refining is None:
            part: Values = self._features[index]
            return part
        rows, columns = index[2:]
        box = Box(columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start)
        tiles = self._refining.tiles.tiling.touching(box)
        rows_of_parts = [
            [self._tile(tile)[:, :, *tile.intersect(box).relative_to(tile).slices] for tile in row]
            for _, row in groupby(tiles, key=lambda tile: tile.y)
        ]
        if len(rows_of_parts) == len(rows_of_parts[0]) == 1:
            return cast(Values, rows_of_parts[0][0])
        return cast(Values, _joined([_joined(parts, axis=3) for parts in rows_of_parts]))

    def _tile(self, tile: Box) -> Values:
        assert self._refining is not None and self._features is not None
        with self._refine_lock:
            context = self._tiles.get(tile)
            if context is None:
                window = self._refining.tiles.window_of(tile)
                whole = window == self._refining.tiles.tiling.box
                # Copies: a backend wants its inputs in one piece, and a view would keep its halo alive.
                features = self._features if whole else _joined([self._features[:, :, *window.slices]])
                context = self._engine.refine(features)
                if window != tile:
                    context = cast(Values, _joined([context[:, :, *tile.relative_to(window).slices]]))
                self._tiles.put(tile, context, _FLOAT * prod(context.shape))
            return context

    def _advance(self) -> Step | None:
        with self._lock:
            if self._latent is None:
                return None
            self._work = self._work or self._compute(self._latent)
            try:
                return next(self._work, None)
            except BaseException:
                # A generator that has raised is over: the next one who comes begins again.
                self._work = None
                raise

    def _compute(self, latent: Callable[[], Making]) -> Iterator[Step]:
        self._features = self._engine.prefill((yield from latent()))
        self._latent = None


def _joined(parts: list[Any], axis: int = 2) -> Any:
    """Parts of an array one after another, or a copy of a single one, by the library that they are of."""
    return sys.modules[type(parts[0]).__module__.partition(".")[0]].concatenate(parts, axis=axis)
