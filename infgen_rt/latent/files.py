"""Reads arrays from .npy, .npz and .safetensors files. Pickles are never loaded, and headers are not trusted."""

import io
import json
import math
import os
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy

from infgen_rt.common.arguments import PATH, TEXT
from infgen_rt.common.callers import raise_callers
from infgen_rt.common.files import check_possible
from infgen_rt.common.memory import GIB, format_bytes
from infgen_rt.errors import LatentError, one_line, reason
from infgen_rt.latent.evidence import Normalisation
from infgen_rt.latent.kinds import PICKLE, known_kind
from infgen_rt.latent.spaces import LatentSpace

MAX_FILE = GIB
_CHUNK = GIB // 16
_FREE = "close other programs, or split a batch into several files"
# The names that ComfyUI, this package and users of diffusers give to the array of a latent.
USUAL_NAMES = ("latent", "latents", "latent_tensor", "samples")

Array = npt.NDArray[np.generic]
# ComfyUI's SaveLatent adds an empty tensor of this name to files of unscaled numbers. Older files do not have it.
_COMFYUI_MARK = "latent_format_version_0"
_MOST_NAMES = 8
_SAFETENSORS_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}


@dataclass(frozen=True, eq=False)
class Stored:
    """An array from a file, which `as_latents` takes.

    Attributes:
        array: the array, with bfloat16 widened to float32.
        metadata: the text metadata of a safetensors file, by key. Empty for other files.
        comfyui: whether ComfyUI wrote the file. The normalisation is then known.
    """

    array: Array
    metadata: dict[str, str]
    comfyui: bool = False

    def normalisation(self, space: LatentSpace) -> Normalisation | None:
        """The normalisation of the array, if it is a latent of the given space. None if the file does not show it."""
        if not self.comfyui:
            return None
        return "vae" if space.comfyui_raw else "model"


def read_array(path: str | Path, key: str | None = None) -> Stored:
    """Read one floating-point array from a file. The ending of the file's name does not matter.

    Args:
        path: a .npy, .npz or .safetensors file. ComfyUI's .latent is a safetensors file.
        key: the name of the array. By default, it is the only array, or the only one with one of `USUAL_NAMES`.

    Raises:
        LatentError: the file is missing, damaged, of another kind, or does not contain the array.
    """
    PATH.check(path=path)
    TEXT.or_none(key=key)
    path = Path(path)
    check_possible(path, LatentError)
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            data = read_most(file, size) if size <= MAX_FILE else None
    except FileNotFoundError:
        raise LatentError(f"{path} does not exist: expected a .npy, .npz or .safetensors file") from None
    except OSError as error:
        raise_callers(error)
        if os.path.isdir(path):
            raise LatentError(f"{path} is a folder: pass one of the files in it") from None
        raise LatentError(f"{path} cannot be read: {reason(error)}") from None
    except MemoryError:
        raise LatentError(f"there is too little memory to read {path}: {_FREE}") from None
    if data is None:
        raise LatentError(
            f"{path} is larger than {format_bytes(MAX_FILE)}, the most that is read: split a batch of so many"
        )
    return parse_array(data, str(path), key)


def read_most(stream: BinaryIO, size: int = 0) -> bytes | None:
    """Read the rest of a stream. None if it is longer than `MAX_FILE`, as that of some devices, which never end.

    Args:
        stream: a file, a pipe or a device.
        size: the number of bytes that are expected, or 0 if it is unknown. There may be more or fewer.
    """
    parts: list[bytes] = []
    left, chunk = MAX_FILE + 1, size + 1 if size else _CHUNK
    while left > 0 and (part := stream.read(min(left, chunk))):
        parts.append(part)
        left, chunk = left - len(part), _CHUNK
    return b"".join(parts) if left > 0 else None


def parse_array(data: bytes, name: str, key: str | None = None) -> Stored:
    """Read one floating-point array from the content of a file.

    Args:
        data: the content.
        name: the file's name in error messages.
        key: as for `read_array`.

    Raises:
        LatentError: as for `read_array`.
    """
    if (kind := known_kind(data)) is not None:
        raise LatentError(f"{name} {kind}")
    read = _reader(data)
    try:
        return read(data, key)
    except LatentError as error:
        raise LatentError(f"{name}: {error}") from None
    except MemoryError:
        raise LatentError(f"there is too little memory to read {name}: {_FREE}") from None
    # For a damaged file, a parser (zlib, struct, JSON, ...) may raise any exception. All of them mean the same.
    except Exception as error:
        raise_callers(error)
        raise LatentError(
            f"{name} is damaged or not a .npy, .npz or .safetensors file: {one_line(error)}; save it again"
        ) from None


def _reader(data: bytes) -> Callable[[bytes, str | None], Stored]:
    if data.startswith(npy.MAGIC_PREFIX):
        return _read_only
    return _read_npz if data.startswith(b"PK") else _read_safetensors


def _read_only(data: bytes, key: str | None) -> Stored:
    if key is not None:
        raise LatentError(f"is a .npy file: its only array has no name, and is not {key!r}; leave out the key (--key)")
    return Stored(_read_npy(data), {})


def _read_npy(data: bytes) -> Array:
    stream = io.BytesIO(data)
    version = npy.read_magic(stream)
    read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, fortran, dtype = read_header(stream)
    if dtype.hasobject:
        raise LatentError("holds Python objects (pickle), which are never loaded: save plain float32 numbers")
    _expect_length(len(data) - stream.tell(), math.prod(shape) * dtype.itemsize)
    array = np.frombuffer(data, dtype, offset=stream.tell()).reshape(shape, order="F" if fortran else "C")
    # NumPy does not have bfloat16. Arrays of ml_dtypes' bfloat16 are saved as two opaque bytes.
    return _widen(array.view("<u2")) if dtype == np.dtype("V2") else array


def _read_npz(data: bytes, key: str | None) -> Stored:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = {entry.filename.removesuffix(".npy"): entry for entry in archive.infolist()}
        if any(name.endswith("data.pkl") for name in entries):
            raise LatentError(PICKLE)
        if "manifest.json" in entries:
            raise LatentError("is a model bundle, and not a latent: pass it as the model (--model)")
        entry = entries[_choose(list(entries), key)]
        if entry.file_size > MAX_FILE:
            raise LatentError(
                f"holds an array larger than {format_bytes(MAX_FILE)}, the most that is read: split a batch"
            )
        return Stored(_read_npy(archive.read(entry)), {})


def _read_safetensors(data: bytes, key: str | None) -> Stored:
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > len(data) - 8:
        raise ValueError("its header is longer than the file")
    header = json.loads(data[8 : 8 + length])
    metadata = header.pop("__metadata__", {})
    name = _choose(list(header), key)
    entry = header[name]
    if entry["dtype"] not in _SAFETENSORS_DTYPES:
        raise LatentError(
            f"tensor {name!r} is {entry['dtype']}, and a latent is float16, bfloat16, float32 or float64: convert it "
            "before it is saved, as with tensor.to(torch.bfloat16)"
        )
    start, stop = entry["data_offsets"]
    dtype = np.dtype(_SAFETENSORS_DTYPES[entry["dtype"]])
    content = memoryview(data)[8 + length :]
    if not 0 <= start <= stop <= len(content):
        raise LatentError(
            f"is truncated: tensor {name!r} ends at byte {stop:,} of {len(content):,}; save or copy it again"
        )
    _expect_length(stop - start, math.prod(entry["shape"]) * dtype.itemsize)
    array = np.frombuffer(content[start:stop], dtype).reshape(entry["shape"])
    array = _widen(array) if entry["dtype"] == "BF16" else array
    texts = {str(key): str(text) for key, text in metadata.items()}
    return Stored(array, texts, name == "latent_tensor" and _COMFYUI_MARK in header)


def _choose(names: list[str], key: str | None) -> str:
    wanted = [key] if key is not None else names if len(names) == 1 else USUAL_NAMES
    found = [name for name in wanted if name in names]
    if len(found) == 1:
        return found[0]
    if not names:
        raise LatentError("holds no array: save the latent in it")
    some = ", ".join(names[:_MOST_NAMES]) + (
        f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    )
    missing = "" if key is None else f", and no {key!r}"
    raise LatentError(f"holds {some}{missing}; say which to read by its name (key=NAME, or --key NAME)")


def _expect_length(found: int, expected: int) -> None:
    if found != expected:
        raise LatentError(
            f"is truncated or damaged: {found:,} bytes of numbers, expected {expected:,}; save or copy it again"
        )


def _widen(halves: Array) -> Array:
    """Convert bfloat16 numbers, viewed as uint16, to float32. They are the upper half of float32 numbers."""
    return (halves.astype(np.uint32) << 16).view(np.float32)
