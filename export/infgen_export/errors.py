"""What can go wrong on the way from a checkpoint to a bundle."""

from infgen_rt.errors import InfGenError, InputError


class CheckpointError(InputError):
    """A checkpoint is missing, unreadable or does not fit its config."""


class ExportError(InfGenError):
    """A graph could not be made, or did not pass its verification."""
