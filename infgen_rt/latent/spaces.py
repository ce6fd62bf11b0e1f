"""The table of latent spaces, which are the conventions that latents follow."""

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
    """A convention for the meaning of a latent's numbers.

    A latent *in* the space is normalised, as the diffusion transformer sees it. `vae_mean` and `vae_std` convert the
    VAE's own latents to this form. Each has one number for all channels, one per channel, or one per channel of the
    2x2-patchified latent, in the order channel * 4 + row * 2 + column.

    Attributes:
        channels: the number of channels of an unpatchified latent.
        cell_pixels: the side of a cell in pixels at scale 1.
        usual_std: the smallest and largest overall standard deviation of real latents. None if not measured.
        usual_mean: the largest overall |mean| of real latents. None if not measured.
        vae_mean: subtracted from the VAE's own latents.
        vae_std: divisor of the VAE's own latents, after the mean is subtracted.
        source: the source of the numbers.
        correlations: correlations of each pair of channels over pictures, as the upper triangle row by row. None if not
            measured.
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
        """Check values beyond their types.

        Raises:
            ValueError: the statistics or the correlations do not fit the number of channels.
        """
        for values in (self.vae_mean, self.vae_std):
            if len(values) not in (1, self.channels, 4 * self.channels):
                raise ValueError(f"{len(values)} statistics are not of {self.channels} channels")
        if self.correlations is not None and len(self.correlations) != self.channels * (self.channels - 1) // 2:
            raise ValueError(f"{len(self.correlations)} correlations are not of {self.channels} channels")

    def native_size(self, latent: FloatArray) -> Size:
        """The size in pixels of the picture of a latent [channels, h, w] at scale 1."""
        _, height, width = latent.shape
        return Size(width * self.cell_pixels, height * self.cell_pixels)

    def normalise(self, latent: FloatArray) -> FloatArray:
        """Convert a VAE's own latent (the unscaled output of its encoder, with the batch norm undone) into the space.

        Args:
            latent: float32 [channels, h, w].
        """
        mean, std = self._pattern(self.vae_mean, latent), self._pattern(self.vae_std, latent)
        return (latent - mean) / std

    def denormalise(self, latent: FloatArray) -> FloatArray:
        """Undo `normalise`. The result is a latent for the VAE's own decoder.

        Args:
            latent: float32 [channels, h, w].
        """
        return latent * self._pattern(self.vae_std, latent) + self._pattern(self.vae_mean, latent)

    def _pattern(self, values: tuple[float, ...], latent: FloatArray) -> FloatArray:
        """Values to broadcast over a latent: one for all, one per channel, or those of patchified channels repeated."""
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
    """Look up a latent space.

    Raises:
        LatentError: there is no latent space with this name.
    """
    spaces = latent_spaces()
    if name not in spaces:
        raise LatentError(f"latent space {name!r} is unknown to this version: known are {', '.join(spaces)}")
    return spaces[name]
