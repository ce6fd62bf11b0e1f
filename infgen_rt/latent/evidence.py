"""Infers from a latent's numbers how it is normalised, and whether it belongs to its latent space at all."""

from math import sqrt
from typing import Literal

import numpy as np

from infgen_rt.common.pixels import FloatArray
from infgen_rt.latent.distribution import Cells, is_measured, model_odds
from infgen_rt.latent.spaces import LatentSpace

Normalisation = Literal["model", "vae"]
LARGEST = 1e4
"""The largest magnitude in any latent, in either normalisation. The squares of much larger numbers would overflow
float32."""
# A latent counts as the VAE's own from the first of these levels on, and as the model's up to the second. The usual
# levels of FLUX.2's latents are 0.57 and 0. Those of photographs are at most 0.2 from these, those of pictures of one
# colour may be 0.5 below.
_VAE_LEVEL, _MODEL_LEVEL = 0.35, 0.2
# A latent counts as the model's up to these standard deviations only. The VAE's own latents of any picture have 1.0 or
# more. In parts of fewer cells it may be less.
_MODEL_STD, _MODEL_STD_OF_FEW, _FEW_CELLS = 0.9, 0.85, 1024
# The natural logarithm of the odds from which on the parts of channels contradict this, about 12 to 1.
_SURE_PARTS = 2.5
# The natural logarithm of the odds per cell at which the normalisation is certain, for a space whose means and
# covariances were measured.
_SURE_CELL = 2.0
# With fewer cells, the statistics of a channel's 2x2 parts depend more on the picture than on the normalisation.
_LEAST_PARTS = 2048
# The residuals understate the errors of the parts' standard deviations and means, because channels are not independent.
# The errors are larger by these factors, which were measured on parts of 333 photographs' latents.
_DEVIATIONS_ERROR, _MEANS_ERROR = 1.25, 1.1
# With fewer cells, the correlations of channels depend too much on what the picture shows.
_LEAST_CELLS = 256
# A latent agrees with the correlations of its own space at least this much. Unrelated channels agree only by chance,
# with a standard deviation of 0.045 over 496 pairs.
_LEAST_AGREEMENT = 0.12
# The channels' correlations are examined only if the variance between cells has at least this share in the mean square
# of a latent's numbers. In a picture of one colour, such as a black one, the share is at most 0.23. Its cells differ
# only by the encoder's response to the border, which has other correlations than pictures have. In parts of
# photographs, the share is 0.46 or more.
_LEAST_CONTENT = 0.3
# If all correlations of channels differ by less, the latent says nothing about its space.
_EQUAL = 1e-6
# With fewer pairs of channels, some latents agree too little with their own space, and others by chance with a wrong
# one.
_LEAST_PAIRS = 200
# The largest side of the part of a latent that is examined, so that the time does not grow with the latent.
_MOST_CELLS = 256
# Keeps the logarithm finite for a channel of zeros.
_TINY = 1e-12
NOISE = 0.05
"""If the correlation of cells that are two apart is lower, the latent is noise. It is little higher in pictures of fine
texture."""
ROUNDING = 1e-12
"""If the variance of numbers is smaller than this, relative to their mean square, they differ by rounding only."""
# If the correlation of cells that are two apart is higher, the latent shows a picture. In noise it is about 0.
_SMOOTH = 0.2


def moments(latent: FloatArray) -> tuple[float, float]:
    """The mean and standard deviation of a whole latent, float32 [C, h, w].

    Only one channel is copied at a time, because a latent may be large.
    """
    means = [channel.mean(dtype=np.float64) for channel in latent]
    squares = [np.square(channel, dtype=np.float64).mean() for channel in latent]
    mean = float(np.mean(means))
    return mean, sqrt(max(0.0, float(np.mean(squares)) - mean**2))


def normalisation_of(latent: FloatArray, space: LatentSpace) -> Normalisation | None:
    """Distinguish the diffusion model's normalisation from the VAE's own.

    If the means and covariances of the space's channels were measured, only these are used as evidence. Otherwise,
    there are three kinds of evidence:

    1. A standard deviation outside the usual range of a normalisation rules this normalisation out.
    2. The latent's level (`level`) differs much less between pictures than between the normalisations. Pictures of one
       colour are an exception. Therefore, the standard deviation must be small too before a latent counts as the
       model's, which gives no warning.
    3. Some spaces have statistics for the 2x2 parts of each channel, such as those of FLUX.2's batch norm. The parts of
       the VAE's own latents differ from one another in the same way as these statistics. The content of the picture
       does not matter, because all parts of a channel show the same picture. If this evidence contradicts the level,
       nothing is inferred. It is not used for small latents.

    Args:
        latent: float32 [C, h, w].
        space: its latent space.

    Returns:
        The normalisation, or None if it cannot be inferred.
    """
    if space.usual_std is None:
        return None
    part = middle(latent)
    if is_measured(space) and len(space.vae_std) <= space.channels and shows_picture(part, NOISE):
        odds = model_odds(Cells.of(part), space)
        return None if abs(odds) < _SURE_CELL else "model" if odds > 0 else "vae"
    low, high = space.usual_std
    gain = float(np.mean(space.vae_std))
    _, std = moments(latent)
    if not low * min(1, gain) <= std <= high * max(1, gain):
        return None
    of_model, of_vae = low <= std <= high, low * gain <= std <= high * gain
    if of_model != of_vae:
        return "model" if of_model else "vae"
    return _by_level(part, space, std)


def level(latent: FloatArray, space: LatentSpace) -> float:
    """How much larger a latent's numbers are than usual in the model's normalisation, as a natural logarithm.

    Args:
        latent: float32 [C, h, w].
        space: its latent space, which has `level_weights`.
    """
    assert space.level_weights is not None
    squares = np.square(latent, dtype=np.float64).mean(axis=(1, 2))
    return float(np.log(squares + _TINY) @ np.array(space.level_weights)) / 2 - space.usual_level


def _by_level(latent: FloatArray, space: LatentSpace, std: float) -> Normalisation | None:
    """The normalisation of a latent whose standard deviation is usual in both. None unless one is excluded."""
    if space.level_weights is None:
        return None
    found, cells = level(latent, space), latent[0].size
    if found >= _VAE_LEVEL:
        return "vae"
    largest = _MODEL_STD if cells >= _FEW_CELLS else _MODEL_STD_OF_FEW
    if found > _MODEL_LEVEL or cells < _LEAST_CELLS or std > largest:
        return None
    return "model" if _odds_of_parts(latent, space) > -_SURE_PARTS else None


def is_foreign(latent: FloatArray, space: LatentSpace) -> bool:
    """Whether a latent shows a picture but belongs to another space, because its channels correlate differently.

    Args:
        latent: float32 [C, h, w].
        space: the space that it should be in. If its correlations were not measured, or if it has so few channels that
            chance makes them agree, the result is False. This is also so for a picture of one colour.
    """
    if space.correlations is None or len(space.correlations) < _LEAST_PAIRS or latent[0].size < _LEAST_CELLS:
        return False
    latent = middle(latent)
    if not shows_picture(latent):
        return False
    centred = latent - latent.mean(axis=(1, 2), keepdims=True)
    if np.square(centred).mean(dtype=np.float64) < _LEAST_CONTENT * np.square(latent, dtype=np.float64).mean():
        return False
    correlations = np.asarray(np.corrcoef(latent.reshape(len(latent), -1)))
    found = correlations[np.triu_indices(len(latent), 1)]
    if np.ptp(found) < _EQUAL:
        return False
    return float(np.corrcoef(found, space.correlations)[0, 1]) < _LEAST_AGREEMENT


def shows_picture(latent: FloatArray, least: float = _SMOOTH) -> bool:
    """Whether a latent shows a picture and not noise, by the correlation of cells that are two apart.

    Args:
        latent: float32 [C, h, w].
        least: the correlation from which on it is a picture.
    """
    if min(latent.shape[1:]) < 3:
        return False
    centred = latent - latent.mean(axis=(1, 2), keepdims=True)
    square = np.square(centred).mean(axis=(1, 2), dtype=np.float64)
    if (square <= ROUNDING * np.square(latent, dtype=np.float64).mean(axis=(1, 2))).any():
        return False
    down = (centred[:, 2:] * centred[:, :-2]).mean(axis=(1, 2), dtype=np.float64) / square
    across = (centred[:, :, 2:] * centred[:, :, :-2]).mean(axis=(1, 2), dtype=np.float64) / square
    return float((down + across).mean()) / 2 >= least


def middle(latent: FloatArray) -> FloatArray:
    """The middle of a latent [C, h, w], up to 256 cells per side. It starts at even cells, like the 2x2 parts."""
    rows, columns = (
        slice(max(0, side - _MOST_CELLS) // 4 * 2, max(0, side - _MOST_CELLS) // 4 * 2 + _MOST_CELLS)
        for side in latent.shape[1:]
    )
    return latent[:, rows, columns]


def _odds_of_parts(latent: FloatArray, space: LatentSpace) -> float:
    """The log odds for the model's normalisation, from the differences of the 2x2 parts. 0 if they cannot be used."""
    channels, height, width = latent.shape
    if len(space.vae_std) != 4 * channels or len(space.vae_mean) != 4 * channels:
        return 0.0
    if height * width < _LEAST_PARTS or min(height, width) < 4:
        return 0.0
    even = latent[:, : height - height % 2, : width - width % 2]
    parts = even.reshape(channels, height // 2, 2, width // 2, 2).transpose(0, 2, 4, 1, 3).reshape(channels, 4, -1)
    deviations = parts.std(axis=2, dtype=np.float64)
    if not deviations.all():
        return 0.0
    means = parts.mean(axis=2, dtype=np.float64)
    # Even a normalised latent has a part of the pattern: on average a quarter of it, for photographs.
    return _odds(np.log(deviations), np.log(space.vae_std), 0.75, _DEVIATIONS_ERROR) + _odds(
        means, np.asarray(space.vae_mean), 0.5, _MEANS_ERROR
    )


def _odds(found: np.ndarray, pattern: np.ndarray, middle: float, error: float) -> float:
    """The log odds that values contain less than `middle` times a pattern. Both are relative to each channel's mean.

    The standard error of the share is `error` times the one that follows from the residuals.
    """
    found, pattern = (
        values.reshape(-1, 4) - values.reshape(-1, 4).mean(axis=1, keepdims=True) for values in (found, pattern)
    )
    power = float(np.square(pattern).sum())
    slope = float((found * pattern).sum()) / power
    rest = float(np.square(found - slope * pattern).sum())
    variance = error**2 * rest / (3 * len(found) - 1) / power
    return (middle - slope) / variance if sqrt(variance) > 0 else 0.0
