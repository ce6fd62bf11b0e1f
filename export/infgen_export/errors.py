"""What can go wrong on the way from a checkpoint to a bundle."""

from __future__ import annotations

from typing import TYPE_CHECKING

from infgen_rt.errors import InfGenError, InputError

if TYPE_CHECKING:
    from infgen_export.report import Report


LONGEST = 300
"""Characters that are told of what a converter or a runtime says: some print whole graphs."""


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
