"""The protocol of nodes, their costs, and work that threads share and do only once."""

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from threading import Lock
from typing import Any, Generic, Literal, Protocol, TypeVar, cast

from infgen_rt.backend.engine import Engine
from infgen_rt.geometry.shapes import Box, Size

FLOAT = 4
"""Bytes per number."""
Step = Literal["prefill", "decode", "reencode"]
"""A step of work: a stage's prefill or a part of it, a part of its picture, or a tile of the latent that is encoded
from the picture."""

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Node(Protocol[T_co]):
    """A source of values that can be read by box, in cells of a latent or pixels of a picture.

    To read a box, a node reads the values that it depends on from the node before. Several threads may read at the same
    time.
    """

    @property
    def size(self) -> Size:
        """The whole width and height, in cells or pixels."""
        ...

    def prepare(self) -> Iterator[Step]:
        """Do the remaining work that is needed before the first box can be read.

        It yields between two steps. No lock is held then, so another thread may continue the work. If a caller stops,
        the work done so far is kept.
        """
        ...

    def read(self, box: Box) -> T_co:
        """The values of a box inside the node. This first does the remaining preparation."""
        ...


class Derived:
    """The base of nodes that have the size and the preparation of the node before them.

    Args:
        source: the node before.
    """

    def __init__(self, source: Node[Any]) -> None:
        self._source = source

    @property
    def size(self) -> Size:
        """Width and height, in the units of the node before."""
        return self._source.size

    def prepare(self) -> Iterator[Step]:
        """Prepare the node before; see `Node`."""
        return self._source.prepare()


@dataclass(frozen=True)
class Cost:
    """The cost of a node. A plan adds up the costs of a chain before anything runs.

    Attributes:
        steps: the number of steps of its preparation.
        making: bytes during its preparation.
        held: bytes that it holds afterwards.
        alone: whether the nodes before it release their memory once it is prepared.
        reading: additional bytes while a box is read.
        arena: bytes of its graph's working memory, which is kept between runs.
        cells: the number of cells for which contexts are computed, weighted by the work of the enlargement.
        pixels: the number of pixels that are decoded.
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
    """A value that is made once, step by step, by the threads that request it.

    Args:
        make: makes the value. It is called again if a step has failed. When the value is complete, this function is
            released, with everything that it refers to.
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
        self._engine.check_open()
        return cast(T, self._made)

    def let_go(self) -> None:
        """See `engine.Borrower`."""
        self._make = self._work = self._made = None

    def _advance(self) -> Step | None:
        with self._lock:
            if self._make is None:
                return None
            self._work = self._work or self._make()
            try:
                return next(self._work)
            except StopIteration as end:
                self._made, self._make, self._work = end.value, None, None
                return None
            except BaseException:
                # A generator that has raised cannot continue, so the next thread starts again.
                self._work = None
                raise
