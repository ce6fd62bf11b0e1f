"""Gives warnings, by default once for each cause."""

import contextlib
import sys
import warnings
from collections.abc import Iterator

from infgen_rt.errors import InfGenWarning

_PACKAGES = (__name__.partition(".")[0], "infgen_runtimes")


class Notices:
    """Gives warnings, but only the first of each cause, so that a loop over latents does not repeat them.

    Attributes:
        repeat: whether to repeat warnings with the same cause, for a caller that needs them for each latent.
    """

    def __init__(self, repeat: bool = False) -> None:
        self.repeat = repeat
        self._told: set[str] = set()
        self._silent = False

    @contextlib.contextmanager
    def silence(self) -> Iterator[None]:
        """Give no warnings within a block."""
        before, self._silent = self._silent, True
        try:
            yield
        finally:
            self._silent = before

    def warn(self, cause: str, text: str) -> None:
        """Give a warning, which names the line that called this package.

        Args:
            cause: a word for the cause, which becomes `InfGenWarning.cause`.
            text: the message for people.
        """
        if not self._silent and (cause not in self._told or self.repeat):
            self._told.add(cause)
            warn(text, cause)


def warn(text: str, cause: str = "") -> None:
    """Give a warning, which names the line that called this package.

    Args:
        text: the message for people.
        cause: a word for the cause. It may be empty.
    """
    # If standard error is closed, Python fails with a ValueError when it prints the warning.
    with contextlib.suppress(ValueError):
        warnings.warn(InfGenWarning(text, cause), stacklevel=_outside())


def _outside() -> int:
    """The `stacklevel` of the nearest caller outside this package."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _PACKAGES:
        frame, level = frame.f_back, level + 1
    return level
