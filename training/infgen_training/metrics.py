"""Fidelity metrics of 8-bit pictures: PSNR, SSIM, SSIMULACRA2 and errors of flat colours."""

from __future__ import annotations

import math
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pytorch_msssim import ssim
from ssimulacra2 import compute_ssimulacra2

from infgen_rt.common.pixels import psnr

_BLOCK = 16
_FLAT = 8
_VIVID = 100


def flat_errors(picture: NDArray[np.uint8], truth: NDArray[np.uint8]) -> dict[str, float]:
    """Measures colour casts as the mean absolute errors of the mean colours of flat blocks of 16x16 pixels.

    Flat blocks are used because the eye sees colour casts best there.

    Args:
        picture: The decoded picture, uint8 [H, W, 3].
        truth: The true picture, of the same shape.

    Returns:
        Two errors, on the scale from 0 to 255. ``flat`` is the error over all flat blocks, in which each channel of the
        true picture has a standard deviation below 8. ``vivid`` is the error over the flat blocks with a strong colour,
        in which the means of the highest and the lowest channel differ by at least 100. An error is NaN if there is no
        such block.
    """
    (made, _), (true, spread) = _blocks(picture), _blocks(truth)
    errors, flat = np.abs(made - true).mean(-1), spread.max(-1) < _FLAT
    chosen = {"flat": flat, "vivid": flat & (np.ptp(true, axis=-1) >= _VIVID)}
    return {name: float(errors[where].mean()) if where.any() else math.nan for name, where in chosen.items()}


def _blocks(picture: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The means and the standard deviations of a picture's blocks, each [rows, columns, 3]. Only whole blocks count."""
    rows, columns = (side // _BLOCK for side in picture.shape[:2])
    whole = picture[: rows * _BLOCK, : columns * _BLOCK].astype(np.float32)
    blocks = whole.reshape(rows, _BLOCK, columns, _BLOCK, 3)
    return blocks.mean((1, 3)), blocks.std((1, 3))


def compare(picture: NDArray[np.uint8], truth: NDArray[np.uint8]) -> dict[str, float]:
    """Computes all metrics of a picture.

    Args:
        picture: The decoded picture, uint8 [H, W, 3].
        truth: The true picture, of the same shape.

    Returns:
        ``psnr`` in decibels; ``ssim``, at most 1; ``ssimulacra2``, which is about 90 for pictures that the eye cannot
        tell apart; ``flat`` and ``vivid``, as described for ``flat_errors``.
    """
    pair = [torch.from_numpy(np.array(array)).permute(2, 0, 1)[None].float() for array in (picture, truth)]
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / "truth.png", Path(folder) / "picture.png"]
        for file, array in zip(files, (truth, picture), strict=True):
            Image.fromarray(array).save(file, compress_level=0)
        score = compute_ssimulacra2(str(files[0]), str(files[1]))
    return {
        "psnr": psnr(picture, truth, 255),
        "ssim": float(ssim(*pair, data_range=255)),
        "ssimulacra2": float(score),
        **flat_errors(picture, truth),
    }


def mean(values: Sequence[float]) -> float | None:
    """The mean of the values that are not NaN, or None if there are none.

    A value is NaN if its picture has no flat blocks, or none of a vivid colour.
    """
    known = [value for value in values if not math.isnan(value)]
    return statistics.fmean(known) if known else None
