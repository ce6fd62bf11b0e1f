"""The table of known latent spaces, and functions that convert arrays to latents in them.

from infgen_rt import spaces

space = spaces.latent_space("flux2")  # or a model that uses it, as "klein"
space = spaces.space_of(pipeline_output)  # the one that its shape leaves, or an error that names the candidates
latents = spaces.as_latents(pipeline_output, space, latent_size=(1024, 1024))  # plain, of the model's normalisation
raw = space.denormalise(latents[0])  # what the VAE's own decoder takes
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
