"""The last node of a picture, which cuts requests into tiles, keeps tiles, and lets several threads decode them."""

from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future
from contextvars import copy_context
from typing import Any

import numpy as np
import numpy.typing as npt

from infgen_rt.backend.engine import Engine
from infgen_rt.common.cancellation import Cancellation, current
from infgen_rt.common.pixels import Number, fetch
from infgen_rt.common.threads import Pool
from infgen_rt.geometry.pictures import PictureTiles
from infgen_rt.geometry.shapes import Box, Size
from infgen_rt.nodes.cache import TileCache
from infgen_rt.nodes.decoded import Decoded
from infgen_rt.nodes.node import FLOAT, Cost, Step
from infgen_rt.nodes.resampled import Resampled

# With fewer boxes, loading the graph for several threads takes longer than the threads save.
_FEW = 6
# The bytes per pixel of a finished tile: four copies (decoded, kept, returned, and being rounded) of three floats.
_HANDLING = 4 * 3 * FLOAT


class Tiles:
    """A picture's pixels as planes [3, h, w], as levels or floats. Several threads may use it.

    Attributes:
        cut: the picture's tiles.

    Args:
        source: the picture.
        cut: the picture's tiles.
        engine: the engine. When it is closed, the cache is cleared.
        cache: the maximum number of bytes of decoded tiles to keep.
        workers: the number of tiles that may be decoded at the same time.
    """

    def __init__(
        self, source: Decoded | Resampled, cut: PictureTiles, engine: Engine, cache: int, workers: int = 1
    ) -> None:
        self.cut = cut
        self._source, self._engine = source, engine
        self._workers = workers
        self._cache: TileCache[tuple[Box, Number], npt.NDArray[Any]] = TileCache(cache)
        engine.lends_to(self)

    @staticmethod
    def cost(cut: PictureTiles, at_once: int) -> Cost:
        """The cost of returning tiles, without the cache.

        Args:
            cut: the picture's tiles.
            at_once: the number of tiles that are decoded at the same time.
        """
        return Cost(reading=at_once * _HANDLING * cut.tile.area * cut.grid.patch**2)

    def let_go(self) -> None:
        """See `engine.Borrower`."""
        self._cache.clear()

    def keep(self, capacity: int) -> None:
        """Change the maximum number of bytes of decoded tiles to keep."""
        self._cache.resize(capacity)

    @property
    def size(self) -> Size:
        """Width and height in pixels."""
        return self._source.size

    def prepare(self) -> Iterator[Step]:
        """Prepare the picture; see `Node`."""
        return self._source.prepare()

    def read(self, box: Box, number: Number, shared: bool = False) -> npt.NDArray[Any]:
        """Planes [3, h, w] of a box inside the picture, in the given type of number.

        A box that fits in a tile is decoded by itself. A larger box is decoded tile by tile, without the parts of tiles
        that are outside the box. Decoded pixels are kept in the cache.

        Args:
            box: the box in pixels.
            number: the type of the numbers.
            shared: whether other boxes are read at the same time; see `read_each`.
        """
        tiles = list(self.cut.tiles(box))
        if len(tiles) > 1 and self.cut.fits_a_tile(box) and not self._cache.holds((tile, number) for tile in tiles):
            tiles = [box]
        pixels = np.empty((3, box.height, box.width), number)
        for tile in tiles:
            part = tile.intersect(box)
            # If the whole tile is in the cache, the part is cut from it.
            wanted = tile if self._cache.holds([(tile, number)]) else part
            made = self._cache.get((wanted, number))
            if made is None:
                made = fetch(self._source.read(wanted, shared), number)
                # The decoded pixels may be a view, which would keep the halo in memory.
                made = made if made.base is None else made.copy()
                self._cache.put((wanted, number), made, made.nbytes)
            if wanted == box:
                return made
            pixels[:, *part.relative_to(box).slices] = made[:, *part.relative_to(wanted).slices]
        return pixels

    def read_each(
        self, boxes: Sequence[Box], number: Number, waits: bool = True
    ) -> Generator[npt.NDArray[Any], None, None]:
        """Read several boxes. If there are several workers, they read boxes at the same time.

        Each worker reads up to one box ahead of the caller. To stop the workers, close the iterator.

        Args:
            boxes: the boxes in pixels.
            number: the type of the numbers.
            waits: whether closing the iterator waits for the boxes that are being read. Pass False in a generator that
                may be abandoned midway. The garbage collector may close such a generator at any point. At some points,
                for example while a thread is being started, waiting for the workers would never end.

        Yields:
            The planes [3, h, w] of each box, in the order of `boxes`.
        """
        # This check comes before any lock is taken; see `Engine.run`.
        self._engine.check_open()
        workers = min(self._workers, len(boxes))
        if workers < 2 or len(boxes) < _FEW:
            for box in boxes:
                yield self.read(box, number)
            return
        # The workers would otherwise wait for the first of them to load the graph.
        self._source.load_shared()
        # The preparation runs in this thread, because encoding the picture of an earlier stage may itself use workers.
        for _ in self.prepare():
            pass
        pool = Pool(workers, "infgen-tile")
        ahead: deque[tuple[Box, Future[npt.NDArray[Any]], Cancellation]] = deque()
        try:
            for box in boxes:
                reading = pool.submit(copy_context().run, self.read, box, number, shared=True)
                ahead.append((box, reading, current()))
                if len(ahead) > workers:
                    yield self._read_ahead(*ahead.popleft(), number)
            while ahead:
                yield self._read_ahead(*ahead.popleft(), number)
        finally:
            pool.shutdown(waits, cancel_futures=True)

    def _read_ahead(
        self, box: Box, reading: Future[npt.NDArray[Any]], work: Cancellation, number: Number
    ) -> npt.NDArray[Any]:
        """The planes of a box that a worker reads.

        If it was started for another caller, who was cancelled since then, the box is read again.

        Args:
            box: the box in pixels.
            reading: the worker's result.
            work: the work that it was started for.
            number: the type of the numbers.
        """
        error = reading.exception()  # what this thread itself gets while it waits, such as Ctrl-C, is raised here
        if error is None:
            return reading.result()
        if work is current():
            raise error
        current().check()
        return self.read(box, number, shared=True)
