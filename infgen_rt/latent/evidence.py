"""What a latent's numbers say of where it is from: its normalisation, and whether it is of its space at all."""

from math import log, sqrt
from typing import Literal

import numpy as np

from infgen_rt.common.pixels import FloatArray
from infgen_rt.latent.spaces import LatentSpace

Normalisation = Literal["model", "vae"]
# Natural logarithm of odds at which a normalisation counts as known: seven to one.
_SURE = 2.0
# Standard deviations of log(std) over pictures that `usual_std` spans, each way.
_SPAN = 2.5
# Below so many cells the correlations of channels are those of one motif.
_LEAST_CELLS = 256
# The agreement with the space's correlations that pictures in it have at least. Unrelated channels agree by chance
# alone: over 496 pairs that has a standard deviation of 0.045.
_LEAST_AGREEMENT = 0.12
# Sides of the part of a latent that is looked at: what it takes does not grow with the latent.
_MOST_CELLS = 256
# Correlation of cells two apart above which a latent is of a picture; noise has none.
_SMOOTH = 0.2


def moments(latent: FloatArray) -> tuple[float, float]:
    """Mean and standard deviation of a whole latent, float32 [C, h, w], with no more than a channel copied."""
    means = [channel.mean(dtype=np.float64) for channel in latent]
    squares = [np.square(channel, dtype=np.float64).mean() for channel in latent]
    mean = float(np.mean(means))
    return mean, sqrt(max(0.0, float(np.mean(squares)) - mean**2))


def normalisation_of(latent: FloatArray, space: LatentSpace) -> Normalisation | None:
    """Tell the diffusion model's normalisation from the VAE's own.

    Three things differ. Outside the range of usual standard deviations one of the two is ruled out. Inside, the
    standard deviation is more usual for one than for the other. And where the space's statistics are those of the 2x2
    parts of each channel (a batch norm's, as FLUX.2's), the parts of a latent of the VAE differ as those statistics do.
    Parts of one channel see the same picture, so its content cancels out; the larger the latent, the surer this is.

    Args:
        latent: float32 [C, h, w].
        space: that it is in.

    Returns:
        None if it cannot be told.
    """
    if space.usual_std is None:
        return None
    low, high = space.usual_std
    gain = float(np.mean(space.vae_std))
    _, std = moments(latent)
    if not low <= std <= high * gain:
        return None
    if std > high:
        return "vae"
    if std < low * gain:
        return "model"
    middle, spread = log(low * high) / 2, log(high / low) / 2 / _SPAN
    odds = ((log(std / gain) - middle) ** 2 - (log(std) - middle) ** 2) / (2 * spread**2)
    odds += _odds_of_parts(latent, space)
    return None if abs(odds) < _SURE else "model" if odds > 0 else "vae"


def is_foreign(latent: FloatArray, space: LatentSpace) -> bool:
    """Whether a latent is of a picture, and of another space: its channels go together in other ways.

    Args:
        latent: float32 [C, h, w].
        space: that it should be in. False if the correlations of its channels were not measured.
    """
    latent = _middle(latent)
    if space.correlations is None or latent[0].size < _LEAST_CELLS or min(latent.shape[1:]) < 3:
        return False
    centred = latent - latent.mean(axis=(1, 2), keepdims=True)
    square = np.square(centred).mean(axis=(1, 2), dtype=np.float64)
    if not square.all():
        return False
    down = (centred[:, 2:] * centred[:, :-2]).mean(axis=(1, 2), dtype=np.float64) / square
    across = (centred[:, :, 2:] * centred[:, :, :-2]).mean(axis=(1, 2), dtype=np.float64) / square
    if float((down + across).mean()) / 2 < _SMOOTH:
        return False
    correlations = np.asarray(np.corrcoef(latent.reshape(len(latent), -1)))
    found = correlations[np.triu_indices(len(latent), 1)]
    return float(np.corrcoef(found, space.correlations)[0, 1]) < _LEAST_AGREEMENT


def _middle(latent: FloatArray) -> FloatArray:
    """A latent's middle, from even cells on, as the 2x2 parts begin."""
    rows, columns = (
        slice(max(0, side - _MOST_CELLS) // 4 * 2, max(0, side - _MOST_CELLS) // 4 * 2 + _MOST_CELLS)
        for side in latent.shape[1:]
    )
    return latent[:, rows, columns]


def _odds_of_parts(latent: FloatArray, space: LatentSpace) -> float:
    """Log odds for the model's normalisation by how the 2x2 parts of channels differ; 0 if the space says nothing."""
    latent = _middle(latent)
    channels, height, width = latent.shape
    if len(space.vae_std) != 4 * channels or len(space.vae_mean) != 4 * channels or min(height, width) < 4:
        return 0.0
    even = latent[:, : height - height % 2, : width - width % 2]
    parts = even.reshape(channels, height // 2, 2, width // 2, 2).transpose(0, 2, 4, 1, 3).reshape(channels, 4, -1)
    deviations = parts.std(axis=2, dtype=np.float64)
    if not deviations.all():
        return 0.0
    means = parts.mean(axis=2, dtype=np.float64)
    # A latent that is normalised shows a part of the pattern all the same: photographs do, a quarter of it on average.
    return _odds(np.log(deviations), np.log(space.vae_std), 0.75) + _odds(means, np.asarray(space.vae_mean), 0.5)


def _odds(found: np.ndarray, pattern: np.ndarray, middle: float) -> float:
    """Log odds for less than `middle` times a pattern being in what was found, each channel about its own mean."""
    found, pattern = (
        values.reshape(-1, 4) - values.reshape(-1, 4).mean(axis=1, keepdims=True) for values in (found, pattern)
    )
    power = float(np.square(pattern).sum())
    slope = float((found * pattern).sum()) / power
    rest = float(np.square(found - slope * pattern).sum())
    variance = rest / (3 * len(found) - 1) / power
    return (middle - slope) / variance if sqrt(variance) > 0 else 0.0
