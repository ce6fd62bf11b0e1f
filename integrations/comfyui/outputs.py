"""Names and metadata of the files that InfGen Save writes. They follow the rules of ComfyUI's own Save Image."""

import json
import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.cli_args
import folder_paths

from infgen_rt import Picture, Size
from infgen_rt.errors import OutputError, one_line
from infgen_rt.writers import check_metadata

ENDINGS = {"png": ".png", "tiff": ".tif", "dzi": ".dzi"}
_PREVIEW = 1024
_NUMBER = "%batch_num%"


@dataclass(frozen=True)
class Place:
    """The folder and the names for the files of one run.

    Attributes:
        folder: the folder, which exists.
        name: the beginning of the files' names.
        first: the number of the first file.
        subfolder: the path of the folder, relative to the folder that ComfyUI writes into.
    """

    folder: Path
    name: str
    first: int
    subfolder: str

    def file(self, number: int, ending: str) -> Path:
        """The path of a file of the batch, counted from 0."""
        name = self.name.replace(_NUMBER, str(number))
        return self.folder / f"{name}_{self.first + number:05}_{ending}"


def place_for(prefix: str, size: Size, root: str) -> Place:
    """Find the place for pictures of a size.

    Args:
        prefix: ComfyUI's `filename_prefix`. It may have folders, and words such as `%width%`.
        size: the size of the pictures, for these words.
        root: ComfyUI's output or temporary folder.

    Raises:
        OutputError: the prefix leaves the folder, or its folders cannot be made.
    """
    # ComfyUI finds the next free number by the part after the last slash as it stands here, but normalises the names.
    root, prefix = os.path.abspath(root), os.path.normpath(prefix)
    target = os.path.abspath(os.path.join(root, os.path.dirname(prefix)))
    try:
        inside = os.path.commonpath((root, target)) == root
    except ValueError:  # another drive
        inside = False
    if not inside:
        raise OutputError(
            f"filename_prefix {prefix!r} leaves {root}: pass one without '..' and without a drive or root"
        )
    try:
        folder, name, first, subfolder, _ = folder_paths.get_save_image_path(prefix, root, size.width, size.height)
    except OSError as error:
        raise OutputError(f"cannot make the folder of filename_prefix {prefix!r}: {one_line(error)}") from None
    return Place(Path(folder), name, max(first, _next(Path(folder), name)), subfolder)


def _next(folder: Path, name: str) -> int:
    """The number after those of all files in a folder, if their names have the number in the batch, and else 1.

    ComfyUI looks for `%batch_num%` itself in the names, and so finds none of them.
    """
    if _NUMBER not in name:
        return 1
    pattern = re.compile(r"\d+".join(map(re.escape, name.split(_NUMBER))) + r"_(\d+)_")
    found = (pattern.match(file) for file in os.listdir(folder))
    return max((int(each[1]) + 1 for each in found if each), default=1)


def metadata_of(prompt: Any, extra: Mapping[str, Any] | None) -> dict[str, str]:
    """Return the texts that ComfyUI's Save Image would write: the prompt, and the workflow and other values in `extra`.

    There are none if ComfyUI was started with `--disable-metadata`. A value that cannot be written is left out with a
    warning.

    Args:
        prompt: the executed graph of nodes. None if there is none.
        extra: ComfyUI's `extra_pnginfo`. None if there is none.
    """
    if comfy.cli_args.args.disable_metadata:
        return {}
    values = ({} if prompt is None else {"prompt": prompt}) | dict(extra or {})
    texts: dict[str, str] = {}
    for key, value in values.items():
        try:
            texts = check_metadata(texts | {key: json.dumps(value)})
        except OutputError as error:
            logging.warning("InfGen Save leaves out a part of the metadata: %s", error)
    return texts


def shown(picture: Picture, path: Path, place: Place) -> dict[str, str]:
    """Return what ComfyUI's page shows for a saved file.

    This is the file itself if it is a PNG. For other files, a small PNG is written into the temporary folder.

    Args:
        picture: the picture.
        path: its file.
        place: the place of the file.
    """
    if path.suffix == ".png":
        return {"filename": path.name, "subfolder": place.subfolder, "type": "output"}
    from PIL import Image

    small = Image.fromarray(picture.preview(_PREVIEW))
    temporary = place_for(f"infgen_{path.stem}", Size(*small.size), folder_paths.get_temp_directory())
    file = temporary.file(0, ".png")
    small.save(file)
    return {"filename": file.name, "subfolder": temporary.subfolder, "type": "temp"}
