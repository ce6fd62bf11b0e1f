"""PNG, which is written while the picture is decoded."""

import struct
import zlib
from collections.abc import Sequence
from concurrent.futures import Future
from contextvars import copy_context
from pathlib import Path
from typing import BinaryIO

import numpy as np

from infgen_rt.common.cancellation import current
from infgen_rt.common.pixels import Bits, ByteArray, LevelArray
from infgen_rt.common.threads import Pool
from infgen_rt.geometry.shapes import Size
from infgen_rt.writers.formats import Format, Layer
from infgen_rt.writers.metadata import Metadata

_PAETH = 4  # the number of the filter
# The number of pixels to filter at once. It is large enough for NumPy to be fast, and keeps temporary arrays small.
_PIXELS = 2**16


class Png(Format):
    """PNG with 8 or 16 bits. A thread compresses one band while the next is decoded.

    Args:
        metadata: text for the chunks before the pixels.
    """

    name = "PNG"
    max_side = 2**31 - 1
    bits = (8, 16)

    def __init__(self, metadata: Metadata | None = None) -> None:
        self._metadata = metadata or {}

    def with_metadata(self, metadata: Metadata) -> "Png":
        return Png(metadata)

    def memory(self, size: Size, bits: Bits) -> int:
        return 0

    def write(self, path: Path, layers: Sequence[Layer]) -> None:
        layer = layers[0]
        with path.open("xb") as file, Pool(1, thread_name_prefix="infgen-png") as pool:
            encoder = _Encoder(file, layer.size, layer.bits, self._metadata)
            pending: Future[None] | None = None
            for band in layer.bands:
                if pending is not None:
                    pending.result()
                pending = pool.submit(copy_context().run, encoder.compress, band)
            if pending is not None:
                pending.result()
            encoder.finish()


class _Encoder:
    def __init__(self, file: BinaryIO, size: Size, bits: Bits, metadata: Metadata) -> None:
        self._file = file
        self._zlib = zlib.compressobj(level=4, strategy=zlib.Z_FILTERED)
        self._above = np.zeros((1, size.width * 3 * bits // 8), np.uint8)
        file.write(b"\x89PNG\r\n\x1a\n")
        self._chunk(b"IHDR", struct.pack(">IIBBBBB", *size, bits, 2, 0, 0, 0))
        self._chunk(b"sRGB", b"\0")
        for key, text in metadata.items():
            self._chunk(*_text_chunk(key, text))

    def compress(self, band: LevelArray) -> None:
        count = max(1, _PIXELS // band.shape[1])
        for start in range(0, len(band), count):
            current().check()
            levels = band[start : start + count]
            rows = levels.astype(levels.dtype.newbyteorder(">"), copy=False).view(np.uint8).reshape(len(levels), -1)
            filtered = _filter(rows, self._above, 3 * band.itemsize)
            self._above = rows[-1:].copy()
            if data := self._zlib.compress(filtered.data):
                self._chunk(b"IDAT", data)

    def finish(self) -> None:
        self._chunk(b"IDAT", self._zlib.flush())
        self._chunk(b"IEND", b"")

    def _chunk(self, kind: bytes, data: bytes) -> None:
        checksum = zlib.crc32(data, zlib.crc32(kind))
        self._file.write(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum))


def _text_chunk(key: str, text: str) -> tuple[bytes, bytes]:
    """The kind and the data of a chunk for text.

    By the specification, tEXt is Latin-1. Some readers, such as ComfyUI's page, read it as UTF-8. It is therefore used
    only for ASCII, which is the same in both. Other text is in iTXt.
    """
    keyword = key.encode("latin-1") + b"\0"
    if text.isascii():
        return b"tEXt", keyword + text.encode()
    # The text is not compressed, and has no language and no translated key.
    return b"iTXt", keyword + bytes(4) + text.encode()


def _filter(rows: ByteArray, above: ByteArray, pixel: int) -> ByteArray:
    """Filter rows with the Paeth filter, with which photographs usually compress best.

    Args:
        rows: uint8 [n, pixel * width].
        above: uint8 [1, pixel * width], the row above the first one.
        pixel: the number of bytes per pixel.

    Returns:
        uint8 [n, 1 + pixel * width], with the filter's number before each row.
    """
    corners = np.zeros((len(rows) + 1, rows.shape[1] + pixel), np.int16)
    corners[0, pixel:], corners[1:, pixel:] = above, rows
    corner, up, left = corners[:-1, :-pixel], corners[:-1, pixel:], corners[1:, :-pixel]
    to_left, to_up, to_corner = np.abs(up - corner), np.abs(left - corner), np.abs(left + up - 2 * corner)
    guess = np.where((to_left <= to_up) & (to_left <= to_corner), left, np.where(to_up <= to_corner, up, corner))
    filtered = np.full((len(rows), 1 + rows.shape[1]), _PAETH, np.uint8)
    np.subtract(rows, guess.astype(np.uint8), out=filtered[:, 1:])
    return filtered
