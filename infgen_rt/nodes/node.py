"""What a node is, what it costs, and how threads share what has to be done once."""

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from threading import Lock
from typing import Generic, Literal, Protocol, TypeVar, cast

from infgen_rt.backend.engine import Engine
from infgen_rt.geometry.shapes import Box, Size

FLOAT = 4
"""Bytes of a number, wherever nodes count them."""
Step = Literal["prefill", "decode", "reencode"]
"""What was just done: a stage's prefill or a part of it, a part of its picture, or a tile of the latent that is encoded
from it."""

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Node(Protocol[T_co]):
    """Something that can be asked for a box: of a latent's cells, or of a picture's pixels.

    A node asks the node before it for what a box depends on. Threads may read it at the same time.
    """

    @property
    def size(self) -> Size:
        """Width and height of all there is, in cells or pixels."""
        ...

    def prepare(self) -> Iterator[Step]:
        """Do what is left to do before the first box can be read.

        Yields between two steps. Nothing is locked then: another thread may go on with the work, and a caller that
        stops leaves it where it is.
        """
        ...

    def read(self, box: Box) -> T_co:
        """What the node has of a box that lies inside it; prepares whatever is not prepared yet."""
        ...


@dataclass(frozen=True)
class Cost:
    """What a node takes, so that a plan can add up a chain before anything runs.

    Attributes:
        steps: of its preparation.
        making: bytes while it is prepared.
        held: bytes from then on.
        alone: whether what the nodes before it hold is let go of once it is prepared.
        reading: bytes more while a box is read.
        arena: bytes that its graph works in and that are kept from run to run.
        cells: cells that contexts are computed for, each in proportion to its enlargement's work.
        pixels: that are decoded.
        encoded: cells that are encoded.
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
    """Something that is made once, step by step, by whichever threads ask for it.

    Args:
        make: starts the making; called again if a step failed. It is let go of when the thing is there, and with it
            all that it was made of.
        engine: whose end is the thing's end too.
    """

    def __init__(self, make: Callable[[], Generator[Step, None, T]], engine: Engine) -> None:
        self._make: Callable[[], Generator[Step, None, T]] | None = make
        self._engine = engine
        self._work: Generator[Step, None, T] | None = None
        self._made: T | None = None
        self._lock = Lock()
        engine.lends_to(self)

    def steps(self) -> Iterator[Step]:
        """Do what is left to do; see `Node.prepare`."""
        while (step := self._advance()) is not None:
            yield step

    def get(self) -> T:
        """The thing, after what is left to do."""
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
                # A generator that has raised is over: the next one who comes begins again.
                self._work = None
                raise
