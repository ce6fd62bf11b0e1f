"""Array types, and the conversion of decoded floats to levels."""

import math
import sys
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from infgen_rt.common.arrays import as_array
from infgen_rt.errors import InputError

FloatArray = npt.NDArray[np.float32]
ByteArray = npt.NDArray[np.uint8]
LevelArray = npt.NDArray[np.uint8 | np.uint16]
Bits = Literal[8, 16]
Level = type[np.uint8] | type[np.uint16]
Number = Level | type[np.float32]
"""The type of a channel's value: a level, whose largest value stands for 1.0, or an unclamped float, about [0, 1]."""

LARGEST: dict[Number, float] = {np.uint8: 255.0, np.uint16: 65535.0}
"""The largest level of each type, which stands for 1.0."""


class DevicePixels(Protocol):
    """float32 planes [3, h, w] on a backend's device. Only the part that is needed is copied from there."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape."""
        ...

    def __getitem__(self, index: Any) -> Any:
        """A part of the pixels, on the same device."""
        ...

    def isfinite(self) -> Any:
        """Whether each value is finite, as an object with a method `all`."""
        ...

    def fetch(self, number: Number) -> npt.NDArray[Any]:
        """The pixels as a NumPy array, converted as in the function `fetch`."""
        ...


def fetch(planes: "FloatArray | DevicePixels", number: Number) -> npt.NDArray[Any]:
    """Convert decoded pixels to levels or floats, as a NumPy array.

    Levels are clamped and rounded, with halves rounded up. Floats are unchanged.

    Args:
        planes: float32 [3, h, w], about [0, 1].
        number: the type of the result.

    Returns:
        `number` [3, h, w].
    """
    if not isinstance(planes, np.ndarray):
        return planes.fetch(number)
    if number is np.float32:
        return planes
    levels = np.clip(planes, 0.0, 1.0)
    # These operations are in place to save memory.
    levels *= LARGEST[number]
    levels += 0.5
    return levels.astype(number)


def to_floats(planes: FloatArray) -> FloatArray:
    """Clamp decoded pixels.

    Args:
        planes: float32 [3, h, w], about [0, 1].

    Returns:
        float32 [h, w, 3] in [0, 1].
    """
    return np.clip(planes, 0.0, 1.0).transpose(1, 2, 0)


def interleaved(planes: npt.NDArray[Any], number: type[np.uint8] | type[np.float32]) -> npt.NDArray[Any]:
    """Convert planes from `fetch`, [3, h, w], to pixels [h, w, 3] of the same type. Floats are clamped to [0, 1]."""
    # A copy in any case: for a single pixel, the transposed planes are contiguous already, and may be in a cache.
    return planes.transpose(1, 2, 0).copy() if number is np.uint8 else to_floats(planes)


def to_bytes(planes: FloatArray) -> ByteArray:
    """Convert decoded pixels to 8 bits like `fetch`, but interleaved: uint8 [h, w, 3]."""
    return fetch(planes, np.uint8).transpose(1, 2, 0)


_OVERSHOOT = 0.25
"""How far a picture may exceed [0, 1], as resampling makes it."""


def as_pixels(value: Any) -> FloatArray | ByteArray:
    """Check the pixels of a caller's picture.

    Args:
        value: an array, a tensor, or anything that NumPy reads.

    Returns:
        [h, w, 3], either uint8 or float32. Floats are about in [0, 1], but not clamped.

    Raises:
        InputError: it cannot be converted to an array, or its shape, type or numbers are not those of a picture.
    """
    if isinstance(value, (str, bytes, Path)):
        raise InputError("pixels are expected, and not the name of a file: open it first, as PIL.Image.open does")
    # Other modes may have three channels that are not red, green and blue.
    if (pillow := sys.modules.get("PIL.Image")) and isinstance(value, pillow.Image) and value.mode != "RGB":
        raise InputError(f"a Pillow image of mode {value.mode} is not in sRGB: pass image.convert('RGB')")
    array = as_array(value, "picture", InputError)
    shaped = array.ndim == 3 and array.shape[2] == 3 and 0 not in array.shape
    if not shaped or (array.dtype != np.uint8 and array.dtype.kind != "f"):
        raise InputError(
            f"{array.dtype} {list(array.shape)} are not pixels: expected uint8, or float32 in [0, 1], of the shape "
            "[height, width, 3]"
        )
    if array.dtype == np.uint8:
        return array
    with np.errstate(over="ignore"):
        floats = array.astype(np.float32, copy=False)
    if not np.isfinite(floats).all():
        raise InputError("the picture has pixels that are NaN or infinite: pass numbers in [0, 1]")
    low, high = float(floats.min()), float(floats.max())
    if low < -_OVERSHOOT or high > 1 + _OVERSHOOT:
        remedy = "divide them by 255" if low >= 0 else "pass (x + 1) / 2 if they are in [-1, 1]"
        raise InputError(f"the picture has pixels from {low:.3g} to {high:.3g}, and not in [0, 1]: {remedy}")
    return floats


def psnr(picture: npt.NDArray[Any], truth: npt.NDArray[Any], largest: float = 1.0) -> float:
    """Peak signal-to-noise ratio in decibels.

    Args:
        picture: an array of any shape.
        truth: the true picture, of the same shape.
        largest: the full scale, which is 255 for bytes.

    Returns:
        The PSNR. It is infinity if they are equal, and minus infinity if not all values are finite.
    """
    with np.errstate(invalid="ignore"):
        error = float(np.square(np.subtract(picture, truth, dtype=np.float64)).mean())
    if not math.isfinite(error):
        return -math.inf
    return math.inf if error == 0 else 10 * math.log10(largest**2 / error)


def level_type(bits: Bits) -> Level:
    """NumPy's type for levels with this number of bits."""
    return np.uint8 if bits == 8 else np.uint16
