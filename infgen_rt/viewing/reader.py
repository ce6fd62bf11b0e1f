"""Reads tiles in background threads and caches the most recent ones."""

import threading
from collections.abc import Sequence
from threading import ExceptHookArgs, Thread, current_thread
from types import TracebackType

from infgen_rt.backend.forks import Birthplace
from infgen_rt.common.arguments import FUNCTION, NUMBER, WHOLE, Kind
from infgen_rt.common.cancellation import Cancel
from infgen_rt.common.memory import MIB
from infgen_rt.common.shortages import MORE_MEMORY
from infgen_rt.common.threads import starts
from infgen_rt.errors import Cancelled, DecodeError, PlanError
from infgen_rt.geometry.levels import TILE, TILES, Level, Tile
from infgen_rt.geometry.shapes import Size
from infgen_rt.nodes.cache import TileCache
from infgen_rt.picture import Picture
from infgen_rt.viewing.frames import Frame, Order
from infgen_rt.viewing.pyramid import Pyramid
from infgen_rt.viewing.requests import Done, Request, Requests

CACHE = 256 * MIB
"""The default size of the tile cache in bytes."""

_MOST_WORKERS = 64
_SEVERAL = Kind("a sequence of Tiles", lambda value: isinstance(value, Sequence) and all(map(TILES.holds, value)))


class TileReader:
    """Reads the tiles of a picture's levels in background threads, so that a viewer's own thread need not wait.

    Several threads may use a reader. Close it after use, or use it as a context manager. Closing it does not close the
    decoder.

    Args:
        picture: the picture.
        tile: the side of a tile in pixels.
        cache: the size of the tile cache in bytes. The least recently used tile is removed first.
        order: the order of the channels in the frames.
        workers: the number of background threads. More than two gain nothing, because the model decodes one tile at a
            time and uses several threads for it.

    Attributes:
        pyramid: the levels of the picture.

    Raises:
        PlanError: the side of a tile, the number of threads or the order is not possible.
        DecodeError: the system allowed no thread.
    """

    def __init__(
        self, picture: Picture, *, tile: int = TILE, cache: int = CACHE, order: Order = "bgra", workers: int = 2
    ) -> None:
        WHOLE.check(cache=cache, workers=workers)
        Frame.empty(Size(1, 1), order)
        if not 1 <= workers <= _MOST_WORKERS:
            raise PlanError(f"{workers} threads to read tiles are not possible: expected 1 to {_MOST_WORKERS}")
        self.pyramid = Pyramid(picture, tile)
        self._order = order
        self._cache: TileCache[Tile, Frame] = TileCache(cache)
        self._requests = Requests()
        self._birthplace = Birthplace()
        threads = (Thread(target=self._work, name=f"infgen-view-{number}", daemon=True) for number in range(workers))
        self._threads = [thread for thread in threads if starts(thread)]
        if not self._threads:
            raise DecodeError(f"the system allowed no thread that reads tiles: {MORE_MEMORY}")

    @property
    def levels(self) -> tuple[Level, ...]:
        """The levels, from the whole picture in one tile up to the picture's own size."""
        return self.pyramid.levels

    @property
    def memory(self) -> int:
        """The number of bytes that the cached tiles take."""
        return self._cache.size

    @property
    def open_requests(self) -> int:
        """The number of requests that are waiting or in progress."""
        return len(self._requests)

    def cached(self, tile: Tile) -> Frame | None:
        """A tile from the cache, or None if it is not there. This never waits for a decode."""
        TILES.check(tile=tile)
        return self._cache.get(tile)

    def read(self, tile: Tile, *, cancel: Cancel | None = None) -> Frame:
        """Read a tile in the caller's thread, from the cache if it is there. The frame is shared, and read-only.

        Args:
            tile: the level, column and row of the tile.
            cancel: as for `Pyramid.read`.

        Raises:
            PlanError: the pyramid has no such tile.
            BackendError: a graph, which is loaded when it is first needed, cannot be loaded.
            DecodeError: decoding failed, or the decoder is closed.
            Cancelled: the work was cancelled with `cancel`.
        """
        TILES.check(tile=tile)
        frame = self._cache.get(tile)
        if frame is None:
            frame = self.pyramid.read(tile, self._order, cancel=cancel)
            frame.rows.flags.writeable = False  # later callers get the same frame
            self._cache.put(tile, frame, frame.rows.nbytes)
        return frame

    def request(self, tile: Tile, priority: float = 0.0, done: Done | None = None) -> Request:
        """Request a tile, which is then read in a background thread.

        Args:
            tile: the tile.
            priority: requests with a smaller number are taken first.
            done: as for `Request`.

        Returns:
            The request, which can be cancelled.

        Raises:
            PlanError: there is no such tile.
            DecodeError: this process was forked from the one that has the reader's threads.
        """
        NUMBER.check(priority=priority)
        FUNCTION.or_none(done=done)
        self._birthplace.check()
        self.pyramid.box(tile)
        request = Request(tile, priority, done)
        self._requests.add(request)
        return request

    def want(self, tiles: Sequence[Tile], done: Done | None = None) -> None:
        """Request the tiles that are needed now, in this order, and cancel all other requests.

        A viewer calls this whenever its visible part has changed. Tiles that are cached or already requested are not
        requested again. A tile that is already being decoded is finished if any tile of its level is needed.

        Args:
            tiles: the tiles, the most urgent one first.
            done: as for `Request`. It is used for the tiles that are newly requested.

        Raises:
            PlanError: there is no such tile.
            DecodeError: this process was forked from the one that has the reader's threads.
        """
        FUNCTION.or_none(done=done)
        _SEVERAL.check(tiles=tiles)
        self._birthplace.check()
        missing = (tile for tile in dict.fromkeys(tiles) if not self._cache.holds([tile]))
        order = {tile: float(number) for number, tile in enumerate(missing)}
        known = self._requests.keep_only(order, {tile.level for tile in tiles})
        for tile, priority in order.items():
            if tile not in known:
                self.request(tile, priority, done)

    def close(self, wait: bool = True) -> None:
        """Cancel all requests, stop the threads and empty the cache. In a forked process, do nothing.

        It may be called more than once, and by several threads at once. Later requests are cancelled, and later reads
        are not cached.

        Args:
            wait: whether to wait until the threads have ended. A thread that is decoding ends at its next check for
                cancellation. In a request's `done`, it never waits.
        """
        if not self._birthplace.here:  # the threads are in the parent, and may hold the locks for ever
            return
        self._requests.close()
        # A request's `done` may close the reader. It does not wait, because another `done` may be waiting for it.
        for thread in self._threads if wait and current_thread() not in self._threads else ():
            thread.join()
        self._cache.resize(0)

    def __enter__(self) -> "TileReader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _work(self) -> None:
        while (request := self._requests.take()) is not None:
            frame, error = None, None
            try:
                if request.cancelled.is_set():
                    raise Cancelled("cancelled")
                frame = self.read(request.tile, cancel=request.cancelled)
            # Any exception is passed on through the request, because the thread has to serve the next one.
            except BaseException as raised:
                error = raised
            self._requests.release(request)
            try:
                request.finish(frame, error)
            except BaseException as raised:  # by the request's `done`
                threading.excepthook(ExceptHookArgs((type(raised), raised, raised.__traceback__, current_thread())))
