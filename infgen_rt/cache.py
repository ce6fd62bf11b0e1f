"""What was computed last of a grid, a tile at a time, up to a number of bytes."""

from collections import OrderedDict
from collections.abc import Iterable
from threading import Lock
from typing import Generic, TypeVar

from .geometry import Box

V = TypeVar("V")


class TileCache(Generic[V]):
    """Tiles by their boxes; the one that was used longest ago goes first. Serves several threads.

    Args:
        capacity: bytes.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._size = 0
        self._tiles: OrderedDict[Box, tuple[V, int]] = OrderedDict()
        self._lock = Lock()

    def holds(self, tiles: Iterable[Box]) -> bool:
        """Whether all of some tiles are here."""
        with self._lock:
            return all(tile in self._tiles for tile in tiles)

    def get(self, tile: Box) -> V | None:
        """A tile, if it is here."""
        with self._lock:
            if tile not in self._tiles:
                return None
            self._tiles.move_to_end(tile)
            return self._tiles[tile][0]

    def put(self, tile: Box, value: V, size: int) -> None:
        """Keep a tile of so many bytes, unless it is larger than the cache."""
        with self._lock:
            if tile in self._tiles or size > self._capacity:
                return
            self._tiles[tile] = value, size
            self._size += size
            while self._size > self._capacity:
                self._size -= self._tiles.popitem(last=False)[1][1]
