"""Finds and reads photographs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image

from infgen_rt.errors import InputError, one_line


def photo_files(folder: Path, exclude: Sequence[str] = ()) -> list[Path]:
    """Lists the photographs of a folder, sorted by path.

    Args:
        folder: The folder.
        exclude: File names, without endings, of photographs to leave out.

    Raises:
        FileNotFoundError: There are no photographs.
    """
    endings = {".webp", ".jpg", ".jpeg", ".png"}
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in endings and file.stem not in exclude)
    if not files:
        raise FileNotFoundError(f"no photographs ({', '.join(sorted(endings))}) in {folder}")
    return files


def open_photo(file: Path) -> Image.Image:
    """Reads a photograph as RGB.

    Raises:
        InputError: The file is no picture, is damaged, or cannot be read.
    """
    with _opened(file) as photo:
        return photo.convert("RGB")


def photo_size(file: Path) -> tuple[int, int]:
    """The width and the height of a photograph. Its pixels are not read.

    Raises:
        InputError: The file is no picture, is damaged, or cannot be read.
    """
    with _opened(file) as photo:
        return photo.size


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[Image.Image]:
    try:
        with Image.open(file) as photo:
            yield photo
    # Pillow raises many kinds of errors for damaged files, SyntaxError among them.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{file} cannot be used as a photograph ({one_line(error)}): replace or remove it") from error


def middle_of(photo: Image.Image, side: int | tuple[int, int] | None) -> Image.Image:
    """The middle of a photograph.

    Args:
        photo: The photograph.
        side: The largest width and height in pixels. One number stands for both. With None, the whole photograph.
    """
    if side is None:
        return photo
    largest = (side, side) if isinstance(side, int) else side
    width, height = (min(most, each) for most, each in zip(largest, photo.size, strict=True))
    left, top = (photo.width - width) // 2, (photo.height - height) // 2
    return photo.crop((left, top, left + width, top + height))
