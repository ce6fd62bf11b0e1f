"""Warnings, each cause told once."""

import contextlib
import sys
import warnings

from infgen_rt.errors import InfGenWarning

_PACKAGES = (__name__.partition(".")[0], "infgen_runtimes")


class Notices:
    """Gives warnings; the first of each cause alone, so that a loop over latents is not a loop of warnings.

    Attributes:
        repeat: give those of a known cause too, for a caller that wants them of each latent.
    """

    def __init__(self, repeat: bool = False) -> None:
        self.repeat = repeat
        self._told: set[str] = set()

    def warn(self, cause: str, text: str) -> None:
        """Warn, as if from the line that called this package.

        Args:
            cause: what is wrong, as a word; `InfGenWarning.cause` tells it.
            text: for people.
        """
        if cause not in self._told or self.repeat:
            self._told.add(cause)
            warn(text, cause)


def warn(text: str, cause: str = "") -> None:
    """Warn, as if from the line that called this package.

    Args:
        text: for people.
        cause: what is wrong, as a word; may be empty.
    """
    # Python's own printing of warnings fails with a ValueError where standard error is closed.
    with contextlib.suppress(ValueError):
        warnings.warn(InfGenWarning(text, cause), stacklevel=_outside())


def _outside() -> int:
    """The `stacklevel` of the nearest caller outside this package."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _PACKAGES:
        frame, level = frame.f_back, level + 1
    return level
