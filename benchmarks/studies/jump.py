"""Measures how much the picture changes from one scale to the next: ``python -m benchmarks.studies.jump``.

A picture a little larger than an enlargement's factor is made with the next enlargement, which draws other detail. The
study compares the pictures at two neighbouring scales, after reducing the larger one to the size of the smaller one.
Where the same enlargement makes both, the difference is that of resampling alone, so these pairs show what is usual.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray
from PIL import Image

import infgen_rt
from benchmarks import options, table
from benchmarks.latents import middle
from infgen_rt.common.pixels import psnr
from infgen_rt.latent.samples import load_sample, sample_names

Pixels = NDArray[np.uint8]
CELLS = 24
"""Side of the middle of each sample that is decoded, in cells."""
STEP = 1 / 32
"""Distance of two neighbouring scales."""
SCALES = (1.0, 1.5, 2.0, 3.0, 4.0)
"""The lower of two neighbouring scales. At 1 and 2, the next enlargement begins above it."""


def sharpness(picture: Pixels) -> float:
    """Mean absolute value of the Laplacian of a picture [H, W, 3], in levels."""
    grey = picture.astype(np.float32).mean(2)
    around = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:]
    return float(np.abs(4 * grey[1:-1, 1:-1] - around).mean())


def compare(lower: Pixels, upper: Pixels) -> tuple[float, float]:
    """PSNR of two neighbours in dB, and the ratio of their sharpness, at the size of the lower one."""
    size = (lower.shape[1], lower.shape[0])
    reduced = np.asarray(Image.fromarray(upper).resize(size, Image.Resampling.LANCZOS))
    return psnr(reduced, lower, 255), sharpness(reduced) / sharpness(lower)


@click.command(cls=options.Command)
@options.model
@options.threads
@click.option("--sample", "names", multiple=True, help="Names of shipped samples; all by default.")
def main(model: Path, threads: int, names: tuple[str, ...]) -> None:
    """Prints, for each sample and pair of scales, the PSNR and the ratio of sharpness."""
    pairs = [f"{scale:g} and {scale + STEP:.3f}" for scale in SCALES]
    click.echo(table.head("sample", *pairs))
    with warnings.catch_warnings(), infgen_rt.open(model, "onnxruntime", threads=threads) as decoder:
        warnings.simplefilter("ignore", infgen_rt.InfGenWarning)
        for name in names or sample_names():
            latent = middle(load_sample(name).latent, CELLS, CELLS)
            cells = []
            for scale in SCALES:
                lower, upper = (decoder.picture(latent, each).read() for each in (scale, scale + STEP))
                cells.append("{:.1f} dB, {:.2f}".format(*compare(lower, upper)))
            click.echo(table.row(name, *cells))


if __name__ == "__main__":
    main()
