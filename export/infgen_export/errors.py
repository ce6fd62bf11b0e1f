"""The errors of an export."""

from __future__ import annotations

from typing import TYPE_CHECKING

from infgen_rt.errors import InfGenError, InputError

if TYPE_CHECKING:
    from infgen_export.report import Report


LONGEST = 300
"""Maximum number of characters that are quoted from a converter's or runtime's message. Some print whole graphs."""


class RequestError(InputError):
    """The requested export is not possible. This is raised before any graph is converted."""


class ExportError(InfGenError):
    """A graph could not be made, or did not pass its verification.

    Attributes:
        report: The results of the graphs before the error, if there are any.
    """

    def __init__(self, text: str, report: Report | None = None) -> None:
        super().__init__(text)
        self.report = report
