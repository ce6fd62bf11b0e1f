"""A cache for tiles, which holds at most a given number of bytes."""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from threading import Lock
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class TileCache(Generic[K, V]):
    """Tiles by key. If there is too little room, the least recently used tile is dropped first.

    Several threads may use it.

    Args:
        capacity: the capacity in bytes.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = max(0, capacity)
        self._size = 0
        self._tiles: OrderedDict[K, tuple[V, int]] = OrderedDict()
        self._lock, self._making = Lock(), Lock()

    @property
    def size(self) -> int:
        """The bytes of all tiles in the cache."""
        return self._size

    def resize(self, capacity: int) -> None:
        """Change the capacity in bytes."""
        with self._lock:
            self._capacity = max(0, capacity)
            self._shrink()

    def holds(self, tiles: Iterable[K]) -> bool:
        """Whether all of the given tiles are in the cache."""
        with self._lock:
            return all(tile in self._tiles for tile in tiles)

    def get(self, tile: K) -> V | None:
        """Return a tile if it is in the cache, else None."""
        with self._lock:
            if tile not in self._tiles:
                return None
            self._tiles.move_to_end(tile)
            return self._tiles[tile][0]

    def get_or_make(self, tile: K, make: Callable[[], tuple[V, int]]) -> V:
        """Return a tile, and make it first if it is not in the cache. Only one thread makes tiles at a time.

        Args:
            tile: the tile's key.
            make: makes the tile, and returns it with its size in bytes.
        """
        with self._making:
            found = self.get(tile)
            if found is None:
                found, size = make()
                self.put(tile, found, size)
            return found

    def clear(self) -> None:
        """Drop all tiles."""
        with self._lock:
            self._tiles.clear()
            self._size = 0

    def put(self, tile: K, value: V, size: int) -> None:
        """Keep a tile with its size in bytes, unless it is larger than the cache."""
        with self._lock:
            if tile in self._tiles or size > self._capacity:
                return
            self._tiles[tile] = value, size
            self._size += size
            self._shrink()

    def _shrink(self) -> None:
        while self._size > self._capacity:
            self._size -= self._tiles.popitem(last=False)[1][1]
