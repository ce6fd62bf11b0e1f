"""Writing pictures: formats and limits, a streaming PNG encoder, files that appear whole or not at all."""

import secrets
import struct
import zlib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np

from .errors import OutputError, WriteError
from .geometry import Size
from .pixels import ByteArray

_PAETH = 4  # the number of the filter in PNG


class Writer(Protocol):
    """Takes a picture from top to bottom."""

    def write(self, band: ByteArray) -> None:
        """Take the next rows: uint8 [rows, width, 3]. The array is not used after the next `write` begins."""
        ...

    def finish(self) -> None:
        """Write what is left; the file is complete after it."""
        ...

    def close(self) -> None:
        """Free everything, finished or not."""
        ...


@dataclass(frozen=True)
class Format:
    """A file format.

    Attributes:
        name: Pillow's name for it.
        max_side: the longest side that it can hold, in pixels.
        streams: whether it is written band by band; if not, the whole picture is held in memory.
        options: what Pillow is told when it saves.
    """

    name: str
    max_side: int
    streams: bool
    options: dict[str, Any]


_JPEG = Format("JPEG", 65_500, False, {"quality": 95, "subsampling": 0})
_TIFF = Format("TIFF", 2**31 - 1, False, {"compression": "tiff_adobe_deflate"})
FORMATS = {
    ".png": Format("PNG", 2**31 - 1, True, {}),
    ".jpg": _JPEG,
    ".jpeg": _JPEG,
    ".webp": Format("WEBP", 16_383, False, {"quality": 95, "method": 4}),
    ".tif": _TIFF,
    ".tiff": _TIFF,
}


def check_output(path: Path, size: Size, force: bool) -> Format:
    """Check that a picture can be written, before anything is decoded.

    Raises:
        OutputError: the format is unknown or cannot hold the size, the folder is missing, or the file exists and
            is not replaced.
    """
    form = FORMATS.get(path.suffix.lower())
    if form is None:
        raise OutputError(f"{path} has no known picture format: expected a name ending in {', '.join(FORMATS)}")
    if max(size) > form.max_side:
        raise OutputError(
            f"{form.name} holds at most {form.max_side:,} pixels a side and the picture is {size}: write .png or .tif"
        )
    if not path.parent.is_dir():
        raise OutputError(f"cannot write in {path.parent}: there is no such folder")
    if path.is_dir() or (path.exists() and not force):
        remedy = "it is a folder" if path.is_dir() else "pass force=True (--force) to replace it"
        raise OutputError(f"{path} exists: {remedy}")
    return form


@contextmanager
def open_writer(path: Path, size: Size, force: bool = False) -> Iterator[Writer]:
    """Open a picture file that appears under its name only when it is complete.

    Bands go to a temporary file beside it, which is renamed when the block ends and removed when it fails.

    Args:
        path: the file; its ending chooses the format.
        size: the picture's width and height.
        force: replace an existing file.

    Raises:
        OutputError: see `check_output`, or the folder cannot be written in.
        WriteError: writing failed half-way, for example because the disk is full.
    """
    form = check_output(path, size, force)
    part = path.with_name(f".{path.name[:200]}.{secrets.token_hex(4)}.part")
    file = _create(part)
    try:
        with file:
            writer: Writer = _PngWriter(file, size) if form.streams else _PillowWriter(file, size, form)
            try:
                yield writer
                writer.finish()
            finally:
                writer.close()
        # Once more: another program may have made the file meanwhile.
        check_output(path, size, force)
        part.replace(path)
    except OSError as error:
        raise WriteError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        part.unlink(missing_ok=True)


def _create(path: Path) -> BinaryIO:
    try:
        return path.open("xb")
    except OSError as error:
        raise OutputError(f"cannot write in {path.parent}: {error.strerror}") from None


class _PngWriter:
    """8-bit sRGB PNG; a thread compresses one band while the next is decoded."""

    # Pixels filtered at once: enough to keep NumPy busy, few enough that temporaries stay small.
    _PIXELS = 2**16

    def __init__(self, file: BinaryIO, size: Size) -> None:
        self._file = file
        self._zlib = zlib.compressobj(level=4, strategy=zlib.Z_FILTERED)
        self._above = np.zeros((1, 3 * size.width), np.uint8)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="infgen-png")
        self._pending: Future[None] | None = None
        file.write(b"\x89PNG\r\n\x1a\n")
        self._chunk(b"IHDR", struct.pack(">IIBBBBB", *size, 8, 2, 0, 0, 0))
        self._chunk(b"sRGB", b"\0")

    def write(self, band: ByteArray) -> None:
        self._wait()
        self._pending = self._pool.submit(self._compress, band)

    def finish(self) -> None:
        self._wait()
        self._chunk(b"IDAT", self._zlib.flush())
        self._chunk(b"IEND", b"")

    def close(self) -> None:
        self._pool.shutdown()

    def _wait(self) -> None:
        if self._pending is not None:
            self._pending.result()

    def _compress(self, band: ByteArray) -> None:
        rows = band.reshape(len(band), -1)
        count = max(1, self._PIXELS // band.shape[1])
        for start in range(0, len(rows), count):
            part = rows[start : start + count]
            filtered = _filter(part, self._above)
            self._above = part[-1:].copy()
            if data := self._zlib.compress(filtered.data):
                self._chunk(b"IDAT", data)

    def _chunk(self, kind: bytes, data: bytes) -> None:
        checksum = zlib.crc32(data, zlib.crc32(kind))
        self._file.write(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum))


def _filter(rows: ByteArray, above: ByteArray) -> ByteArray:
    """Filter rows with Paeth's predictor, the one that photographs compress best with on the whole.

    Args:
        rows: uint8 [n, 3 * width].
        above: uint8 [1, 3 * width], the row before the first.

    Returns:
        uint8 [n, 1 + 3 * width], each row led by the filter's number.
    """
    corners = np.zeros((len(rows) + 1, rows.shape[1] + 3), np.int16)
    corners[0, 3:], corners[1:, 3:] = above, rows
    corner, up, left = corners[:-1, :-3], corners[:-1, 3:], corners[1:, :-3]
    to_left, to_up, to_corner = np.abs(up - corner), np.abs(left - corner), np.abs(left + up - 2 * corner)
    guess = np.where((to_left <= to_up) & (to_left <= to_corner), left, np.where(to_up <= to_corner, up, corner))
    filtered = np.full((len(rows), 1 + rows.shape[1]), _PAETH, np.uint8)
    np.subtract(rows, guess.astype(np.uint8), out=filtered[:, 1:])
    return filtered


class _PillowWriter:
    """Gathers the whole picture and lets Pillow encode it."""

    def __init__(self, file: BinaryIO, size: Size, form: Format) -> None:
        self._file = file
        self._form = form
        self._image = np.empty((size.height, size.width, 3), np.uint8)
        self._filled = 0

    def write(self, band: ByteArray) -> None:
        self._image[self._filled : self._filled + len(band)] = band
        self._filled += len(band)

    def finish(self) -> None:
        from PIL import Image

        Image.fromarray(self._image).save(self._file, self._form.name, **self._form.options)

    def close(self) -> None:
        self._image = np.empty((0, 0, 3), np.uint8)
