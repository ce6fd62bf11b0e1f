"""Converts tensors, arrays and nested lists to arrays of float32."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from infgen_rt.common.arrays import as_array
from infgen_rt.common.pixels import FloatArray
from infgen_rt.errors import LatentError
from infgen_rt.latent.files import Stored


def as_float32(value: Any) -> FloatArray:
    """The numbers of what `as_latents` takes, in their own shape.

    Raises:
        LatentError: it cannot be converted to an array, it has no floating-point numbers, or some are masked.
    """
    if isinstance(value, Stored):
        value = value.array
    if isinstance(value, (str, bytes, Path)):
        raise LatentError("a latent's numbers are expected, and not the name of a file: load_latent reads one")
    if isinstance(value, Mapping):
        raise LatentError(
            f"a latent's numbers are expected, and not a {type(value).__name__}: pass its array, as value['samples'] "
            "for a LATENT of ComfyUI"
        )
    if isinstance(value, Iterator):
        raise LatentError("a latent's numbers are expected, and not a generator of latents: pass a list or an array")
    if hasattr(value, "getbands"):  # of Pillow, which is not imported for this
        raise LatentError("a latent is expected, and not a picture: Decoder.encode makes a latent of one")
    if hasattr(value, "latent"):
        raise LatentError(
            f"a latent's numbers are expected, and not a {type(value).__name__}: pass its latent attribute"
        )
    if "float8" in str(getattr(value, "dtype", "")):
        raise LatentError("numbers are float8, which keeps too little of a latent: pass those before the conversion")
    array = as_array(value, "latent", LatentError)
    if array.dtype.kind != "f" and array.dtype.name != "bfloat16":
        raise LatentError(
            f"numbers are {_dtype_name(array)}, and a latent's are float16, bfloat16, float32 or float64: convert them "
            "to float32, if they are those of the latent"
        )
    with np.errstate(over="ignore"):
        return array.astype(np.float32)


def _dtype_name(array: np.ndarray) -> str:
    """The usual name of a dtype. NumPy has no names for float8, which .npy stores as bytes."""
    if array.dtype.kind == "V" and array.dtype.names is None and array.dtype.itemsize == 1:
        return "of one byte each, as .npy keeps float8"
    return str(array.dtype)
