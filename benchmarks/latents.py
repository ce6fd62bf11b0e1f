"""Latents that are decoded: of noise, and the middles of samples."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from infgen_rt.common.pixels import FloatArray


def latent_file(folder: Path, cells: Sequence[int]) -> Path:
    """Writes a latent of noise, unless the folder has it already. The cost of decoding does not depend on the values.

    Args:
        folder: Folder for the file.
        cells: Height and width of the latent.
    """
    file = folder / f"{cells[0]}x{cells[1]}.npy"
    if not file.exists():
        np.save(file, np.random.default_rng(0).normal(0, 0.8, (32, *cells)).astype(np.float32))
    return file


def middle(latent: FloatArray, height: int, width: int) -> FloatArray:
    """The middle of a latent [C, h, w], at most ``height`` and ``width`` cells large."""
    rows, columns = (min(most, side) for most, side in zip((height, width), latent.shape[1:], strict=True))
    top, left = (latent.shape[1] - rows) // 2, (latent.shape[2] - columns) // 2
    return np.ascontiguousarray(latent[:, top : top + rows, left : left + columns])
