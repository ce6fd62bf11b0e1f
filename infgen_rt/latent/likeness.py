"""Tells spaces of as many channels apart, by how the channels of a latent vary and go together."""

from collections.abc import Sequence

import numpy as np

from infgen_rt.common.pixels import FloatArray
from infgen_rt.latent.distribution import Cells, best_log_likelihood, is_measured
from infgen_rt.latent.evidence import middle, shows_picture
from infgen_rt.latent.spaces import LatentSpace

# How much likelier a cell must be in one space than in each other one, as a natural logarithm.
_SURE = 0.6
# Smaller latents show too little of a picture.
_LEAST_CELLS = 1024


def likely_space(latent: FloatArray, spaces: Sequence[LatentSpace]) -> LatentSpace | None:
    """The space that the statistics of a latent tell, among those with as many channels.

    The latent's scale does not count, and its shift is tried as both normalisations have it, so the normalisation need
    not be known.

    Args:
        latent: float32 [C, h, w].
        spaces: the spaces that it may be in. Those with another number of channels are left out.

    Returns:
        The space in which the latent's cells are likelier than in each other one by far. None if the latent has fewer
        than 1,024 cells, shows no picture or does not tell, or if a space was not measured.
    """
    spaces = [space for space in spaces if space.channels == len(latent)]
    if len(spaces) == 1:
        return spaces[0]
    if not spaces or not all(map(is_measured, spaces)) or latent[0].size < _LEAST_CELLS:
        return None
    latent = middle(latent)
    if not shows_picture(latent):
        return None
    cells = Cells.of(latent)
    ranks = sorted(((_likelihood(cells, space), index) for index, space in enumerate(spaces)), reverse=True)
    (best, index), (second, _) = ranks[:2]
    return spaces[index] if best - second > _SURE else None


def _likelihood(cells: Cells, space: LatentSpace) -> float:
    """Logarithm of the likelihood of a cell in whichever normalisation and at whichever scale it is greatest."""
    # Statistics of the patchified latent are almost the same for all four parts of a channel.
    mean = np.array(space.vae_mean, np.float64)
    shift = mean if len(mean) in (1, space.channels) else mean.reshape(space.channels, 4).mean(axis=1)
    raw = cells.moved(np.broadcast_to(shift, space.channels), np.ones(space.channels))
    return max(best_log_likelihood(cells, space), best_log_likelihood(raw, space))
