"""The node that computes a context tile by tile and keeps the tiles."""

from itertools import groupby
from math import prod
from typing import cast

from infgen_rt.backend.engine import Engine, Purpose
from infgen_rt.backend.protocol import Values
from infgen_rt.bundle.manifest import Enlargement
from infgen_rt.geometry.shapes import Box
from infgen_rt.geometry.tiling import Tiling
from infgen_rt.nodes.cache import TileCache
from infgen_rt.nodes.features import joined
from infgen_rt.nodes.node import FLOAT, Derived, Node

ContextCache = TileCache[tuple[Enlargement, Box], Values]
"""The tiles of a latent's contexts, by enlargement and box."""


class Kept(Derived):
    """The context [1, D, h, w] for one enlargement, from tiles that are kept.

    Args:
        context: the node that computes the context.
        tiling: the tiles, in cells.
        enlargement: the context's enlargement.
        kept: the cache for the tiles of this context and of the same latent's other contexts.
        purpose: what the graphs of the context run for.
        engine: the engine. When it is closed, nothing more can be read.
    """

    def __init__(
        self,
        context: Node[Values],
        tiling: Tiling,
        enlargement: Enlargement,
        kept: ContextCache,
        purpose: Purpose,
        engine: Engine,
    ) -> None:
        super().__init__(context)
        self._tiling, self._enlargement = tiling, enlargement
        self._kept, self._purpose, self._engine = kept, purpose, engine

    def read(self, box: Box) -> Values:
        """The context of some cells, on the backend's device."""
        for _ in self.prepare():
            pass
        self._engine.check_open()
        if not self._purpose.keeps:
            # Even if all tiles are kept, other graphs must not keep memory that is needed to decode or to write.
            self._engine.run_for(self._purpose)
        rows_of_parts = [
            [self._tile(tile)[:, :, *tile.intersect(box).relative_to(tile).slices] for tile in row]
            for _, row in groupby(self._tiling.touching(box), key=lambda tile: tile.y)
        ]
        if len(rows_of_parts) == len(rows_of_parts[0]) == 1:
            return cast(Values, rows_of_parts[0][0])
        return cast(Values, joined([joined(parts, axis=3) for parts in rows_of_parts]))

    def _tile(self, tile: Box) -> Values:
        def made() -> tuple[Values, int]:
            self._engine.run_for(self._purpose)
            context = self._source.read(tile)
            return context, FLOAT * prod(context.shape)

        return self._kept.get_or_make((self._enlargement, tile), made)
