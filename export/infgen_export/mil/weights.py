"""Finds the numbers in a package's file of weights."""

from __future__ import annotations

import struct

import numpy as np

from infgen_export.errors import ExportError
from infgen_export.pool import Array

_VERSION = 2
_MARK = 0xDEADBEEF
_ALIGNMENT = 64
# Types that NumPy lacks are taken as bytes.
_DTYPES = {1: "<f2", 2: "<f4", 3: "u1", 4: "i1", 6: "<i2", 7: "<u2", 14: "<i4", 15: "<u4"}


def arrays_in(content: bytes) -> dict[int, Array]:
    """The arrays in a file of weights, without their shapes.

    The file starts with the number of its arrays and the version of its layout. Before the numbers of each array, at
    the next multiple of 64 bytes, there is an entry of 64 bytes: a mark, the type, the length and the position.

    Args:
        content: The content of the file.

    Returns:
        The arrays by the positions of their first bytes.

    Raises:
        ExportError: The file has another layout.
    """
    try:
        count, version = struct.unpack_from("<II", content)
        found: dict[int, Array] = {}
        end = _ALIGNMENT
        for _ in range(count):
            mark, kind, length, start = struct.unpack_from("<IIQQ", content, -(-end // _ALIGNMENT) * _ALIGNMENT)
            end = start + length
            if (version, mark) != (_VERSION, _MARK) or end > len(content):
                raise ValueError
            found[start] = np.frombuffer(content[start:end], np.dtype(_DTYPES.get(kind, "u1")))
    except (struct.error, ValueError):
        raise ExportError(
            "coremltools wrote a file of weights in a layout that this exporter does not know: install the version of "
            "coremltools that constraints.txt names"
        ) from None
    return found
