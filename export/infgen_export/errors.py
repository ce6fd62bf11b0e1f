"""What can go wrong on the way from a checkpoint to a bundle."""

from infgen_rt.errors import InfGenError, InputError


class CheckpointError(InputError):
    """A checkpoint is missing, unreadable or does not fit its config."""


class RequestError(InputError):
    """An export that was asked for is not possible; found before any work starts."""


class ExportError(InfGenError):
    """A graph could not be made, or did not pass its verification."""


def one_line(error: Exception) -> str:
    """What a foreign error says, on one line of bearable length."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:300] + "..."
