"""Reports the progress of a piece of work to the caller."""

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
        stage: the kind of the last step. `measure` is a way of running the model that was measured. `prefill` prepares
            the latent, `decode` decodes a part of a picture, `reencode` encodes a tile of the next stage's latent, and
            `encode` writes to the file.
        done: the number of finished steps.
        total: the number of all steps. The last step of `save` is finished when the file has appeared under its name.

    Examples:
        >>> import infgen_rt
        >>> print(infgen_rt.Progress("decode", 3, 4))
        decode 3/4 (75%)
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
"""A caller's function that is called after each step."""


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
        """Report that no step is finished yet, for work whose first step takes long."""
        if self._tell is not None:
            ask(self._tell, Progress(kind, 0, self._total))

    def step(self, kind: ProgressStep, reached: int = 0) -> None:
        """Count and report a step, and check for cancellation.

        Args:
            kind: the kind of the step.
            reached: the number of finished steps, if it is known. Other threads may have done some of them.

        Raises:
            Cancelled: the work was cancelled.
        """
        self._done = max(self._done + 1, reached)
        if self._tell is not None:
            ask(self._tell, Progress(kind, self._done, self._total))
        if self._done < self._total:
            self._cancellation.check()
