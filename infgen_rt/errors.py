"""The errors and warnings of the package."""

from typing import TypeVar

E = TypeVar("E", bound=BaseException)


class InfGenError(Exception):
    """The base class of this package's errors. The message is one line that a user can act on.

    Args:
        text: the message. Line breaks become spaces, because the message may quote another library's error.
    """

    def __init__(self, text: str = "") -> None:
        super().__init__(joined_lines(str(text)))


class InputError(InfGenError):
    """A request cannot be carried out. In most cases, this is raised before any work starts."""


class LatentError(InputError):
    """A latent or its file is not usable."""


class BundleError(InputError):
    """A model bundle is missing or damaged, has an unknown format, or has no model for the latent space."""


class BackendError(InputError):
    """A backend is unknown, not installed, or cannot run the bundle."""


class PlanError(InputError):
    """A size, region, tile or memory budget is not possible."""


class OutputError(InputError):
    """A picture cannot be written to the requested place or in the requested format."""


class DecodeError(InfGenError):
    """Decoding failed after it had started."""


class WriteError(InfGenError):
    """Writing a picture failed after it had started. No file is left behind."""


class Cancelled(InfGenError):
    """The caller cancelled the work. No file is left behind."""


class InfGenWarning(UserWarning):
    """Something looks wrong, but the work continues.

    Attributes:
        cause: one or more words that name the cause, for programs. It is the same in every warning with this cause, and
            may be empty.
    """

    def __init__(self, text: str = "", cause: str = "") -> None:
        super().__init__(joined_lines(text))
        self.cause = cause


def joined_lines(text: str) -> str:
    """Join the lines of a text with spaces. Several spaces inside a line stay, because a file name may have them."""
    return " ".join(line.strip() for line in text.splitlines() if line.strip())


def reason(error: OSError) -> str:
    """The system's reason for an error, without the path. If the error has none, this is its text on one line."""
    return " ".join((error.strerror or str(error)).split()) or type(error).__name__


def without_frames(error: E) -> E:
    """Drop the tracebacks of an error and of its causes, which keep everything that the code was working on."""
    each: BaseException | None = error
    while each is not None:
        each.__traceback__ = None
        each = each.__cause__ or each.__context__
    return error


def one_line(error: BaseException, longest: int | None = None) -> str:
    """The message of another library's error on one line, cut to at most `longest` characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if longest is None or len(text) <= longest else text[:longest] + "..."
