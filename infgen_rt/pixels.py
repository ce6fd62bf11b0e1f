"""Array types, and the one place where decoded floats become colours."""

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
ByteArray = npt.NDArray[np.uint8]


def to_floats(planes: FloatArray) -> FloatArray:
    """Clamp decoded pixels.

    Args:
        planes: float32 [3, h, w], about [0, 1].

    Returns:
        float32 [h, w, 3] in [0, 1].
    """
    return np.clip(planes, 0.0, 1.0).transpose(1, 2, 0)


def to_bytes(planes: FloatArray) -> ByteArray:
    """Clamp decoded pixels and round them, halves upwards.

    Args:
        planes: float32 [3, h, w], about [0, 1].

    Returns:
        uint8 [h, w, 3].
    """
    levels = np.clip(planes, 0.0, 1.0)
    # In place: these arrays are as large as a tile.
    levels *= 255.0
    levels += 0.5
    return levels.astype(np.uint8).transpose(1, 2, 0)
