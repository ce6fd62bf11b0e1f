"""All errors and warnings that the package raises intentionally."""


class InfGenError(Exception):
    """Base class of this package's errors. The message is one line that a user can act on.

    Args:
        text: the message. Line breaks in it, for example those of another library's error, become spaces.
    """

    def __init__(self, text: str = "") -> None:
        super().__init__(joined_lines(str(text)))


class InputError(InfGenError):
    """A request cannot be carried out. Raised before any work starts."""


class LatentError(InputError):
    """A latent or its file is not usable."""


class BundleError(InputError):
    """A model bundle is missing, damaged or of an unknown format."""


class BackendError(InputError):
    """A backend is unknown, not installed, or cannot run the bundle."""


class PlanError(InputError):
    """A size, region, tile or memory budget cannot be planned."""


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
        cause: a word for the cause, which is the same in every warning with this cause. It may be empty.
    """

    def __init__(self, text: str = "", cause: str = "") -> None:
        super().__init__(joined_lines(text))
        self.cause = cause


def joined_lines(text: str) -> str:
    """A text on one line. Spaces inside its lines stay, because a file's name may have several."""
    return " ".join(line.strip() for line in text.splitlines() if line.strip())


def reason(error: OSError) -> str:
    """The system's reason for an error, without the path. An error of a library may have only a text."""
    return " ".join((error.strerror or str(error)).split()) or type(error).__name__


def one_line(error: Exception, longest: int | None = None) -> str:
    """The message of another library's error on one line, cut to at most `longest` characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if longest is None or len(text) <= longest else text[:longest] + "..."
