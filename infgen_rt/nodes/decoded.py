"""A stage: one latent at one size, of which any region can be read."""

from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from copy import copy
from typing import Any

import numpy as np
import numpy.typing as npt

from infgen_rt.backend.engine import Engine, is_finite
from infgen_rt.backend.inputs import tile_inputs
from infgen_rt.common.pixels import Number, fetch
from infgen_rt.errors import DecodeError
from infgen_rt.geometry.grid import Grid
from infgen_rt.geometry.shapes import Box, Size
from infgen_rt.nodes.cache import TileCache
from infgen_rt.nodes.context import Context, Step
from infgen_rt.nodes.resample import resample, source_of
from infgen_rt.plan.plan import LEAST_SCALE, StagePlan


class Stage:
    """Decodes what is asked for and keeps whole tiles for the next time; serves several threads.

    Args:
        context: of the latent; made when the first pixel is wanted, so that it may itself pull pixels from a stage
            before this one. Stages of one latent may share it.
        plan: geometry and tiles.
        engine: the loaded model.
        cache: bytes of decoded tiles to keep.
        workers: tiles that may be decoded at the same time.
    """

    def __init__(self, context: Context, plan: StagePlan, engine: Engine, cache: int, workers: int = 1) -> None:
        self._workers = workers
        self._context = context
        self._plan = plan
        self._engine = engine
        self._cache: TileCache[tuple[Box, Number], npt.NDArray[Any]] = TileCache(cache)
        engine.lends_to(self)

    def let_go(self) -> None:
        """See `engine.Borrower`."""
        self._cache.clear()

    @property
    def grid(self) -> Grid:
        """The latent's cells, and the picture's size and tokens."""
        return self._plan.grid

    @property
    def size(self) -> Size:
        """Width and height in pixels."""
        return self.grid.picture

    @property
    def least_scale(self) -> float:
        """The smallest scale that the model was trained for."""
        return max(LEAST_SCALE, self._engine.manifest.scale_range[0])

    def prepare(self) -> Iterator[Step]:
        """Do what is left to do before the first pixel; see `Context.prepare`."""
        return self._context.prepare()

    def resized(self, size: Size) -> "Stage | None":
        """A stage for the same latent at another size, or None if the model was not trained for one so small.

        It shares the context and keeps no tiles.
        """
        plan = self._plan.resized(size)
        if min(plan.grid.scale) < self.least_scale:
            return None
        stage = copy(self)
        stage._plan, stage._cache = plan, TileCache(0)
        return stage

    def read(self, box: Box, number: Number, shared: bool = False) -> npt.NDArray[Any]:
        """Planes [3, h, w] of a box inside the picture, in numbers of a kind.

        A box that fits in a tile is decoded by itself; a larger one tile by tile, and of a tile no more than is seen.
        What was decoded is kept.

        Args:
            box: in pixels.
            number: kind of the numbers.
            shared: whether others are read at the same time; see `read_each`.
        """
        tiles = list(self._plan.tiles(box))
        if len(tiles) > 1 and self._plan.fits_a_tile(box) and not self._cache.holds((tile, number) for tile in tiles):
            return self._decode_once(box, number, shared)
        pixels = np.empty((3, box.height, box.width), number)
        for tile in tiles:
            part = tile.intersect(box)
            pixels[:, *part.relative_to(box).slices] = self._read_part(part, tile, number, shared)
        return pixels

    def read_each(
        self, boxes: Sequence[Box], number: Number, waits: bool = True
    ) -> Generator[npt.NDArray[Any], None, None]:
        """What `read` gives for each box, in order; where the plan has several workers, so many are read at a time.

        They read ahead of who takes the results, by one box each. To stop them, close the iterator.

        Args:
            boxes: in pixels.
            number: kind of the numbers.
            waits: whether closing it waits for what is being read. Not where it is held in a generator that may be left
                in the middle: the garbage collector closes that one anywhere, in the middle of a thread's start
                perhaps, which holds the lock that joining the workers would take.
        """
        workers = min(self._workers, len(boxes))
        if workers < 2:
            yield from (self.read(box, number) for box in boxes)
            return
        # Not when the picture is planned: who reads one tile does without.
        self._engine.load_shared(self._plan.enlargement)
        # In this thread: the making of a latent may itself have workers.
        for _ in self.prepare():
            pass
        pool = ThreadPoolExecutor(workers, "infgen-tile")
        ahead: deque[Future[npt.NDArray[Any]]] = deque()
        try:
            for box in boxes:
                ahead.append(pool.submit(copy_context().run, self.read, box, number, shared=True))
                if len(ahead) > workers:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            pool.shutdown(waits, cancel_futures=True)

    def parts(self, box: Box) -> Iterator[Box]:
        """What a box is decoded in; see `StagePlan.parts`."""
        return self._plan.parts(box)

    def _read_part(self, part: Box, tile: Box, number: Number, shared: bool) -> npt.NDArray[Any]:
        if self._cache.holds([(tile, number)]):
            return self._decode_once(tile, number, shared)[:, *part.relative_to(tile).slices]
        return self._decode_once(part, number, shared)

    def _decode_once(self, box: Box, number: Number, shared: bool) -> npt.NDArray[Any]:
        pixels = self._cache.get((box, number))
        if pixels is None:
            pixels = self._decode(box, number, shared)
            # What was decoded may be a view that would keep its halo alive.
            kept = pixels if pixels.base is None else pixels.copy()
            self._cache.put((box, number), kept, kept.nbytes)
        return pixels

    def _decode(self, box: Box, number: Number, shared: bool) -> npt.NDArray[Any]:
        """The pixels of a box, decoded at their size, or resampled from what is."""
        grid, decoded = self.grid, self._plan.decoded
        if decoded == grid:
            return self._decode_in(grid, box, number, shared)
        part = source_of(box, grid.picture, decoded.picture)
        pixels = self._decode_in(decoded, part, np.float32, shared)
        return fetch(resample(pixels, part, box, grid.picture, decoded.picture), number)

    def _decode_in(self, grid: Grid, box: Box, number: Number, shared: bool) -> npt.NDArray[Any]:
        """Decode the tokens under a box with the halo that makes their pixels exact, and drop the halo."""
        halo = self._engine.manifest.halo
        tokens = grid.tokens_of(box).grow(halo.tokens, grid.tokens.box)
        cells, enlargement = grid.context_of(tokens, halo.cells), self._plan.enlargement
        inputs = tile_inputs(grid, self._context.read(cells, enlargement), cells, tokens)
        try:
            image = self._engine.decode(inputs, enlargement, shared)
        except DecodeError as error:
            raise DecodeError(f"the tile {box} could not be decoded: {error}") from error
        pixels = image[:, *box.relative_to(grid.pixels_of(tokens)).slices]
        if not is_finite(pixels):
            raise DecodeError(f"the model gave NaN or infinite pixels in {box}: is the latent usable?")
        return fetch(pixels, number)
