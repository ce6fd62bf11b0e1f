"""A queue of requests for tiles. Requests are taken in the order of their priorities, and each can be cancelled."""

from collections.abc import Callable
from concurrent.futures import Future
from threading import Condition, Event

from infgen_rt.errors import Cancelled
from infgen_rt.geometry.levels import Tile
from infgen_rt.viewing.frames import Frame

Done = Callable[["Request"], object]


class Request:
    """A request for one tile, from `TileReader.request`.

    Attributes:
        tile: the tile.
        priority: requests with a smaller number are taken first. It may be changed while the request waits.
        cancelled: an event that is set when the request is cancelled.

    Args:
        tile: the tile.
        priority: the priority.
        done: called with this request in a thread of the reader, after the tile was read or reading it failed. It is
            not called for a request that was cancelled. What it raises is passed to `threading.excepthook`.
    """

    def __init__(self, tile: Tile, priority: float, done: Done | None) -> None:
        self.tile, self.priority = tile, priority
        self.cancelled = Event()
        self._done = done
        self._result: Future[Frame] = Future()

    def cancel(self) -> None:
        """Cancel the request. If its tile is being decoded, decoding stops."""
        self.cancelled.set()

    def result(self, timeout: float | None = None) -> Frame:
        """Wait for the tile. The frame is shared with the reader's cache, and read-only.

        Args:
            timeout: the maximum time to wait, in seconds. None to wait without a limit.

        Raises:
            BackendError: a graph, which is loaded when it is first needed, cannot be loaded.
            DecodeError: decoding failed, or the decoder is closed.
            Cancelled: the request was cancelled, or the reader was closed.
            TimeoutError: the tile was not ready in time.
        """
        return self._result.result(timeout)

    @property
    def error(self) -> BaseException | None:
        """The error with which the request failed. None if it succeeded or is not finished."""
        return self._result.exception() if self._result.done() else None

    def finish(self, frame: Frame | None, error: BaseException | None) -> None:
        """Set the frame or the error, and call `done`. The reader and its queue call this once per request."""
        if frame is not None:
            self._result.set_result(frame)
        else:
            self._result.set_exception(error or Cancelled("cancelled"))
        if self._done is not None and not (self.cancelled.is_set() or isinstance(error, Cancelled)):
            self._done(self)


class Requests:
    """The queue of requests. Several threads may use it."""

    def __init__(self) -> None:
        self._waiting: list[Request] = []
        self._running: list[Request] = []
        self._changed = Condition()
        self._closed = False

    def __len__(self) -> int:
        """The number of requests that are waiting or in progress, not counting those that were cancelled."""
        with self._changed:
            return sum(not each.cancelled.is_set() for each in (*self._waiting, *self._running))

    def add(self, request: Request) -> None:
        """Add a request to the queue. If the queue is closed, the request is cancelled."""
        with self._changed:
            if self._closed:
                request.cancel()
            else:
                self._waiting.append(request)
                self._changed.notify()
                return
        request.finish(None, Cancelled("cancelled"))

    def take(self) -> Request | None:
        """Wait for a request, and return the one with the smallest priority number. None when the queue is closed.

        A tile is never decoded by two threads at once. A second request for it waits, and then finds it in the cache.
        """
        with self._changed:
            while not self._closed:
                self._drop()
                busy = {each.tile for each in self._running}
                free = [each for each in self._waiting if each.tile not in busy]
                if free:
                    first = min(free, key=lambda each: each.priority)
                    self._waiting.remove(first)
                    self._running.append(first)
                    return first
                self._changed.wait()
            return None

    def release(self, request: Request) -> None:
        """Remove a request that was taken from those in progress. Call it after the tile was read or has failed."""
        with self._changed:
            self._running.remove(request)
            self._changed.notify_all()

    def keep_only(self, tiles: dict[Tile, float], levels: set[int]) -> set[Tile]:
        """Cancel all requests except those for the given tiles, which get new priorities.

        A tile that is being decoded is finished if its level is still needed. Decoding may begin with seconds of work
        on the latent, whose result the other tiles of the level need too. If this work were cancelled each time, it
        would never finish while the user moves the picture.

        Args:
            tiles: the new priority of each tile to keep.
            levels: the numbers of the levels that are needed.

        Returns:
            The tiles that still have a request, including those that are only being finished.
        """
        with self._changed:
            for each in self._waiting:
                if each.tile not in tiles:
                    each.cancel()
            for each in self._running:
                if each.tile.level not in levels:
                    each.cancel()
            kept = [each for each in (*self._waiting, *self._running) if not each.cancelled.is_set()]
            for each in kept:
                each.priority = tiles.get(each.tile, each.priority)
            self._changed.notify_all()
            return {each.tile for each in kept}

    def close(self) -> None:
        """Cancel all requests, and make `take` return None in all threads."""
        with self._changed:
            self._closed = True
            for each in (*self._waiting, *self._running):
                each.cancel()
            self._drop()
            self._changed.notify_all()

    def _drop(self) -> None:
        """Remove the waiting requests that were cancelled, and finish them. The lock must be held."""
        for each in [each for each in self._waiting if each.cancelled.is_set()]:
            self._waiting.remove(each)
            each.finish(None, Cancelled("cancelled"))
