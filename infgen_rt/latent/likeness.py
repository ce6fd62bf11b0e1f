"""Distinguishes spaces with the same number of channels by the covariances of a latent's fine detail."""

from collections.abc import Sequence
from functools import cache

import numpy as np

from infgen_rt.common.pixels import FloatArray
from infgen_rt.latent.distribution import Doubles, covariance_of
from infgen_rt.latent.evidence import LARGEST, NOISE, ROUNDING, middle, shows_picture
from infgen_rt.latent.spaces import LatentSpace

# How much larger the log likelihood of a cell's detail must be in one space than in every other space.
_SURE = 0.2
# Smaller latents show too little of a picture.
_LEAST_CELLS = 1024


def likely_space(latent: FloatArray, spaces: Sequence[LatentSpace]) -> LatentSpace | None:
    """Find the space of a latent by its statistics, among the spaces with the same number of channels.

    Only the differences of cells from their neighbours are used, because the colours of pictures differ more than the
    spaces do. The scale of the differences is ignored, so the normalisation need not be known.

    Args:
        latent: float32 [C, h, w].
        spaces: the spaces that it may be in. Those with another number of channels are left out.

    Returns:
        The space in which the latent's detail is much likelier than in any other. None if there is no such space, if
        the latent has fewer than 1,024 cells or shows no picture, or if one of the spaces was not measured.
    """
    spaces = [space for space in spaces if space.channels == len(latent)]
    if len(spaces) == 1:
        return spaces[0]
    measured = all(space.detail_std and space.detail_correlations for space in spaces)
    if not spaces or not measured or latent[0].size < _LEAST_CELLS:
        return None
    latent = middle(latent)
    if not np.abs(latent).max() <= LARGEST:  # also if it is NaN
        return None
    if not shows_picture(latent, NOISE):
        return None
    covariance = detail_covariance(latent)
    if np.trace(covariance) <= ROUNDING * np.square(latent, dtype=np.float64).sum(axis=0).mean():  # a ramp, for example
        return None
    ranks = sorted(((_log_likelihood(covariance, space), index) for index, space in enumerate(spaces)), reverse=True)
    (best, index), (second, _) = ranks[:2]
    return spaces[index] if best - second > _SURE else None


def detail_covariance(latent: FloatArray) -> Doubles:
    """The covariances [C, C] of channels, for the differences of cells from the mean of their four neighbours."""
    cells = latent.astype(np.float64)
    across = cells[:, 1:-1, :-2] + cells[:, 1:-1, 2:]
    down = cells[:, :-2, 1:-1] + cells[:, 2:, 1:-1]
    detail = (cells[:, 1:-1, 1:-1] - (across + down) / 4).reshape(len(latent), -1)
    return np.asarray(detail @ detail.T / detail.shape[1])


def _log_likelihood(covariance: Doubles, space: LatentSpace) -> float:
    """The average over the cells of the log likelihood of their detail, up to a constant that all spaces share.

    The detail is assumed to be normally distributed. Its scale is the one that makes the likelihood greatest.
    """
    inverse, determinant = _distribution(space)
    return -float(len(covariance) * np.log(np.trace(inverse @ covariance)) + determinant) / 2


@cache
def _distribution(space: LatentSpace) -> tuple[Doubles, float]:
    """The inverse covariance of a cell's detail, and the logarithm of the covariance's determinant."""
    assert space.detail_std is not None and space.detail_correlations is not None
    covariance = covariance_of(space.detail_std, space.detail_correlations)
    return np.asarray(np.linalg.inv(covariance), np.float64), float(np.linalg.slogdet(covariance)[1])
