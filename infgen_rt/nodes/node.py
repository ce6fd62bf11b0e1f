"""The protocol of nodes, the cost of a node, and values that several threads make together, but only once."""

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from threading import Lock
from typing import Any, Generic, Literal, Protocol, TypeVar, cast

from infgen_rt.backend.engine import Engine
from infgen_rt.geometry.shapes import Box, Size

FLOAT = 4
"""The bytes of a float32 number."""
Step = Literal["prefill", "decode", "reencode"]
"""The kind of a step of work: `prefill` for a stage's prefill or a part of it, `decode` for a part of its picture, and
`reencode` for a tile of the next stage's latent."""

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Node(Protocol[T_co]):
    """A source of values that are read in boxes, either of a latent's cells or of a picture's pixels.

    To read a box, a node reads the values that the box depends on from the node before it. Several threads may read at
    the same time.
    """

    @property
    def size(self) -> Size:
        """The whole width and height, in cells or pixels."""
        ...

    def prepare(self) -> Iterator[Step]:
        """Do the remaining work that is needed before the first box can be read.

        If the caller stops iterating, the finished steps are kept, and another thread may continue with the next one.
        No lock is held between two steps.

        Yields:
            The kind of each finished step.
        """
        ...

    def read(self, box: Box) -> T_co:
        """The values of a box. Remaining preparation is done first.

        Args:
            box: a box inside the node's size.

        Raises:
            DecodeError: a graph failed, or the engine is closed.
            Cancelled: the current work was cancelled.
        """
        ...


class Derived:
    """The base class of nodes that have the same size and the same preparation as the node before them.

    Args:
        source: the node before it.
    """

    def __init__(self, source: Node[Any]) -> None:
        self._source = source

    @property
    def size(self) -> Size:
        """Width and height, in the unit of the node before it."""
        return self._source.size

    def prepare(self) -> Iterator[Step]:
        """Prepare the node before it; see `Node`."""
        return self._source.prepare()


@dataclass(frozen=True)
class Cost:
    """The cost of a node. A plan adds up the costs of a chain before anything runs.

    Attributes:
        steps: the number of steps of its preparation.
        making: the bytes that it needs during its preparation.
        held: the bytes that it holds after its preparation.
        alone: whether the nodes before it release their memory when it is prepared.
        reading: the additional bytes while a box is read.
        arena: the bytes of its graph's working memory, which is kept between runs.
        cells: the number of cells for which contexts are computed, weighted by the work of the enlargement.
        pixels: the number of pixels that are decoded, weighted by the work of the graph that decodes them.
        encoded: the number of cells that are encoded.
    """

    steps: int = 0
    making: int = 0
    held: int = 0
    alone: bool = False
    reading: int = 0
    arena: int = 0
    cells: float = 0.0
    pixels: int = 0
    encoded: int = 0


class Once(Generic[T]):
    """A value that is made only once, step by step. Every thread that needs the value does steps until it is complete.

    Args:
        make: a generator function that makes and returns the value, and yields after each step. It is called again if
            a step has failed. When the value is complete, the function is released, with everything that it refers to.
        engine: the engine. When it is closed, the value is released.
    """

    def __init__(self, make: Callable[[], Generator[Step, None, T]], engine: Engine) -> None:
        self._make: Callable[[], Generator[Step, None, T]] | None = make
        self._engine = engine
        self._work: Generator[Step, None, T] | None = None
        self._made: T | None = None
        self._lock = Lock()
        engine.lends_to(self)

    def steps(self) -> Iterator[Step]:
        """Do the remaining steps; see `Node.prepare`."""
        while (step := self._advance()) is not None:
            yield step

    def get(self) -> T:
        """Do the remaining steps and return the value."""
        for _ in self.steps():
            pass
        made = self._made
        self._engine.check_open()  # if the decoder was closed before, there is no value
        return cast(T, made)

    def let_go(self) -> None:
        """See `engine.Borrower`. It waits for no lock, because a thread that holds it may be waiting for the engine."""
        self._make = self._work = self._made = None

    def _advance(self) -> Step | None:
        with self._lock:
            make = self._make  # `let_go` may remove it at any time
            if make is None:
                return None
            self._work = work = self._work or make()
            try:
                return next(work)
            except StopIteration as end:
                self._made, self._make, self._work = end.value, None, None
                return None
            except BaseException:
                # A generator that has raised an error cannot continue, so the next thread starts from the beginning.
                self._work = None
                raise


class Made(Generic[T]):
    """The base class of nodes that make a value for the whole latent once, and read their boxes from it.

    Args:
        size: width and height in cells.
        make: as for `Once`.
        engine: as for `Once`.
    """

    def __init__(self, size: Size, make: Callable[[], Generator[Step, None, T]], engine: Engine) -> None:
        self._size, self._made = size, Once(make, engine)

    @property
    def size(self) -> Size:
        """Width and height in cells."""
        return self._size

    def prepare(self) -> Iterator[Step]:
        """Do the remaining steps of making the value; see `Node`."""
        return self._made.steps()
