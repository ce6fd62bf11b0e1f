"""The names of a batch's pictures, of which no two may be the same."""

import os
from pathlib import Path

from infgen_rt.cli.latents import STREAM
from infgen_rt.errors import OutputError
from infgen_rt.writers.names import identity


class Names:
    """The files that the latents of a batch become.

    Args:
        latents: the latents, so that no picture replaces one.
    """

    def __init__(self, latents: tuple[Path, ...] = ()) -> None:
        self._takers: dict[str, Path] = {}
        self._latents = {found for latent in latents if latent != STREAM and (found := _identity(latent)) is not None}

    def take(self, output: Path, latent: Path) -> None:
        """Take the name of a picture for a latent.

        Raises:
            OutputError: another latent's picture has this name.
        """
        taker = self._takers.setdefault(identity(output), latent)
        if taker != latent:
            raise OutputError(f"{taker} and {latent} would both be {output}: decode them into folders of their own")

    def check(self, output: Path) -> None:
        """Check that a picture does not replace a latent.

        Raises:
            OutputError: the file is one of the latents.
        """
        if self._latents and _identity(output) in self._latents:
            raise OutputError(f"{output} is the latent itself, which its picture would replace: pass another -o")


def _identity(path: Path) -> tuple[int, int] | None:
    """What distinguishes a file from others, whatever its name. None if it does not exist."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino
