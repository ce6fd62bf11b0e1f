"""Frames: pixels in the order and with the stride that a toolkit's image takes without a copy."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from infgen_rt.common.pixels import ByteArray
from infgen_rt.geometry.shapes import Size

Order = Literal["rgb", "bgra"]
"""`rgb` has 3 bytes per pixel (`QImage.Format_RGB888`), and `bgra` has 4 (`QImage.Format_RGB32`, Cairo, Win32)."""

_CHANNELS: dict[Order, int] = {"rgb": 3, "bgra": 4}
# Toolkits expect each row to start at a multiple of this.
_ALIGNED = 4
_OPAQUE = 255


@dataclass(frozen=True, eq=False)
class Frame:
    """Pixels in memory. `QImage(frame.rows.data, *frame.size, frame.stride, format)` shows them without a copy.

    Attributes:
        rows: uint8 [height, stride], contiguous. Bytes after a row's last pixel have no meaning.
        size: width and height in pixels.
        order: the order of the channels. With `bgra`, the fourth byte of each pixel is 255.
    """

    rows: ByteArray
    size: Size
    order: Order

    @classmethod
    def empty(cls, size: Size, order: Order) -> "Frame":
        """A frame for pixels that are still to be written to `pixels`."""
        width = _CHANNELS[order] * size.width
        stride = -(-width // _ALIGNED) * _ALIGNED
        return cls(np.full((size.height, stride), _OPAQUE, np.uint8), size, order)

    @property
    def stride(self) -> int:
        """Bytes from the start of a row to that of the next."""
        return int(self.rows.shape[1])

    @property
    def pixels(self) -> ByteArray:
        """A view of the pixels as uint8 [height, width, 3] in the order red, green, blue."""
        channels = _CHANNELS[self.order]
        used = self.rows[:, : channels * self.size.width]
        pixels: ByteArray = used.reshape(self.size.height, self.size.width, channels)
        return pixels[:, :, 2::-1] if self.order == "bgra" else pixels
