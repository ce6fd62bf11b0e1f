"""Picture quality: PSNR, SSIM, MS-SSIM and SSIMULACRA2 of 8-bit pictures."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pytorch_msssim import ms_ssim, ssim
from ssimulacra2 import compute_ssimulacra2

METRICS = ("psnr", "ssim", "ms_ssim", "ssimulacra2")


def psnr(picture: NDArray[np.uint8], truth: NDArray[np.uint8]) -> float:
    """Peak signal-to-noise ratio in decibels over all channels; infinite for equal pictures."""
    error = np.square(picture.astype(np.float64) - truth).mean()
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def compare(picture: NDArray[np.uint8], truth: NDArray[np.uint8]) -> dict[str, float]:
    """All metrics of a picture [H, W, 3] against the true one; SSIMULACRA2 is about 90 for indistinguishable ones."""
    pair = [torch.from_numpy(np.array(array)).permute(2, 0, 1)[None].float() for array in (picture, truth)]
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / "truth.png", Path(folder) / "picture.png"]
        for file, array in zip(files, (truth, picture), strict=True):
            Image.fromarray(array).save(file, compress_level=0)
        score = compute_ssimulacra2(str(files[0]), str(files[1]))
    return {
        "psnr": psnr(picture, truth),
        "ssim": float(ssim(*pair, data_range=255)),
        "ms_ssim": float(ms_ssim(*pair, data_range=255)),
        "ssimulacra2": float(score),
    }
