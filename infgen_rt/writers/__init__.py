"""Writes pictures to files, which appear only when they are complete. There is one module per format."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from traceback import walk_tb
from typing import get_args

from infgen_rt.common.arguments import FLAG, MAPPING, TEXT, WHOLE
from infgen_rt.common.callers import raise_callers
from infgen_rt.common.pixels import Bits
from infgen_rt.errors import OutputError, WriteError, reason
from infgen_rt.geometry.shapes import Size
from infgen_rt.writers.deepzoom import DeepZoom
from infgen_rt.writers.formats import Format, Layer, TileFormat
from infgen_rt.writers.metadata import Metadata, check_metadata
from infgen_rt.writers.names import check_name, rooted
from infgen_rt.writers.png import Png
from infgen_rt.writers.replacing import check_not_in_use, check_regular, keep_attributes, target_of
from infgen_rt.writers.staging import staged
from infgen_rt.writers.tiff import Tiff
from infgen_rt.writers.whole import Avif, Jpeg, WebP

__all__ = ["FORMATS", "Format", "Layer", "Metadata", "TileFormat", "appearing", "check_metadata", "check_output"]

# The libraries that writers call. A stack frame of any other module does not belong to writing.
_LIBRARIES = sys.stdlib_module_names - {"__main__"} | {"PIL", "tifffile", "imagecodecs", "numpy", "zlib_ng"}

FORMATS: dict[str, Format] = {
    ".png": Png(),
    ".jpg": Jpeg(),
    ".jpeg": Jpeg(),
    ".webp": WebP(),
    ".avif": Avif(),
    ".tif": Tiff(),
    ".tiff": Tiff(),
    ".dzi": DeepZoom("jpg"),
}


def check_output(
    path: Path,
    size: Size,
    force: bool,
    bits: Bits = 8,
    tile_format: TileFormat | None = None,
    quality: int | None = None,
    lossless: bool = False,
    metadata: Metadata | None = None,
) -> Format:
    """Check that a picture can be written, before anything is decoded.

    Args:
        path: the file. Its ending determines the format.
        size: the picture's width and height.
        force: whether to replace an existing file.
        bits: the bits per channel.
        tile_format: the format of a Deep Zoom pyramid's tiles. None for its default.
        quality: the quality from 1 to 100. None for the format's default.
        lossless: whether to keep every level exactly.
        metadata: text to store in the file. None for no text.

    Returns:
        The format, with the given tiles, encoding and text.

    Raises:
        OutputError: the format is unknown or does not support the size, the bits, the quality or the metadata, the
            folder is missing, or the file exists and must not or cannot be replaced.
    """
    FLAG.check(force=force, lossless=lossless)
    TEXT.or_none(tile_format=tile_format)
    WHOLE.check(bits=bits)
    WHOLE.or_none(quality=quality)
    MAPPING.or_none(metadata=metadata)
    form = FORMATS.get(path.suffix.lower())
    if form is None:
        if os.path.isdir(path):  # `Path.is_dir` fails if the name is too long
            raise OutputError(f"{path} is a folder: expected a picture's name, such as {path / 'picture.png'}")
        if path.name.lower() in FORMATS:
            raise OutputError(f"{path} has no name before its ending: expected one, such as picture{path.name}")
        raise OutputError(f"{path} has no known picture format: expected a name ending in {', '.join(FORMATS)}")
    if tile_format is not None:
        if tile_format not in (known := get_args(TileFormat)):
            raise OutputError(f"tile format {tile_format!r} is unknown: expected {' or '.join(known)}")
        form = form.with_tiles(tile_format)
    # Pillow takes only Python's own integers.
    quality = None if quality is None else int(quality)
    form = form.encoded(quality, lossless).with_metadata(check_metadata(metadata or {}))
    if not form.available():
        raise OutputError(f"Pillow was built without {form.name}: install it from PyPI, or write .png")
    if bits not in form.bits:
        deep = ", ".join(ending for ending, other in FORMATS.items() if bits in other.bits)
        raise OutputError(
            f"{form.name} does not hold {bits} bits: " + (f"write {deep}" if deep else "expected 8 or 16")
        )
    if max(size) > form.max_side:
        raise OutputError(
            f"{form.name} holds at most {form.max_side:,} pixels per side and the picture is {size}: write .png or .tif"
        )
    for output in form.outputs(path):
        check_name(output)
    with _looking(path):
        folder = _targets(path, form)[0].parent
        if not folder.is_dir():
            raise OutputError(f"cannot write in {folder}: there is no such folder; make it first")
        _check_free(path, form, force)
    return form


@contextmanager
def _looking(path: Path) -> Iterator[None]:
    """A block that looks at a path and its folder. It may not be allowed to."""
    try:
        yield
    except OSError as error:
        raise_callers(error)
        raise OutputError(f"cannot write {path}: {reason(error)}") from error


@contextmanager
def appearing(
    path: Path, form: Format, force: bool = False, confirm: Callable[[], object] = lambda: None
) -> Iterator[Path]:
    """Yield a temporary path for a format to write to. When the block ends, the files appear under their own names.

    Args:
        path: the file.
        form: the format from `check_output`, which writes in the block.
        force: whether to replace an existing file. The new file has the same mode and owner. If anything fails, the old
            file is unchanged.
        confirm: called when everything is written, before the files appear. It may raise an error to cancel.

    Raises:
        OutputError: the folder is not writable, or another program has made the file in the meantime.
        WriteError: writing failed midway, for example because the disk is full.
    """
    named, path = path, rooted(path)
    with _looking(named):
        targets = _targets(path, form)
    try:
        with staged(targets) as folder:
            # A link and its target may have names with different endings.
            yield folder / path.name
            if len(targets) == 1:
                (folder / path.name).rename(folder / targets[0].name)
            confirm()
            # Check again, because another program may have made a file of this name in the meantime.
            _check_free(path, form, force)
            for target in targets:
                keep_attributes(target, folder / target.name)
    except OSError as error:
        raise_callers(error)
        if not _is_of_writing(error, form):
            raise
        why = reason(error) if targets[0].parent.is_dir() else "its folder was removed meanwhile"
        raise WriteError(f"cannot write {named}: {why}") from error


def _is_of_writing(error: OSError, form: Format) -> bool:
    """Whether an error is from a writer, and not from other code that runs during writing.

    The other code is the caller's progress function and signal handlers, and the decoding itself. Their errors say
    nothing about the file. They are recognised by a stack frame that belongs neither to a writer nor to its libraries.
    """
    # The first two frames are those of `appearing` and of its block.
    inside = islice(walk_tb(error.__traceback__), 2, None)
    modules = {frame.f_globals.get("__name__") or "" for frame, _ in inside}
    return all(
        name.startswith(f"{__name__}.") or name in (__name__, type(form).__module__) or name.split(".")[0] in _LIBRARIES
        for name in modules
    )


def _targets(path: Path, form: Format) -> tuple[Path, ...]:
    """The final paths of the outputs. Symbolic links are followed, but with several outputs, they are an error."""
    outputs = form.outputs(path)
    if len(outputs) == 1:
        return (target_of(path),)
    if link := next((output for output in outputs if output.is_symlink()), None):
        raise OutputError(f"{link} is a symbolic link, and {form.name} is written side by side: pass where it leads")
    return outputs


def _check_free(path: Path, form: Format, force: bool) -> None:
    for output in _targets(path, form):
        check_regular(output)
        if output.exists() and not form.replaces(output):
            raise OutputError(f"{output} exists and is a folder of other things: choose another name")
        if output.exists() and not force:
            raise OutputError(f"{output} exists: pass force=True (--force) to replace it")
        check_not_in_use(output)
