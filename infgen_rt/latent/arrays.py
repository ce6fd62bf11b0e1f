"""Latents as they come from pipelines and files, checked and turned into float32 [channels, h, w]."""

import warnings
from collections.abc import Sequence
from math import isqrt
from pathlib import Path
from typing import Any, Literal

import numpy as np

from infgen_rt.common.pixels import FloatArray
from infgen_rt.errors import InfGenWarning, LatentError
from infgen_rt.geometry.shapes import Size
from infgen_rt.latent.files import read_array
from infgen_rt.latent.spaces import LatentSpace, latent_space

Normalisation = Literal["model", "vae"]
IMPOSSIBLE_STD = 5.0


def load_latent(
    path: str | Path,
    *,
    key: str | None = None,
    space: str = "flux2",
    normalisation: Normalisation = "model",
    latent_size: tuple[int, int] | None = None,
) -> FloatArray:
    """Read a latent from a file.

    Args:
        path: a .npy, .npz or .safetensors file of float16, bfloat16, float32 or float64 numbers.
        key: the array's name in a file of several; not needed for one, or for the usual names.
        space: the latent space it is in.
        normalisation: see `as_latent`.
        latent_size: see `as_latent`.

    Returns:
        float32 [channels, h, w].

    Raises:
        LatentError: the file or the latent is not usable.
    """
    array, _ = read_array(path, key)
    try:
        return as_latent(array, latent_space(space), normalisation=normalisation, latent_size=latent_size)
    except LatentError as error:
        raise LatentError(f"{path}: {error}") from None


def as_latent(
    value: Any,
    space: LatentSpace,
    *,
    normalisation: Normalisation = "model",
    latent_size: tuple[int, int] | None = None,
) -> FloatArray:
    """Turn what a pipeline returns into a latent that can be decoded.

    Args:
        value: a NumPy array, a torch tensor or anything that NumPy reads, in one of the shapes (each with or
            without a batch axis of 1)
            [C, h, w], the latent itself;
            [4C, h/2, w/2], patchified 2x2, as the transformer's VAE side has it;
            [h/2 * w/2, 4C], packed into a sequence, which needs `latent_size`.
        space: the latent space it is in.
        normalisation: `model` when the numbers are what the diffusion transformer works on, `vae` when they
            are the VAE's own (batch norm undone), as diffusers' Flux2Pipeline returns them with
            `output_type="latent"`.
        latent_size: width and height in pixels that the pipeline was asked for; only for packed latents.

    Returns:
        float32 [C, h, w], finite, contiguous. Statistics that are not those of a latent give a warning.

    Raises:
        LatentError: shape, channels, dtype or numbers rule it out.
    """
    latent = _unpack(_as_float32(value), space, latent_size)
    _check_finite(latent)
    if normalisation == "vae":
        latent = space.normalise(latent)
    elif normalisation != "model":
        raise LatentError(f"normalisation {normalisation!r} is unknown: expected 'model' or 'vae'")
    _check_statistics(latent, space, normalisation)
    return np.ascontiguousarray(latent)


def native_size(value: Any, space: LatentSpace, *, latent_size: tuple[int, int] | None = None) -> Size:
    """Size in pixels of the picture that a latent is at scale 1; arguments and errors as `as_latent`'s."""
    return space.native_size(_unpack(_as_float32(value), space, latent_size))


def _as_float32(value: Any) -> FloatArray:
    if hasattr(value, "detach"):  # a torch tensor, known by its manners: this package never imports torch
        value = value.detach().cpu()
        value = (value.float() if value.is_floating_point() else value).numpy()
    array = np.asarray(value)
    if array.dtype.kind != "f" and array.dtype.name != "bfloat16":
        raise LatentError(f"numbers are {array.dtype}: a latent is float16, bfloat16, float32 or float64")
    with np.errstate(over="ignore"):
        return array.astype(np.float32)


def _unpack(array: FloatArray, space: LatentSpace, latent_size: tuple[int, int] | None) -> FloatArray:
    """Drop the batch axis and undo packing: [C, h, w] whatever came in."""
    channels, packed = space.channels, 4 * space.channels
    shape = list(array.shape)
    if array.ndim == 4 or (array.ndim == 3 and shape[2] == packed and shape[0] not in (channels, packed)):
        if shape[0] != 1:
            raise LatentError(f"shape {shape} is a batch of {shape[0]}: decode one at a time, as latent[i]")
        array = array[0]
    if 0 not in shape:
        if array.ndim == 2 and array.shape[1] == packed:
            array = _unpack_sequence(array, 2 * space.cell_pixels, latent_size)
        if array.ndim == 3 and array.shape[0] == packed:
            return _unpatchify(array)
        if array.ndim == 3 and array.shape[0] == channels:
            return array
    raise LatentError(
        f"shape {shape} is not a latent's: expected [{channels}, h, w], [{packed}, h/2, w/2] or "
        f"[tokens, {packed}], with or without a batch axis of 1"
    )


def _unpack_sequence(array: FloatArray, token: int, latent_size: Sequence[int] | None) -> FloatArray:
    """[h/2 * w/2, 4C] to [4C, h/2, w/2]; pipelines floor their size to whole tokens of so many pixels."""
    count = len(array)
    if latent_size is None:
        side = isqrt(count)
        guess = f", which a {token * side}x{token * side} picture gives" if side * side == count else ""
        raise LatentError(
            f"{count} packed tokens{guess}: say the pipeline's width and height in pixels "
            "(latent_size=(w, h), or --latent-size WxH)"
        )
    width, height = (side // token for side in latent_size)
    if width < 1 or height < 1 or width * height != count:
        sizes = f"{latent_size[0]}x{latent_size[1]}"
        raise LatentError(f"{count} packed tokens do not make a latent of {sizes} pixels, which has {width * height}")
    return array.T.reshape(-1, height, width)


def _unpatchify(array: FloatArray) -> FloatArray:
    """[4C, h, w] to [C, 2h, 2w], where patchified channel = channel * 4 + row * 2 + column."""
    channels, height, width = array.shape
    blocks = array.reshape(channels // 4, 2, 2, height, width)
    return blocks.transpose(0, 3, 1, 4, 2).reshape(channels // 4, 2 * height, 2 * width)


def _check_finite(latent: FloatArray) -> None:
    bad = ~np.isfinite(latent)
    if bad.any():
        first = ", ".join(str(int(index)) for index in np.argwhere(bad)[0])
        raise LatentError(f"{int(bad.sum()):,} of {latent.size:,} numbers are NaN or infinite, the first at [{first}]")


def _check_statistics(latent: FloatArray, space: LatentSpace, normalisation: Normalisation) -> None:
    mean, std = float(latent.mean(dtype=np.float64)), float(latent.std(dtype=np.float64))
    low, high = space.usual_std or (0.0, IMPOSSIBLE_STD)
    found = f"the latent's standard deviation is {std:.2f}, where {low:g} to {high:g} is usual"
    other_way = {
        "model": "if it has the VAE's own normalisation, as diffusers' output_type='latent' returns for FLUX.2, "
        "pass normalisation='vae' (--normalisation vae)",
        "vae": "if it is already normalised, leave out normalisation='vae' (--normalisation vae)",
    }
    if std > IMPOSSIBLE_STD:
        raise LatentError(f"{found}: these are not a latent's numbers; {other_way['model']}")
    if std > high and normalisation == "model":
        _warn(f"{found}: {other_way['model']}")
    elif std < low and normalisation == "vae":
        _warn(f"{found}: {other_way['vae']}")
    elif not low <= std <= high:
        _warn(f"{found}: expect a poor picture")
    elif space.usual_mean is not None and abs(mean) > space.usual_mean:
        _warn(f"the latent's mean is {mean:.2f}, where 0 is usual: expect wrong colours")


def _warn(text: str) -> None:
    warnings.warn(text, InfGenWarning, stacklevel=5)
