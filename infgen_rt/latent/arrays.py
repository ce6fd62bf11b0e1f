"""Checks the latents that pipelines return and files hold, and converts them to float32 [channels, h, w]."""

from pathlib import Path
from typing import Any

import numpy as np

from infgen_rt.common.arguments import PAIR, TEXT, instance
from infgen_rt.common.notices import Notices
from infgen_rt.common.pixels import FloatArray
from infgen_rt.errors import LatentError
from infgen_rt.geometry.shapes import Size
from infgen_rt.latent.evidence import LARGEST, Normalisation, is_foreign, moments, normalisation_of
from infgen_rt.latent.files import Stored, read_array
from infgen_rt.latent.layout import plain_latents
from infgen_rt.latent.likeness import likely_space
from infgen_rt.latent.numbers import as_float32
from infgen_rt.latent.spaces import SPACE, LatentSpace, latent_space, latent_spaces

__all__ = ["Normalisation", "as_latent", "as_latents", "load_latent", "load_latents", "native_size"]

IMPOSSIBLE_STD = 5.0
"""No latent in the model's normalisation has a larger standard deviation."""


def load_latent(
    path: str | Path,
    *,
    key: str | None = None,
    space: str = "flux2",
    normalisation: Normalisation | None = None,
    latent_size: tuple[int, int] | None = None,
) -> FloatArray:
    """Read the latent of one picture from a file.

    Args:
        path: a .npy, .npz or .safetensors file of float16, bfloat16, float32 or float64 numbers.
        key: the name of the array. It is not needed if the file has only one array, or if the array has a usual name:
            `latent`, `latents`, `latent_tensor` or `samples`.
        space: the name of its latent space, or of a model that uses the space.
        normalisation: see `as_latents`.
        latent_size: see `as_latents`.

    Returns:
        float32 [channels, h, w].

    Raises:
        LatentError: the file or the latent is not usable, or there are several latents.

    Examples:
        >>> import infgen_rt
        >>> import numpy as np
        >>> np.save("latent.npy", infgen_rt.load_sample("harbour").latent)
        >>> infgen_rt.load_latent("latent.npy", normalisation="model").shape
        (32, 68, 120)
    """
    latents = load_latents(path, key=key, space=space, normalisation=normalisation, latent_size=latent_size)
    if len(latents) != 1:
        raise LatentError(f"{path} holds a batch of {len(latents)}: load_latents reads them all")
    return latents[0]


def load_latents(
    path: str | Path,
    *,
    key: str | None = None,
    space: str = "flux2",
    normalisation: Normalisation | None = None,
    latent_size: tuple[int, int] | None = None,
) -> list[FloatArray]:
    """Read the latents of all pictures in a file's array.

    The arguments and the errors are those of `load_latent`.

    Returns:
        float32 [channels, h, w] for each picture.

    Examples:
        >>> import infgen_rt
        >>> import numpy as np
        >>> samples = [infgen_rt.load_sample(name) for name in ("harbour", "osprey")]
        >>> np.save("batch.npy", np.stack([sample.latent for sample in samples]))
        >>> len(infgen_rt.load_latents("batch.npy", normalisation="model"))
        2
    """
    TEXT.check(space=space)
    stored = read_array(path, key)
    try:
        return as_latents(stored, latent_space(space), normalisation=normalisation, latent_size=latent_size)
    except LatentError as error:
        raise LatentError(f"{path}: {error}") from None


def as_latents(
    value: Any,
    space: LatentSpace,
    *,
    normalisation: Normalisation | None = None,
    latent_size: tuple[int, int] | None = None,
    notices: Notices | None = None,
) -> list[FloatArray]:
    """Convert the output of a pipeline into latents that can be decoded.

    Args:
        value: a NumPy array, a torch tensor, what `read_array` returns, or anything that NumPy converts to an array of
            floating-point numbers. It has one of these shapes, with or without a batch axis:

            - [C, h, w], the latent itself.
            - [4C, h/2, w/2], patchified 2x2, as ComfyUI stores the latents of FLUX.2. Only for spaces that are
              `patchified`.
            - [h/2 * w/2, 4C], packed into a sequence, as diffusers' pipelines return the latents of FLUX.1 and FLUX.2.
              Only for spaces that are `packed`. It needs `latent_size`.

            The first two may have an axis of one frame before h.
        space: its latent space.
        normalisation: `model` if the numbers are those that the diffusion transformer works on, or `vae` if they
            are the VAE's own (for FLUX.2, with the batch norm undone). None takes what the file says. ComfyUI's files
            have the VAE's own normalisation in all spaces except FLUX.2. For latents from elsewhere, None means
            `model`, and there is a warning if the numbers contradict it or are ambiguous. With `output_type="latent"`,
            diffusers' Flux2Pipeline (0.36 to 0.42.1) returns packed latents in the model's normalisation, and its
            Flux2KleinPipeline (0.37 to 0.42.1) returns plain latents in the VAE's own.
        latent_size: the width and height in pixels that were requested from the pipeline. Only for packed latents.
        notices: gives the warnings. By default, each cause is reported once per call.

    Returns:
        float32 [C, h, w] for each picture, finite and contiguous.

    Raises:
        LatentError: the shape, channels, dtype or numbers are not those of a latent.

    Warns:
        InfGenWarning: the numbers are unusual for a latent.
    """
    SPACE.check(space=space)
    TEXT.or_none(normalisation=normalisation)
    PAIR.or_none(latent_size=latent_size)
    instance(Notices, "Notices").or_none(notices=notices)
    if normalisation not in (None, "model", "vae"):
        raise LatentError(f"normalisation {normalisation!r} is unknown: expected 'model' or 'vae'")
    notices = notices or Notices()
    if isinstance(value, Stored):
        normalisation = normalisation or value.normalisation(space)
    plain, patched = plain_latents(as_float32(value), space, latent_size)
    found = []
    for number, latent in enumerate(plain, start=1):
        try:
            found.append(_checked(latent, space, normalisation, patched, notices))
        except LatentError as error:
            if len(plain) == 1:
                raise
            raise LatentError(f"latent {number} of {len(plain)}: {error}") from None
    return found


def as_latent(
    value: Any,
    space: LatentSpace,
    *,
    normalisation: Normalisation | None = None,
    latent_size: tuple[int, int] | None = None,
    notices: Notices | None = None,
) -> FloatArray:
    """Convert the latent of one picture. The arguments are those of `as_latents`.

    Returns:
        float32 [C, h, w], finite and contiguous.

    Raises:
        LatentError: it is not usable, or it is a batch of several latents.
    """
    latents = as_latents(value, space, normalisation=normalisation, latent_size=latent_size, notices=notices)
    if len(latents) != 1:
        shape = list(as_float32(value).shape)
        raise LatentError(f"shape {shape} is a batch of {len(latents)}: Decoder.pictures makes a picture of each")
    return latents[0]


def native_size(value: Any, space: LatentSpace, *, latent_size: tuple[int, int] | None = None) -> Size:
    """The size in pixels, at scale 1, of the picture of a latent or of each latent in a batch.

    The arguments and the errors are those of `as_latents`.
    """
    SPACE.check(space=space)
    PAIR.or_none(latent_size=latent_size)
    plain, _ = plain_latents(as_float32(value), space, latent_size)
    return space.native_size(plain[0])


def _checked(
    latent: FloatArray, space: LatentSpace, normalisation: Normalisation | None, patched: bool, notices: Notices
) -> FloatArray:
    """Check that a plain latent is finite, convert it to the model's normalisation, and warn if it is unusual."""
    bad = ~np.isfinite(latent)
    if bad.any():
        first = ", ".join(str(int(index)) for index in np.argwhere(bad)[0])
        raise LatentError(
            f"{int(bad.sum()):,} of {latent.size:,} numbers are NaN or infinite, the first at [{first}]: make the "
            "latent again, in bfloat16 or float32 if it was float16"
        )
    if (largest := float(np.abs(latent).max())) > LARGEST:
        raise LatentError(
            f"the latent's numbers reach {largest:.3g}, where {LARGEST:g} is more than any latent has: look at what "
            "was done to them after the sampler"
        )
    doubtful = _check_normalisation(latent, space, normalisation, patched, notices)
    other = likely_space(latent, [space, *(each for each in latent_spaces().values() if each != space)])
    like = f", but like those of {other.name} ({other.title})" if other and other != space else ""
    if like or is_foreign(latent, space):
        step = f"open a model for it (space={other.name!r}, --space {other.name})" if like and other else _LOOK
        notices.warn(
            "foreign",
            f"the latent's {space.channels} channels are not correlated like those of {space.name}{like}: if another "
            f"model made it, the picture will show nothing recognisable; {step}",
        )
    if normalisation == "vae":
        latent = space.normalise(latent)
    _check_values(latent, space, normalisation, doubtful, notices)
    return np.ascontiguousarray(latent)


_LOOK = "`infgen-rt spaces` lists the models of each space"
_SAY_MODEL = "pass normalisation='model' (--normalisation model)"


def _say_vae(space: LatentSpace) -> str:
    return f"if they are the VAE's own, such as {space.raw_example}, pass normalisation='vae' (--normalisation vae)"


def _check_normalisation(
    latent: FloatArray, space: LatentSpace, said: Normalisation | None, patched: bool, notices: Notices
) -> bool:
    """Warn if the numbers or their packing contradict the normalisation, or if none is given and they are ambiguous.

    Returns:
        Whether there was a warning.
    """
    if space.usual_std is None:
        return False
    likely = normalisation_of(latent, space)
    _, std = moments(latent)
    low, high = space.usual_std
    if said == "vae" and likely == "model":
        notices.warn(
            "normalised twice", f"the latent is normalised already (standard deviation {std:.2f}): {_SAY_MODEL}"
        )
    elif said == "vae" and patched and low <= std <= high:
        notices.warn(
            "normalised packed",
            "a packed or patchified latent is normalised already as diffusers' pipelines return it: if it is from one "
            f"of them, {_SAY_MODEL}",
        )
    elif said != "vae" and likely == "vae":
        notices.warn(
            "not normalised",
            f"the latent's numbers (standard deviation {std:.2f}, where {low:g} to {high:g} is usual) are not "
            f"normalised: {_say_vae(space)}",
        )
    elif said is None and likely is None and not patched and low <= std <= high:
        notices.warn(
            "normalisation",
            "the numbers do not show the latent's normalisation, and the diffusion model's is assumed: "
            f"{_say_vae(space)}, or normalisation='model' (--normalisation model) if they are not",
        )
    else:
        return False
    return True


def _check_values(
    latent: FloatArray, space: LatentSpace, said: Normalisation | None, doubtful: bool, notices: Notices
) -> None:
    """Refuse numbers that cannot be a latent in the model's normalisation, and warn about unusual ones.

    There is no warning if the normalisation is already known to be doubtful.
    """
    mean, std = moments(latent)
    low, high = space.usual_std or (0.0, IMPOSSIBLE_STD)
    found = f"the latent's standard deviation is {std:.2f}, where {low:g} to {high:g} is usual"
    if std > IMPOSSIBLE_STD:
        of_vae = said != "vae" and low <= std / float(np.mean(space.vae_std)) <= high
        raise LatentError(f"{found}: these are not a latent's numbers" + (f"; {_say_vae(space)}" if of_vae else ""))
    if doubtful:
        return
    if not low <= std <= high:
        notices.warn(
            "deviation", f"{found}: expect a poor picture, unless a scaling after the sampler is left out or added"
        )
    elif space.usual_mean is not None and abs(mean) > space.usual_mean:
        notices.warn(
            "mean",
            f"the latent's mean is {mean:.2f}, where 0 is usual: expect wrong colours, unless a shift after the "
            "sampler is left out or added",
        )
