"""The likelihood of a latent's cells in a space, by the means and covariances that were measured over many pictures.

The cells of a space are assumed to be normally distributed. The likelihood of a latent then depends only on its own
means and covariances, and is computed from these.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from infgen_rt.common.pixels import FloatArray
from infgen_rt.latent.spaces import LatentSpace

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Cells:
    """The statistics of a latent's cells.

    Attributes:
        mean: the mean of each channel, [C].
        covariance: the covariance of each pair of channels, [C, C].
    """

    mean: Doubles
    covariance: Doubles

    @classmethod
    def of(cls, latent: FloatArray) -> "Cells":
        """The statistics of a latent, float32 [C, h, w]."""
        cells = latent.reshape(len(latent), -1).astype(np.float64)
        return cls(cells.mean(axis=1), np.atleast_2d(np.cov(cells, bias=True)))

    def moved(self, shift: Doubles, scale: Doubles) -> "Cells":
        """The statistics of (latent - shift) / scale."""
        return Cells((self.mean - shift) / scale, self.covariance / np.multiply.outer(scale, scale))


def is_measured(space: LatentSpace) -> bool:
    """Whether the means and covariances of a space are known."""
    return None not in (space.correlations, space.channel_mean, space.channel_std)


def log_likelihood(cells: Cells, space: LatentSpace) -> float:
    """The average over the cells of the log likelihood in a measured space, up to a constant."""
    usual, inverse, determinant = _distribution(space)
    off = cells.mean - usual
    return float(determinant + np.trace(inverse @ (cells.covariance + np.outer(off, off)))) / -2


def model_odds(cells: Cells, space: LatentSpace) -> float:
    """The log odds per cell for the diffusion model's normalisation, against the VAE's own, in a measured space."""
    count = len(cells.mean)
    shift, scale = (np.broadcast_to(np.array(each, np.float64), count) for each in (space.vae_mean, space.vae_std))
    of_vae = log_likelihood(cells.moved(shift, scale), space) - float(np.log(scale).sum())
    return log_likelihood(cells, space) - of_vae


def covariance_of(deviations: Sequence[float], correlations: Sequence[float]) -> Doubles:
    """A covariance [C, C] from C standard deviations and the upper triangle of correlations, row by row."""
    correlation = np.eye(len(deviations))
    upper = np.triu_indices(len(deviations), 1)
    correlation[upper] = correlation.T[upper] = correlations
    return np.asarray(correlation * np.outer(deviations, deviations))


@cache
def _distribution(space: LatentSpace) -> tuple[Doubles, Doubles, float]:
    """The mean of a cell, its inverse covariance, and the logarithm of the covariance's determinant."""
    assert space.correlations is not None and space.channel_mean is not None and space.channel_std is not None
    covariance = covariance_of(space.channel_std, space.correlations)
    inverse = np.asarray(np.linalg.inv(covariance), np.float64)
    return np.array(space.channel_mean), inverse, float(np.linalg.slogdet(covariance)[1])
