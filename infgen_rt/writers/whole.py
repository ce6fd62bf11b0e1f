"""Formats that Pillow encodes. They need the whole picture in memory."""

from collections.abc import Sequence
from io import BufferedWriter, FileIO, UnsupportedOperation
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from infgen_rt.common.callers import raise_callers
from infgen_rt.common.cancellation import current
from infgen_rt.common.pixels import Bits, LevelArray
from infgen_rt.errors import OutputError
from infgen_rt.geometry.shapes import Size
from infgen_rt.writers.formats import Format, Layer
from infgen_rt.writers.metadata import Metadata, exif_of
from infgen_rt.writers.srgb import srgb_profile

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

# JPEG stores EXIF data in one segment. The segment's length is a number of two bytes, and includes these two bytes.
_EXIF_MARK = b"Exif\0\0"
_MAX_SEGMENT = 65_533


class _Whole(Format):
    """Gathers the picture in memory and encodes it with Pillow.

    Args:
        changed: options of Pillow that differ from the format's defaults.

    Attributes:
        options: the options of Pillow.
        exact: the options that are different for a lossless picture. None if the format has no lossless mode.
    """

    options: dict[str, Any]
    exact: dict[str, Any] | None = None

    def __init__(self, **changed: Any) -> None:
        self.options = self.options | changed

    def encoded(self, quality: int | None, lossless: bool) -> Format:
        check_quality(quality)
        if lossless and self.exact is None:
            raise OutputError(f"{self.name} cannot be without loss here: write .webp, .png or .tif")
        if lossless and quality is not None:
            raise OutputError("a picture without loss has no quality: pass one of the two")
        if lossless:
            return type(self)(**self.exact or {})
        return self if quality is None else type(self)(quality=quality)

    def with_metadata(self, metadata: Metadata) -> Format:
        return type(self)(**self.options, exif=exif_of(metadata)) if metadata else self

    def available(self) -> bool:
        from PIL import Image

        Image.init()
        return self.name in Image.SAVE

    def write(self, path: Path, layers: Sequence[Layer]) -> None:
        layer = layers[0]
        image, filled = np.empty((layer.size.height, layer.size.width, 3), np.uint8), 0
        for band in layer.bands:
            image[filled : filled + len(band)] = band
            filled += len(band)
        save_image(image, path, format=self.name, icc_profile=srgb_profile(), **self.options)


def check_quality(quality: int | None) -> None:
    """Raise OutputError if a quality is out of range."""
    if quality is not None and not 1 <= quality <= 100:
        raise OutputError(f"quality {quality} is not possible: expected 1 to 100")


def save_image(pixels: LevelArray, path: Path, **options: Any) -> None:
    """Save uint8 [h, w, 3] with Pillow.

    Args:
        pixels: the picture.
        path: the file, which must not exist.
        options: the options of Pillow's `Image.save`.

    Raises:
        OSError: saving failed for any reason.
    """
    from PIL import Image

    with _Output(FileIO(path, "xb")) as file:
        try:
            Image.fromarray(pixels).save(file, **options)
        except (RuntimeError, ValueError) as error:
            raise_callers(error)
            # Pillow raises these for the errors of an encoder.
            raise OSError(str(error)) from error


class _Output(BufferedWriter):
    """A file that hides its descriptor. Otherwise, Pillow would write to the descriptor and miss some errors."""

    def fileno(self) -> int:
        raise UnsupportedOperation("fileno")

    def write(self, data: "ReadableBuffer") -> int:
        current().check()
        return super().write(data)


class Jpeg(_Whole):
    """JPEG without chroma subsampling."""

    name = "JPEG"
    max_side = 65_500
    options = {"quality": 95, "subsampling": 0}

    def with_metadata(self, metadata: Metadata) -> Format:
        exif = _EXIF_MARK + exif_of(metadata)
        if len(exif) > _MAX_SEGMENT:
            raise OutputError(
                f"JPEG holds {_MAX_SEGMENT:,} bytes of metadata at most, and this is {len(exif):,}: write .png, .webp "
                "or .tif, or leave it out"
            )
        return type(self)(**self.options, exif=exif) if metadata else self

    def memory(self, size: Size, bits: Bits) -> int:
        # The bytes per pixel of the array, of Pillow's copy, and of the file.
        return (3 + 4 + 2) * size.area


class WebP(_Whole):
    """WebP, which is lossy by default."""

    name = "WEBP"
    max_side = 16_383
    options = {"quality": 95, "method": 4}
    # In lossless mode, the quality determines how much effort goes into compression.
    exact = {"lossless": True, "quality": 50}

    def memory(self, size: Size, bits: Bits) -> int:
        # This was measured with noise, which needs the most memory.
        return (46 if self.options.get("lossless") else 36) * size.area


class Avif(_Whole):
    """8-bit AVIF without chroma subsampling.

    The encoder's speed is high, because slower ones take minutes for large pictures. Pillow converts the picture to
    YCbCr for the encoder, so levels differ by up to three even at a quality of 100.
    """

    name = "AVIF"
    max_side = 65_536
    options = {"quality": 90, "subsampling": "4:4:4", "speed": 8}

    def memory(self, size: Size, bits: Bits) -> int:
        # This was measured. The encoder's frames have borders, which matter for narrow pictures.
        return 48 * (size.width + 80) * (size.height + 80)
