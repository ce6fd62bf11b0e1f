"""What pipelines read of a VAE, from the table of latent spaces, and the space of a VAE from what they read."""

from math import isclose, log2
from typing import Any

import torch

from infgen_rt.common.arguments import Kind
from infgen_rt.errors import LatentError
from infgen_rt.latent.spaces import LatentSpace, latent_spaces

VAE = Kind("a VAE of diffusers, such as pipe.vae", lambda value: hasattr(value, "config"))
"""VAEs, for checks of arguments."""
_EPS = 1e-4
# How far the factors of a VAE's config may be from a table's, relatively and absolutely.
_FACTOR, _SHIFT = 1e-3, 1e-3


def space_of_vae(vae: Any) -> str:
    """The name of the latent space of a pipeline's VAE, by the channels and factors of its config.

    Raises:
        TypeError: it is not a VAE of diffusers.
        LatentError: it is that of no known space.
    """
    VAE.check(vae=vae)
    channels, scaling = (getattr(vae.config, name, None) for name in ("latent_channels", "scaling_factor"))
    shift = getattr(vae.config, "shift_factor", None) or 0.0
    for space in latent_spaces().values():
        read = described(space)
        same = isclose(read["scaling_factor"], scaling or 1.0, rel_tol=_FACTOR)
        same &= isclose(read["shift_factor"], shift, abs_tol=_SHIFT)
        if space.channels == channels and same and (batch_norm(space) is None) == (getattr(vae, "bn", None) is None):
            return space.name
    raise LatentError(
        f"{type(vae).__name__} has latents of no known space ({channels} channels, scaling_factor {scaling}, "
        f"shift_factor {shift}): pass space= if you know it"
    )


def described(space: LatentSpace) -> dict[str, Any]:
    """What pipelines read of the config of a VAE for a space."""
    single = len(space.vae_std) == len(space.vae_mean) == 1
    read = {
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": space.channels,
        # Pipelines take the pixels of a cell from its length.
        "block_out_channels": (128, 256, 512, 512, 512)[: int(log2(space.cell_pixels)) + 1],
        "scaling_factor": 1 / space.vae_std[0] if single else 1.0,
        "shift_factor": space.vae_mean[0] if single else 0.0,
        "force_upcast": False,
    }
    if batch_norm(space) is not None:
        read |= {"batch_norm_eps": _EPS, "patch_size": (2, 2)}
    elif not single:
        read |= {"latents_mean": space.vae_mean, "latents_std": space.vae_std}
    return read


def batch_norm(space: LatentSpace) -> torch.nn.BatchNorm2d | None:
    """The batch norm whose statistics pipelines undo before they decode. None if the space has none."""
    channels = len(space.vae_std)
    if channels != 4 * space.channels:
        return None
    made = torch.nn.BatchNorm2d(channels, eps=_EPS, affine=False).eval()
    std = torch.tensor(space.vae_std, dtype=torch.float64)
    made.running_mean = torch.tensor(space.vae_mean)
    made.running_var = (std**2 - _EPS).float()
    return made
