"""Formats that Pillow encodes from the whole picture in memory."""

from collections.abc import Sequence
from io import BufferedWriter, FileIO, UnsupportedOperation
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from infgen_rt.common.cancellation import current
from infgen_rt.common.pixels import Bits, LevelArray
from infgen_rt.errors import OutputError
from infgen_rt.geometry.shapes import Size
from infgen_rt.writers.formats import Format, Layer
from infgen_rt.writers.srgb import srgb_profile

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class _Whole(Format):
    """Gathers the picture and lets Pillow encode it.

    Args:
        changed: options of Pillow's that differ from the format's own.

    Attributes:
        options: of Pillow's, for the quality that the format has by itself.
        exact: those that change for a picture without loss; None where that is not possible.
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
    """Raises OutputError: it is none."""
    if quality is not None and not 1 <= quality <= 100:
        raise OutputError(f"quality {quality} is not possible: expected 1 to 100")


def save_image(pixels: LevelArray, path: Path, **options: Any) -> None:
    """Save uint8 [h, w, 3] as Pillow's `Image.save` does with these options, but with every failure an OSError."""
    from PIL import Image

    with _Output(FileIO(path, "xb")) as file:
        try:
            Image.fromarray(pixels).save(file, **options)
        except (RuntimeError, ValueError) as error:
            # So Pillow passes on what an encoder says.
            raise OSError(str(error)) from error


class _Output(BufferedWriter):
    """A file that hides its descriptor: Pillow would write past Python, and not notice all that a disk refuses."""

    def fileno(self) -> int:
        raise UnsupportedOperation("fileno")

    def write(self, data: "ReadableBuffer") -> int:
        current().check()
        return super().write(data)


class Jpeg(_Whole):
    """JPEG without subsampling of colours."""

    name = "JPEG"
    max_side = 65_500
    options = {"quality": 95, "subsampling": 0}

    def memory(self, size: Size, bits: Bits) -> int:
        # Bytes a pixel of the array, of Pillow's copy, and of the file.
        return (3 + 4 + 2) * size.area


class WebP(_Whole):
    """WebP, lossy unless asked otherwise."""

    name = "WEBP"
    max_side = 16_383
    options = {"quality": 95, "method": 4}
    # Here the quality is how hard it tries.
    exact = {"lossless": True, "quality": 50}

    def memory(self, size: Size, bits: Bits) -> int:
        # Measured with noise, which takes most.
        return (46 if self.options.get("lossless") else 36) * size.area


class Avif(_Whole):
    """8-bit AVIF without subsampling of colours; the slower speeds take minutes for large pictures.

    Pillow gives the encoder YCbCr, which is up to three levels off even at the quality of 100.
    """

    name = "AVIF"
    max_side = 65_536
    options = {"quality": 90, "subsampling": "4:4:4", "speed": 8}

    def memory(self, size: Size, bits: Bits) -> int:
        # Measured; the encoder's frames have borders, which count in narrow pictures.
        return 48 * (size.width + 80) * (size.height + 80)
