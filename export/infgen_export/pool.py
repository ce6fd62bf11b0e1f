"""The weights of a bundle: safetensors files that graphs of several targets refer to."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

Array = npt.NDArray[Any]


LEAST_BYTES = 512
"""Smallest constant with an entry of its own in the file. A smaller one would be shorter than its entry's header."""
_SMALL = "constants"
"""Name of the entry with all small constants. It consists of integers of 8 bytes, so that each constant is aligned."""


class Pool:
    """The tensors of one file, each stored once.

    Graphs refer to a tensor by its name, or by the position of its bytes in the file.

    Attributes:
        file: The path of the file.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._tensors: dict[str, Array] = {}
        self._names: dict[bytes, str] = {}
        self._small = bytearray()
        self._places: dict[bytes, int] = {}
        self._offsets: dict[str, int] = {}

    def add(self, names: Sequence[str], array: Array) -> None:
        """Adds a tensor, unless the pool already has one of the same dtype and numbers, in whatever shape.

        Args:
            names: Names for the tensor. It gets the first that no other tensor has.
            array: The tensor.
        """
        key = _digest(array)
        if key not in self._names:
            name = self._names[key] = next(name for name in names if name not in self._tensors)
            self._tensors[name] = np.ascontiguousarray(array)

    def add_constant(self, name: str, array: Array) -> None:
        """Adds a constant that graphs refer to by its position in the file.

        Args:
            name: Name for the constant. It is not used if the constant is small or the pool already has it.
            array: The constant.
        """
        content = array.tobytes()
        if len(content) >= LEAST_BYTES:
            self.add((name,), array)
        elif content not in self._places:
            self._places[content] = len(self._small)
            self._small += content + bytes(-len(content) % 8)

    def save(self) -> None:
        """Writes the file, unless the pool is empty. Nothing may be added afterwards."""
        tensors = self._tensors | ({_SMALL: np.frombuffer(self._small, "<i8")} if self._small else {})
        if not tensors:
            return
        save_file(tensors, self.file, {"format": "pt"})
        self.file.chmod(0o644)  # safetensors makes its file readable by the owner only, but a bundle is for everyone
        with self.file.open("rb") as opened:
            (length,) = struct.unpack("<Q", opened.read(8))
            header = json.loads(opened.read(length))
        self._offsets = {name: 8 + length + header[name]["data_offsets"][0] for name in tensors}

    def has(self, array: Array) -> bool:
        """Whether the pool has a tensor with the dtype and the numbers of an array, whatever its shape."""
        return _digest(array) in self._names

    def name(self, array: Array) -> str:
        """The name of the tensor with the dtype and the numbers of an array, whatever its shape.

        Raises:
            KeyError: The pool has no such tensor.
        """
        return self._names[_digest(array)]

    def offset(self, array: Array) -> int:
        """The position in the saved file at which the bytes of an array start.

        Raises:
            KeyError: The file does not have these bytes.
        """
        content = array.tobytes()
        if len(content) < LEAST_BYTES:
            return self._offsets[_SMALL] + self._places[content]
        return self._offsets[self.name(array)]


def _digest(array: Array) -> bytes:
    content = np.ascontiguousarray(array)
    return hashlib.sha256(f"{content.dtype.str} ".encode() + content.tobytes()).digest()
