"""What can go wrong on the way from a checkpoint to a bundle."""

from __future__ import annotations

from typing import TYPE_CHECKING

from infgen_rt.errors import InfGenError, InputError

if TYPE_CHECKING:
    from infgen_export.report import Report


class RequestError(InputError):
    """An export that was asked for is not possible; found before any work starts."""


class ExportError(InfGenError):
    """A graph could not be made, or did not pass its verification.

    Attributes:
        report: What was found out until then, if anything was.
    """

    def __init__(self, text: str, report: Report | None = None) -> None:
        super().__init__(text)
        self.report = report


def one_line(error: Exception) -> str:
    """What a foreign error says, on one line of bearable length."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:300] + "..."
