"""Requests for tiles, which wait in the order of their priorities and can be dropped one by one."""

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
        cancelled: an event that is set when the tile is no longer needed.

    Args:
        tile: the tile.
        priority: the priority.
        done: called with this request in a thread of the reader, when the tile is there or has failed. It is not called
            for a request that was cancelled. It must not raise.
    """

    def __init__(self, tile: Tile, priority: float, done: Done | None) -> None:
        self.tile, self.priority = tile, priority
        self.cancelled = Event()
        self._done = done
        self._result: Future[Frame] = Future()

    def cancel(self) -> None:
        """Drop the request. If the tile is being decoded, that is stopped."""
        self.cancelled.set()

    def result(self, timeout: float | None = None) -> Frame:
        """Wait for the tile.

        Args:
            timeout: the seconds to wait. None for as long as it takes.

        Raises:
            DecodeError: decoding failed.
            Cancelled: the request was cancelled, or the reader was closed.
            TimeoutError: the tile is not there yet.
        """
        return self._result.result(timeout)

    @property
    def error(self) -> BaseException | None:
        """The reason why there is no tile. None if there is one, or if it is not known yet."""
        return self._result.exception() if self._result.done() else None

    def finish(self, frame: Frame | None, error: BaseException | None) -> None:
        """Set the result. Called once, by the reader."""
        if frame is not None:
            self._result.set_result(frame)
        else:
            self._result.set_exception(error or Cancelled("cancelled"))
        if self._done is not None and not isinstance(error, Cancelled):
            self._done(self)


class Requests:
    """The requests that wait. Several threads may use it."""

    def __init__(self) -> None:
        self._waiting: list[Request] = []
        self._running: list[Request] = []
        self._changed = Condition()
        self._closed = False

    def __len__(self) -> int:
        """The number of requests that wait or are being worked on, without those that were cancelled."""
        with self._changed:
            return sum(not each.cancelled.is_set() for each in (*self._waiting, *self._running))

    def add(self, request: Request) -> None:
        """Let a request wait for a thread. If the queue is closed, it is cancelled."""
        with self._changed:
            if self._closed:
                request.cancel()
            else:
                self._waiting.append(request)
                self._changed.notify()
                return
        request.finish(None, Cancelled("cancelled"))

    def take(self) -> Request | None:
        """Wait for a request and return the first one by priority. None when the queue is closed.

        A tile that is being made is not made twice: a second request for it waits, and then finds it in the cache.
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
        """Note that a request which was taken is finished."""
        with self._changed:
            self._running.remove(request)
            self._changed.notify_all()

    def keep_only(self, tiles: dict[Tile, float], levels: set[int]) -> set[Tile]:
        """Cancel all requests but those for some tiles, which get new priorities.

        A tile that is being made is finished if its level is still needed. Its first part may be seconds of work on the
        latent that the other tiles need too, and that would never end while the picture is moved.

        Args:
            tiles: the priority of each tile.
            levels: the levels that are needed.

        Returns:
            The tiles of these that are requested already.
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
        """Cancel all requests and let all threads go."""
        with self._changed:
            self._closed = True
            for each in (*self._waiting, *self._running):
                each.cancel()
            self._drop()
            self._changed.notify_all()

    def _drop(self) -> None:
        """Forget the waiting requests that were cancelled."""
        for each in [each for each in self._waiting if each.cancelled.is_set()]:
            self._waiting.remove(each)
            each.finish(None, Cancelled("cancelled"))
