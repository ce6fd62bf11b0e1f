"""Array types, and the one place where decoded floats become colours."""

from typing import Literal

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
ByteArray = npt.NDArray[np.uint8]
LevelArray = npt.NDArray[np.uint8 | np.uint16]
Bits = Literal[8, 16]


def to_floats(planes: FloatArray) -> FloatArray:
    """Clamp decoded pixels.

    Args:
        planes: float32 [3, h, w], about [0, 1].

    Returns:
        float32 [h, w, 3] in [0, 1].
    """
    return np.clip(planes, 0.0, 1.0).transpose(1, 2, 0)


def to_levels(planes: FloatArray, bits: Bits) -> LevelArray:
    """Clamp decoded pixels and round them, halves upwards.

    Args:
        planes: float32 [3, h, w], about [0, 1].
        bits: of a level; the largest level, 255 or 65,535, is 1.0.

    Returns:
        uint8 or uint16 [h, w, 3].
    """
    levels = np.clip(planes, 0.0, 1.0)
    # In place: these arrays are as large as a tile.
    levels *= 2.0**bits - 1.0
    levels += 0.5
    rounded = levels.astype(np.uint8) if bits == 8 else levels.astype(np.uint16)
    return rounded.transpose(1, 2, 0)


def to_bytes(planes: FloatArray) -> ByteArray:
    """What `to_levels` gives for 8 bits: uint8 [h, w, 3]."""
    return to_levels(planes, 8).astype(np.uint8, copy=False)


def level_type(bits: Bits) -> type[np.uint8 | np.uint16]:
    """NumPy's type for levels of so many bits."""
    return np.uint8 if bits == 8 else np.uint16
