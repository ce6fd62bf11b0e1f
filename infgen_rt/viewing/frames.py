"""Frames: pixels whose memory layout lets GUI toolkits show them without a copy."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from infgen_rt.common.arguments import TEXT
from infgen_rt.common.pixels import ByteArray
from infgen_rt.errors import PlanError
from infgen_rt.geometry.shapes import Size

Order = Literal["rgb", "bgra"]
"""`rgb` has 3 bytes per pixel (`QImage.Format_RGB888`), and `bgra` has 4 (`QImage.Format_RGB32`, Cairo, Win32)."""

_CHANNELS: dict[Order, int] = {"rgb": 3, "bgra": 4}
# Toolkits expect each row to start at a multiple of this number of bytes.
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
        """Make a frame whose pixels are written later, through `pixels`.

        Args:
            size: width and height in pixels.
            order: the order of the channels.

        Raises:
            PlanError: the order is unknown.
        """
        TEXT.check(order=order)
        if order not in _CHANNELS:
            raise PlanError(f"order {order!r} of channels is unknown: expected {' or '.join(_CHANNELS)}")
        width = _CHANNELS[order] * size.width
        stride = -(-width // _ALIGNED) * _ALIGNED
        return cls(np.full((size.height, stride), _OPAQUE, np.uint8), size, order)

    @property
    def stride(self) -> int:
        """The number of bytes from the start of one row to the start of the next."""
        return int(self.rows.shape[1])

    @property
    def pixels(self) -> ByteArray:
        """A view of the pixels: uint8 [height, width, 3], with the channels red, green and blue."""
        channels = _CHANNELS[self.order]
        used = self.rows[:, : channels * self.size.width]
        pixels: ByteArray = used.reshape(self.size.height, self.size.width, channels)
        return pixels[:, :, 2::-1] if self.order == "bgra" else pixels
