"""Contexts: what prefill makes of a latent, computed a step at a time by whoever needs it."""

from collections.abc import Callable, Generator, Iterator
from threading import Lock
from typing import Literal

from .backends import Values
from .engine import Engine
from .pixels import FloatArray

Step = Literal["prefill", "decode", "reencode"]
"""What was just done: a stage's prefill, a part of its picture, or a tile of the latent that is encoded from it."""
Making = Generator[Step, None, FloatArray]
"""Yields after each step on the way to a latent, float32 [C, h, w], and returns it."""


def given(latent: FloatArray) -> Making:
    """A latent that is there."""
    yield from ()
    return latent


class Context:
    """Computed the first time that it is wanted; serves several threads, which share the work.

    Args:
        latent: starts the making of the latent; called again if a step failed. It is let go of when the context is
            there, and with it the stage that it may read from.
        engine: the loaded model.
    """

    def __init__(self, latent: Callable[[], Making], engine: Engine) -> None:
        self._latent: Callable[[], Making] | None = latent
        self._engine = engine
        self._work: Iterator[Step] | None = None
        self._features: Values | None = None
        self._lock = Lock()

    def prepare(self) -> Iterator[Step]:
        """Compute the context, yielding after each step but the last, which is its prefill.

        Between two steps nothing is locked: another thread may go on with the work, and a caller that stops leaves it
        where it is.
        """
        while (step := self._advance()) is not None:
            yield step

    def get(self) -> Values:
        """The context, float32 [1, D, h, w], where the backend computes."""
        for _ in self.prepare():
            pass
        assert self._features is not None
        return self._features

    def _advance(self) -> Step | None:
        with self._lock:
            if self._latent is None:
                return None
            self._work = self._work or self._compute(self._latent)
            try:
                return next(self._work, None)
            except BaseException:
                # A generator that has raised is over: the next one who comes begins again.
                self._work = None
                raise

    def _compute(self, latent: Callable[[], Making]) -> Iterator[Step]:
        self._features = self._engine.prefill((yield from latent()))
        self._latent = None
