"""Every error and warning the package raises on purpose."""


class InfGenError(Exception):
    """Base of all errors of this package; its text is one line a user can act on."""


class InputError(InfGenError):
    """Something that was asked for cannot be done; found before any work starts."""


class LatentError(InputError):
    """A latent, or the file it was to be read from, is not usable."""


class BundleError(InputError):
    """A model bundle is missing, damaged or of an unknown format."""


class BackendError(InputError):
    """A backend is unknown, not installed, or cannot run the bundle."""


class PlanError(InputError):
    """A size, region, tile or memory budget cannot be planned."""


class OutputError(InputError):
    """A picture cannot be written where, or as what, was asked."""


class DecodeError(InfGenError):
    """Decoding was started and failed."""


class WriteError(InfGenError):
    """Writing a picture was started and failed; no file is left behind."""


class Cancelled(InfGenError):
    """The caller cancelled the work; no file is left behind."""


class InfGenWarning(UserWarning):
    """Something looks wrong, and the work goes on.

    Attributes:
        cause: what is wrong, as a word that is the same in every warning of it; may be empty.
    """

    def __init__(self, text: str = "", cause: str = "") -> None:
        super().__init__(text)
        self.cause = cause


def one_line(error: Exception, longest: int | None = None) -> str:
    """What a foreign error says, on one line, which is cut if it is longer than so many characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if longest is None or len(text) <= longest else text[:longest] + "..."
