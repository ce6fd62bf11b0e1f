"""The table of known latent spaces, and functions that convert arrays to latents in them.

from infgen_rt import spaces

space = spaces.latent_space("flux2")
latents = spaces.as_latents(pipeline_output, space, latent_size=(1024, 1024))  # plain, of the model's normalisation
raw = space.denormalise(latents[0])  # what the VAE's own decoder takes
"""

from infgen_rt.latent.arrays import as_latent, as_latents
from infgen_rt.latent.evidence import Normalisation, is_foreign, normalisation_of
from infgen_rt.latent.spaces import LatentSpace, latent_space, latent_spaces

__all__ = [
    "LatentSpace",
    "Normalisation",
    "as_latent",
    "as_latents",
    "is_foreign",
    "latent_space",
    "latent_spaces",
    "normalisation_of",
]
