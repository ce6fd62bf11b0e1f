"""Array types, and the one place where decoded floats become colours."""

import math
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
ByteArray = npt.NDArray[np.uint8]
LevelArray = npt.NDArray[np.uint8 | np.uint16]
Bits = Literal[8, 16]
Level = type[np.uint8] | type[np.uint16]
Number = Level | type[np.float32]
"""What a colour is: a level, the largest of which is 1.0, or a float, about [0, 1] and not clamped."""

LARGEST: dict[Number, float] = {np.uint8: 255.0, np.uint16: 65535.0}
"""The level that 1.0 is."""


class DevicePixels(Protocol):
    """float32 planes [3, h, w] where a backend computes, so that only what is wanted of them is copied from there."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its sides."""
        ...

    def __getitem__(self, index: Any) -> Any:
        """A part of it, in the same place."""
        ...

    def isfinite(self) -> Any:
        """Whether each of them is neither NaN nor infinite; has a method `all`."""
        ...

    def fetch(self, number: Number) -> npt.NDArray[Any]:
        """A NumPy array of it: as `fetch` gives."""
        ...


def fetch(planes: "FloatArray | DevicePixels", number: Number) -> npt.NDArray[Any]:
    """Decoded pixels as numbers of a kind: clamped and rounded to levels, halves upwards, or as they are.

    Args:
        planes: float32 [3, h, w], about [0, 1].
        number: what a colour shall be.

    Returns:
        The same shape.
    """
    if not isinstance(planes, np.ndarray):
        return planes.fetch(number)
    if number is np.float32:
        return planes
    levels = np.clip(planes, 0.0, 1.0)
    # In place: these arrays are as large as a tile.
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


def to_bytes(planes: FloatArray) -> ByteArray:
    """What `fetch` gives for 8 bits, as pixels: uint8 [h, w, 3]."""
    return fetch(planes, np.uint8).transpose(1, 2, 0)


def psnr(picture: npt.NDArray[Any], truth: npt.NDArray[Any], largest: float = 1.0) -> float:
    """Peak signal-to-noise ratio in decibels.

    Args:
        picture: of any shape.
        truth: of the same.
        largest: full scale, 255 for bytes.

    Returns:
        Infinity if they are equal, minus infinity if not all is finite.
    """
    with np.errstate(invalid="ignore"):
        error = float(np.square(np.subtract(picture, truth, dtype=np.float64)).mean())
    if not math.isfinite(error):
        return -math.inf
    return math.inf if error == 0 else 10 * math.log10(largest**2 / error)


def level_type(bits: Bits) -> Level:
    """NumPy's type for levels of so many bits."""
    return np.uint8 if bits == 8 else np.uint16
