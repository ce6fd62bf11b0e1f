"""Converts what callers pass as numbers, such as tensors and nested lists, to NumPy arrays."""

import sys
from typing import Any

import numpy as np

from infgen_rt.common.callers import raise_callers
from infgen_rt.errors import InfGenError, one_line


def as_array(value: Any, what: str, error: type[InfGenError]) -> np.ndarray:
    """An array of a tensor, of tensors in a list or tuple, or of anything that NumPy reads.

    Args:
        value: the numbers.
        what: what they are, for messages.
        error: the type of the error to raise.

    Raises:
        InfGenError: of the given type. The value cannot be converted, or some of its numbers are masked.
    """
    try:
        if isinstance(value, (list, tuple)):
            value = [_array_of_tensor(each) if hasattr(each, "detach") else each for each in value]
        array = np.asarray(_array_of_tensor(value) if hasattr(value, "detach") else value)
    # A tensor without numbers, or of a layout that NumPy lacks, may raise any exception of its library.
    except Exception as problem:
        raise_callers(problem)
        if isinstance(problem, ValueError) and isinstance(value, list):
            raise error(f"the {what}'s parts have different shapes: pass each by itself") from None
        raise error(
            f"the {type(value).__name__} cannot be converted to an array: {one_line(problem)}; pass a NumPy array, or "
            "a dense tensor of floating-point numbers"
        ) from None
    # Without this module there are no masked arrays. Importing it for nothing would take 20 ms.
    if "numpy.ma" in sys.modules and np.ma.is_masked(value):
        raise error(f"some of the {what}'s numbers are masked: fill them first, as value.filled(0) does")
    return array


def _array_of_tensor(tensor: Any) -> np.ndarray:
    """An array of a torch tensor, which is recognised by its methods, because torch is not imported here."""
    tensor = tensor.detach().cpu()
    if not tensor.is_floating_point():
        return np.asarray(tensor.numpy())
    tensor = tensor.float()
    # A negated view has no array of its own.
    return np.asarray((tensor.resolve_neg() if hasattr(tensor, "resolve_neg") else tensor).numpy())
