"""The progress of a piece of work, as callers see it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from infgen_rt.common.callers import ask
from infgen_rt.common.cancellation import Cancellation

ProgressStep = Literal["measure", "prefill", "decode", "reencode", "encode"]


@dataclass(frozen=True)
class Progress:
    """The progress of `open`, `save` or `read`. Print it for a description.

    Attributes:
        stage: the kind of the last step: `measure` for a way of running the model that was tried, `prefill`, `decode`,
            `encode` for encoding the file, or `reencode` for encoding a tile of the next stage's latent.
        done: the number of finished steps.
        total: the number of all steps. The last one of a `save` finishes when the file has appeared under its name.
    """

    stage: ProgressStep
    done: int
    total: int

    @property
    def fraction(self) -> float:
        """The share of finished steps, in [0, 1]."""
        return self.done / self.total

    def __str__(self) -> str:
        return f"{self.stage} {self.done}/{self.total} ({self.fraction:.0%})"


Tell = Callable[[Progress], object]
"""A caller's function that is told of each step."""


class Counter:
    """Counts and reports steps, and checks for cancellation after each.

    Args:
        total: the number of all steps.
        tell: called after each step. None for no reports.
        cancellation: checked after each step except the last, because a complete file cannot be cancelled.
    """

    def __init__(self, total: int, tell: Tell | None, cancellation: Cancellation) -> None:
        self._done, self._total = 0, total
        self._tell, self._cancellation = tell, cancellation

    def begin(self, kind: ProgressStep) -> None:
        """Report that no step is finished, for work whose first step takes long."""
        if self._tell is not None:
            ask(self._tell, Progress(kind, 0, self._total))

    def step(self, kind: ProgressStep, reached: int = 0) -> None:
        """Count one step, or more if `reached` is larger, because other threads may have done some of the steps."""
        self._done = max(self._done + 1, reached)
        if self._tell is not None:
            ask(self._tell, Progress(kind, self._done, self._total))
        if self._done < self._total:
            self._cancellation.check()
