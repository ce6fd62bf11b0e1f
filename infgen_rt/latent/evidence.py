"""Infers from a latent's numbers how it is normalised, and whether it belongs to its latent space at all."""

from math import log, sqrt
from typing import Literal

import numpy as np

from infgen_rt.common.pixels import FloatArray
from infgen_rt.latent.distribution import Cells, is_measured, model_odds
from infgen_rt.latent.spaces import LatentSpace

Normalisation = Literal["model", "vae"]
LARGEST = 1e4
"""No latent has larger numbers, in any normalisation. Squares of much larger ones are no float32 numbers."""
# Natural logarithm of the odds at which a latent counts as the VAE's own, about twelve to one, and as the model's. The
# second is larger, because it is the one that is taken without a warning.
_SURE_VAE, _SURE_MODEL = 2.5, 4.0
# The same for each cell, where the means and covariances of channels tell.
_SURE_CELL = 2.0
# The range `usual_std` spans this many standard deviations of log(std) over pictures, on either side of its middle.
_SPAN = 2.5
# With fewer cells, the statistics of a channel's parts say more about the picture than about the normalisation.
_LEAST_PARTS = 2048
# The errors of the parts' deviations and means are larger than their residuals say, because channels are not
# independent. The factors were measured on parts of 333 photographs' latents.
_DEVIATIONS_ERROR, _MEANS_ERROR = 1.25, 1.1
# With fewer cells, the correlations of channels depend too much on the picture's motif.
_LEAST_CELLS = 256
# The smallest agreement with the space's correlations of a latent in the space. Unrelated channels agree only by
# chance, with a standard deviation of 0.045 over 496 pairs.
_LEAST_AGREEMENT = 0.12
# With fewer pairs of channels, related ones agree too little for some pictures, and unrelated ones by chance.
_LEAST_PAIRS = 200
# Largest side of the part of a latent that is examined, so that the time does not grow with the latent.
_MOST_CELLS = 256
# Below this correlation of cells two apart, a latent is noise. Pictures of fine texture have little more.
NOISE = 0.05
# Above this correlation of cells two apart, a latent shows a picture. Noise has no correlation.
_SMOOTH = 0.2


def moments(latent: FloatArray) -> tuple[float, float]:
    """The mean and standard deviation of a whole latent, float32 [C, h, w]. Copies only one channel at a time."""
    means = [channel.mean(dtype=np.float64) for channel in latent]
    squares = [np.square(channel, dtype=np.float64).mean() for channel in latent]
    mean = float(np.mean(means))
    return mean, sqrt(max(0.0, float(np.mean(squares)) - mean**2))


def normalisation_of(latent: FloatArray, space: LatentSpace) -> Normalisation | None:
    """Distinguish the diffusion model's normalisation from the VAE's own.

    There are three kinds of evidence. First, a standard deviation outside the usual range rules out one of the two.
    Second, a standard deviation inside the range is more usual for one than for the other. Third, if the space has
    statistics for the 2x2 parts of each channel (those of a batch norm, as in FLUX.2), the parts of the VAE's own
    latents differ in the same way as these statistics. The parts of a channel see the same picture, so its content
    cancels out. This evidence is stronger for larger latents, and is not used for small ones.

    If the means and covariances of a space's channels were measured, only these are used as evidence.

    Pictures of one colour have the smallest deviations. Those of their VAE's own latents are as large as those of other
    pictures' normalised latents.

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
    usual, spread = log(low * high) / 2, log(high / low) / 2 / _SPAN
    odds = ((log(std / gain) - usual) ** 2 - (log(std) - usual) ** 2) / (2 * spread**2)
    odds += _odds_of_parts(latent, space)
    return "model" if odds >= _SURE_MODEL else "vae" if odds <= -_SURE_VAE else None


def is_foreign(latent: FloatArray, space: LatentSpace) -> bool:
    """Whether a latent shows a picture but belongs to another space, because its channels correlate differently.

    Args:
        latent: float32 [C, h, w].
        space: the space that it should be in. If its correlations were not measured, or if it has so few channels that
            chance makes them agree, the result is False.
    """
    if space.correlations is None or len(space.correlations) < _LEAST_PAIRS or latent[0].size < _LEAST_CELLS:
        return False
    latent = middle(latent)
    if not shows_picture(latent):
        return False
    correlations = np.asarray(np.corrcoef(latent.reshape(len(latent), -1)))
    found = correlations[np.triu_indices(len(latent), 1)]
    return float(np.corrcoef(found, space.correlations)[0, 1]) < _LEAST_AGREEMENT


def shows_picture(latent: FloatArray, least: float = _SMOOTH) -> bool:
    """Whether cells that are two apart correlate at least so much in a latent, float32 [C, h, w]. Noise's do not."""
    if min(latent.shape[1:]) < 3:
        return False
    centred = latent - latent.mean(axis=(1, 2), keepdims=True)
    square = np.square(centred).mean(axis=(1, 2), dtype=np.float64)
    if not square.all():
        return False
    down = (centred[:, 2:] * centred[:, :-2]).mean(axis=(1, 2), dtype=np.float64) / square
    across = (centred[:, :, 2:] * centred[:, :, :-2]).mean(axis=(1, 2), dtype=np.float64) / square
    return float((down + across).mean()) / 2 >= least


def middle(latent: FloatArray) -> FloatArray:
    """The middle of a latent. It starts at even cells, like the 2x2 parts."""
    rows, columns = (
        slice(max(0, side - _MOST_CELLS) // 4 * 2, max(0, side - _MOST_CELLS) // 4 * 2 + _MOST_CELLS)
        for side in latent.shape[1:]
    )
    return latent[:, rows, columns]


def _odds_of_parts(latent: FloatArray, space: LatentSpace) -> float:
    """Log odds for the model's normalisation from the 2x2 parts' differences. 0 without such statistics."""
    latent = middle(latent)
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
    # Even a normalised latent shows a part of the pattern, on average a quarter of it for photographs.
    return _odds(np.log(deviations), np.log(space.vae_std), 0.75, _DEVIATIONS_ERROR) + _odds(
        means, np.asarray(space.vae_mean), 0.5, _MEANS_ERROR
    )


def _odds(found: np.ndarray, pattern: np.ndarray, middle: float, error: float) -> float:
    """Log odds that the found values contain less than `middle` times the pattern, relative to each channel's mean.

    Its error is `error` times what the residuals say.
    """
    found, pattern = (
        values.reshape(-1, 4) - values.reshape(-1, 4).mean(axis=1, keepdims=True) for values in (found, pattern)
    )
    power = float(np.square(pattern).sum())
    slope = float((found * pattern).sum()) / power
    rest = float(np.square(found - slope * pattern).sum())
    variance = error**2 * rest / (3 * len(found) - 1) / power
    return (middle - slope) / variance if sqrt(variance) > 0 else 0.0
