"""The table of latent spaces: the conventions that latents come in."""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from infgen_rt.common.pixels import FloatArray
from infgen_rt.common.schema import parse
from infgen_rt.errors import LatentError
from infgen_rt.geometry.shapes import Size

_TABLE = Path(__file__).parents[1] / "data" / "latent_spaces.json"


@dataclass(frozen=True)
class LatentSpace:
    """One convention: what a latent's numbers mean.

    A latent *in* the space is normalised, as the diffusion transformer sees it. `vae_mean` and `vae_std` lead there
    from the VAE's own latents: one number for all, one a channel, or one a channel of the 2x2-patchified latent, in the
    order channel * 4 + row * 2 + column.

    Attributes:
        channels: channels of an unpatchified latent.
        cell_pixels: pixels a cell covers each way at scale 1.
        usual_std: the overall standard deviations that real latents have, least and most; None if not measured.
        usual_mean: the largest overall |mean| that real latents have; None if not measured.
        vae_mean: what is subtracted from the VAE's own latents.
        vae_std: what they are then divided by.
        source: where the table was taken from.
        correlations: of each two channels over pictures, the upper triangle row by row; None if not measured.
    """

    channels: int
    cell_pixels: int
    usual_std: tuple[float, float] | None
    usual_mean: float | None
    vae_mean: tuple[float, ...]
    vae_std: tuple[float, ...]
    source: str
    correlations: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        """Check what types alone cannot say.

        Raises:
            ValueError: the statistics or the correlations are not of this many channels.
        """
        for values in (self.vae_mean, self.vae_std):
            if len(values) not in (1, self.channels, 4 * self.channels):
                raise ValueError(f"{len(values)} statistics are not of {self.channels} channels")
        if self.correlations is not None and len(self.correlations) != self.channels * (self.channels - 1) // 2:
            raise ValueError(f"{len(self.correlations)} correlations are not of {self.channels} channels")

    def native_size(self, latent: FloatArray) -> Size:
        """Size in pixels of the picture that a latent [channels, h, w] is at scale 1."""
        _, height, width = latent.shape
        return Size(width * self.cell_pixels, height * self.cell_pixels)

    def normalise(self, latent: FloatArray) -> FloatArray:
        """Bring a VAE's own latent (what its encoder gives, unscaled, batch norm undone) into the space.

        Args:
            latent: float32 [channels, h, w].
        """
        mean, std = self._pattern(self.vae_mean, latent), self._pattern(self.vae_std, latent)
        return (latent - mean) / std

    def denormalise(self, latent: FloatArray) -> FloatArray:
        """Undo `normalise`: what the VAE's own decoder takes.

        Args:
            latent: float32 [channels, h, w].
        """
        return latent * self._pattern(self.vae_std, latent) + self._pattern(self.vae_mean, latent)

    def _pattern(self, values: tuple[float, ...], latent: FloatArray) -> FloatArray:
        """What is broadcast over a latent: one number, one a channel, or the patchified channels' repeated."""
        if len(values) in (1, self.channels):
            return np.asarray(values, np.float32)[:, None, None]
        height, width = latent.shape[1:]
        square = np.asarray(values, np.float32).reshape(self.channels, 2, 2)
        return np.tile(square, (1, -(-height // 2), -(-width // 2)))[:, :height, :width]


@cache
def latent_spaces() -> dict[str, LatentSpace]:
    """All known latent spaces, by name."""
    table = json.loads(_TABLE.read_text(encoding="utf-8"))
    return {name: parse(LatentSpace, value, name) for name, value in table.items()}


def latent_space(name: str) -> LatentSpace:
    """Look a latent space up.

    Raises:
        LatentError: there is none of that name.
    """
    spaces = latent_spaces()
    if name not in spaces:
        raise LatentError(f"latent space {name!r} is unknown to this version: known are {', '.join(spaces)}")
    return spaces[name]
