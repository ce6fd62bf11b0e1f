"""Writing pictures: a module per format, and files that appear whole or not at all."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from traceback import walk_tb

from infgen_rt.common.pixels import Bits
from infgen_rt.errors import OutputError, WriteError
from infgen_rt.geometry.shapes import Size
from infgen_rt.writers.deepzoom import DeepZoom
from infgen_rt.writers.formats import Format, Layer, TileFormat
from infgen_rt.writers.names import check_name
from infgen_rt.writers.png import Png
from infgen_rt.writers.replacing import check_regular, keep_attributes, target_of
from infgen_rt.writers.staging import staged
from infgen_rt.writers.tiff import Tiff
from infgen_rt.writers.whole import Avif, Jpeg, WebP

__all__ = ["FORMATS", "Format", "Layer", "TileFormat", "check_output", "write"]

# What writers call: a frame of another module is of something else.
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
    tile_format: TileFormat = "jpg",
    quality: int | None = None,
    lossless: bool = False,
) -> Format:
    """Check that a picture can be written, before anything is decoded.

    Args:
        path: the file; its ending chooses the format.
        size: the picture's width and height.
        force: whether an existing file is replaced.
        bits: of a level.
        tile_format: what a Deep Zoom pyramid's tiles are.
        quality: from 1 to 100; None for the format's own choice.
        lossless: keep every level.

    Raises:
        OutputError: the format is unknown or cannot hold the size, the bits or the quality, the folder is missing, or
            the file exists and is not replaced, or is none that can be.
    """
    form = FORMATS.get(path.suffix.lower())
    if form is None:
        raise OutputError(f"{path} has no known picture format: expected a name ending in {', '.join(FORMATS)}")
    form = form.with_tiles(tile_format).encoded(quality, lossless)
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
    folder = _targets(path, form)[0].parent
    if not folder.is_dir():
        raise OutputError(f"cannot write in {folder}: there is no such folder")
    _check_free(path, form, force)
    return form


def write(
    path: Path,
    form: Format,
    layers: Sequence[Layer],
    force: bool = False,
    confirm: Callable[[], object] = lambda: None,
) -> None:
    """Write a picture that appears under its name only when it is complete.

    Args:
        path: the file.
        form: what `check_output` returned for it.
        layers: the picture, and for a pyramid the sizes below it that are not to be shrunk from it, which are the
            first of `form.sizes`.
        force: replace an existing file, whose mode and owner are kept; it stays as it is if anything fails.
        confirm: called when all is written and nothing is there yet; it may raise, to call it off.

    Raises:
        OutputError: the folder cannot be written in, or another program made the file meanwhile.
        WriteError: writing failed half-way, for example because the disk is full.
    """
    targets = _targets(path, form)
    try:
        with staged(targets) as folder:
            # A link may have a name of another ending than what it leads to.
            form.write(folder / path.name, layers)
            if len(targets) == 1:
                (folder / path.name).rename(folder / targets[0].name)
            confirm()
            # Once more: another program may have made the file meanwhile.
            _check_free(path, form, force)
            for target in targets:
                keep_attributes(target, folder / target.name)
    except OSError as error:
        if not _is_of_writing(error, form):
            raise
        reason = (error.strerror or error) if targets[0].parent.is_dir() else "its folder was removed meanwhile"
        raise WriteError(f"cannot write {path}: {reason}") from error


def _is_of_writing(error: OSError, form: Format) -> bool:
    """Whether an error came up in a writer, and not in what is called meanwhile.

    That is the caller's progress function, its signal handlers, and the decoding itself: none of them says anything of
    the file. A frame below a writer's that is neither a writer's nor a library's is one of these.
    """
    modules = {frame.f_globals.get("__name__") or "" for frame, _ in walk_tb(error.__traceback__)}
    return all(
        name.startswith(f"{__name__}.") or name in (__name__, type(form).__module__) or name.split(".")[0] in _LIBRARIES
        for name in modules
    )


def _targets(path: Path, form: Format) -> tuple[Path, ...]:
    """Where the outputs go: links are followed, but not those of a picture whose parts must be beside each other."""
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
