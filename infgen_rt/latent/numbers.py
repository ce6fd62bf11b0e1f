"""Converts tensors, arrays and nested lists to arrays of float32."""

import sys
from pathlib import Path
from typing import Any

import numpy as np

from infgen_rt.common.callers import raise_callers
from infgen_rt.common.pixels import FloatArray
from infgen_rt.errors import LatentError, one_line
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
    array = _as_array(value)
    if array.dtype.kind != "f" and array.dtype.name != "bfloat16":
        raise LatentError(
            f"numbers are {_dtype_name(array)}, and a latent's are float16, bfloat16, float32 or float64: convert them "
            "to float32, if they are those of the latent"
        )
    # Without this module there are no masked arrays. Importing it for nothing would take 20 ms.
    if "numpy.ma" in sys.modules and np.ma.is_masked(value):
        raise LatentError("some of the latent's numbers are masked: fill them first, as value.filled(0) does")
    with np.errstate(over="ignore"):
        return array.astype(np.float32)


def _as_array(value: Any) -> np.ndarray:
    """An array of a tensor, of tensors in a list or tuple, or of anything that NumPy reads."""
    try:
        if isinstance(value, (list, tuple)):
            value = [_array_of_tensor(each) if hasattr(each, "detach") else each for each in value]
        return np.asarray(_array_of_tensor(value) if hasattr(value, "detach") else value)
    # A tensor without numbers, or of a layout that NumPy lacks, may raise any exception of its library.
    except Exception as error:
        raise_callers(error)
        if isinstance(error, ValueError) and isinstance(value, list):
            raise LatentError("the latent's parts have different shapes: pass each by itself") from None
        raise LatentError(
            f"the {type(value).__name__} cannot be converted to an array: {one_line(error)}; pass a NumPy array, or a "
            "dense tensor of floating-point numbers"
        ) from None


def _array_of_tensor(tensor: Any) -> np.ndarray:
    """An array of a torch tensor, which is recognised by its methods, because torch is not imported here."""
    tensor = tensor.detach().cpu()
    if not tensor.is_floating_point():
        return np.asarray(tensor.numpy())
    tensor = tensor.float()
    # A negated view has no array of its own.
    return np.asarray((tensor.resolve_neg() if hasattr(tensor, "resolve_neg") else tensor).numpy())


def _dtype_name(array: np.ndarray) -> str:
    """The usual name of a dtype. NumPy has no names for float8, which .npy stores as bytes."""
    if array.dtype.kind == "V" and array.dtype.names is None and array.dtype.itemsize == 1:
        return "of one byte each, as .npy keeps float8"
    return str(array.dtype)
