"""The table of known latent spaces, and functions that convert arrays to latents in them.

Examples:
    >>> from infgen_rt import load_sample, spaces
    >>> output = load_sample("harbour").latent  # what a pipeline returns
    >>> space = spaces.space_of(output)  # an error if several spaces have this shape
    >>> space.name
    'flux2'
    >>> latent = spaces.as_latent(output, space, normalisation="model")
    >>> raw = space.denormalise(latent)  # for the VAE's own decoder
"""

from infgen_rt.latent.arrays import as_latent, as_latents
from infgen_rt.latent.choosing import space_of
from infgen_rt.latent.evidence import Normalisation, is_foreign, normalisation_of
from infgen_rt.latent.likeness import likely_space
from infgen_rt.latent.spaces import LatentSpace, Model, latent_space, latent_spaces

__all__ = [
    "LatentSpace",
    "Model",
    "Normalisation",
    "as_latent",
    "as_latents",
    "is_foreign",
    "latent_space",
    "latent_spaces",
    "likely_space",
    "normalisation_of",
    "space_of",
]
