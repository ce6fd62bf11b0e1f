"""Tells spaces of as many channels apart, by how the channels of a latent vary and go together."""

from collections.abc import Sequence
from functools import cache

import numpy as np
import numpy.typing as npt

from infgen_rt.common.pixels import FloatArray
from infgen_rt.latent.evidence import middle, shows_picture
from infgen_rt.latent.spaces import LatentSpace

Doubles = npt.NDArray[np.float64]
# How much likelier the numbers of a cell must be in one space than in all others, as a natural logarithm.
_SURE = 0.6
# Smaller latents show too little of a picture.
_LEAST_CELLS = 1024


def likely_space(latent: FloatArray, spaces: Sequence[LatentSpace]) -> LatentSpace | None:
    """The space that the statistics of a latent tell, among those with as many channels.

    The cells of a space's latents are taken as normally distributed, with the means and covariances that were measured
    over many pictures. The latent's own means and covariances say how likely its cells are in each space. Its scale
    does not count, and its shift is tried as both normalisations have it, so the normalisation need not be known.

    Args:
        latent: float32 [C, h, w].
        spaces: the spaces that it may be in. Those with another number of channels are left out.

    Returns:
        The space if it is likelier than each other one by the factor `_SURE` for each cell. None if the latent has
        fewer than 1,024 cells, shows no picture, or does not tell, or if a space was not measured.
    """
    spaces = [space for space in spaces if space.channels == len(latent)]
    if len(spaces) == 1:
        return spaces[0]
    measured = all(space.correlations and space.channel_mean and space.channel_std for space in spaces)
    if not spaces or not measured or latent[0].size < _LEAST_CELLS:
        return None
    latent = middle(latent)
    if not shows_picture(latent):
        return None
    found = _moments(latent)
    ranks = sorted(((_likelihood(found, space), index) for index, space in enumerate(spaces)), reverse=True)
    (best, index), (second, _) = ranks[:2]
    return spaces[index] if best - second > _SURE else None


def _likelihood(moments: tuple[Doubles, Doubles], space: LatentSpace) -> float:
    """Logarithm of the likelihood of a cell, on average, up to a constant that all spaces share."""
    mean, covariance = moments
    shift = np.broadcast_to(np.float64(space.vae_mean), mean.shape) if len(space.vae_mean) <= len(mean) else 0.0
    return max(_scaled_likelihood(mean, covariance, space), _scaled_likelihood(mean - shift, covariance, space))


def _scaled_likelihood(mean: Doubles, covariance: Doubles, space: LatentSpace) -> float:
    """The same at the scale of the latent that makes it greatest."""
    usual, inverse, determinant = _distribution(space)
    count = len(mean)
    # The logarithm is count * log(scale) - (square * scale**2 - 2 * cross * scale + rest) / 2.
    square = float(np.trace(inverse @ (covariance + np.outer(mean, mean))))
    cross = float(mean @ inverse @ usual)
    rest = float(usual @ inverse @ usual) + determinant
    scale = (cross + np.sqrt(cross**2 + 4 * count * square)) / (2 * square)
    return float(count * np.log(scale) - (square * scale**2 - 2 * cross * scale + rest) / 2)


def _moments(latent: FloatArray) -> tuple[Doubles, Doubles]:
    """The mean of each channel and the covariance of each two."""
    cells = latent.reshape(len(latent), -1).astype(np.float64)
    return cells.mean(axis=1), np.atleast_2d(np.cov(cells, bias=True))


@cache
def _distribution(space: LatentSpace) -> tuple[Doubles, Doubles, float]:
    """The mean of a cell, its inverse covariance, and the logarithm of the covariance's determinant."""
    assert space.correlations is not None and space.channel_mean is not None and space.channel_std is not None
    correlation = np.eye(space.channels)
    upper = np.triu_indices(space.channels, 1)
    correlation[upper] = correlation.T[upper] = space.correlations
    covariance = correlation * np.outer(space.channel_std, space.channel_std)
    return np.array(space.channel_mean), np.linalg.inv(covariance), float(np.linalg.slogdet(covariance)[1])
