"""Measures patterns that pixel shuffles leave in pictures: ``python -m benchmarks.studies.comb [--model BUNDLE]``.

A shuffle makes neighbouring pixels from different channels. If the channels disagree, the error repeats every two or
four pixels, like the teeth of a comb. It is visible as a grid in flat areas (sky), and as steps at straight edges. The
study measures the mean absolute difference between pixels that are half a period apart, in levels of 255. For a period
of two, these are even and odd pixels.

Detail also contributes to this number, and contributes more in a sharper picture. There are two ways to distinguish it
from a comb. First, a comb has its teeth at the same pixels everywhere, so it is also in the mean of all blocks, while
detail averages out. This is the number in brackets. Second, the table has the model's 1x picture enlarged by Lanczos,
which has no comb. The 4x picture enlarged to 8x is what the runtime makes at that size.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray
from PIL import Image

import infgen_rt
from benchmarks import options, table
from infgen_rt.latent.samples import load_sample, sample_names

Levels = NDArray[np.float32]
"""A picture [H, W, 3] in levels of 255. It is not rounded, because rounding would hide a comb of half a level."""
SCALE = 4
BLOCK = 16
"""Side of a block, in pixels of the 4x picture."""
PERIODS = (2, 4)
"""Periods of a comb, in pixels of the 4x picture."""
FLAT = 4.0
"""Largest standard deviation of a channel in a flat block, in levels."""
EDGE = 20.0
"""Smallest standard deviation of a channel across an edge, in levels."""
HEADER = (
    "sample",
    "picture",
    "place",
    "blocks across",
    "down",
    *(f"{n} px, {a}" for n in PERIODS for a in ("across", "down")),
)


@dataclass(frozen=True)
class Places:
    """Blocks in which combs are measured, each [rows, columns].

    Attributes:
        flat: Blocks without texture.
        across: Blocks with a straight edge that goes across.
        down: Blocks with a straight edge that goes down.
    """

    flat: NDArray[np.bool_]
    across: NDArray[np.bool_]
    down: NDArray[np.bool_]

    @classmethod
    def of(cls, picture: Levels) -> Places:
        """Finds the blocks in a picture. The picture itself should not have a comb."""
        blocks = _blocks(picture, BLOCK)
        # How much a block varies from row to row, and from column to column.
        rows, columns = (blocks.mean(axis).std(2).max(-1) for axis in (3, 2))
        edges = ((rows > EDGE) & (columns < FLAT), (columns > EDGE) & (rows < FLAT))
        return cls(blocks.std((2, 3)).max(-1) < FLAT, *edges)


@dataclass(frozen=True)
class Comb:
    """The strength of a comb of one period, in levels. NaN if there was no suitable block.

    Attributes:
        each: Mean absolute difference of positions half a period apart, as a mean over all blocks.
        shared: Mean absolute difference of these positions in the mean of all blocks.
    """

    each: float
    shared: float

    @classmethod
    def of(cls, teeth: NDArray[np.float32]) -> Comb:
        """Measures the comb in the differences that ``teeth`` gives, [blocks, ..., period]."""
        if not teeth.size:
            return cls(np.nan, np.nan)
        return cls(float(np.abs(teeth).mean()), float(np.abs(teeth.mean(tuple(range(teeth.ndim - 2)))).mean()))

    def __str__(self) -> str:
        return "" if np.isnan(self.each) else f"{self.each:.3f} ({self.shared:.3f})"


def teeth(lines: NDArray[np.float32], period: int, longest: int) -> NDArray[np.float32]:
    """Computes how much higher each position of a period is than the positions half a period away.

    A position is compared with the mean of the two positions half a period away, so that gradients cancel. The
    comparison covers whole multiples of the longest period, so that no period is mistaken for another.

    Args:
        lines: Lines of pixels [..., n].
        period: The period in pixels.
        longest: The longest period that is measured.

    Returns:
        [..., period], whose mean over the period is 0.
    """
    half = period // 2
    difference = lines[..., half:-half] - (lines[..., : -2 * half] + lines[..., 2 * half :]) / 2
    difference = difference[..., : difference.shape[-1] // longest * longest]
    phase = np.arange(difference.shape[-1]) % period
    means = np.stack([difference[..., phase == each].mean(-1) for each in range(period)], -1)
    found: NDArray[np.float32] = means - means.mean(-1, keepdims=True)
    return found


def combs(picture: Levels, places: Places, enlarged: int = 1) -> dict[tuple[str, int, str], Comb]:
    """Measures the combs of a picture by place, period and axis.

    Args:
        picture: The picture. It shows the same as the picture in which the places were found.
        places: The blocks to measure.
        enlarged: How many times larger the picture is than the one in which the places were found.
    """
    blocks = _blocks(picture, enlarged * BLOCK)
    found = {}
    for period in PERIODS:
        for axis, edges in (("across", places.across), ("down", places.down)):
            # Blocks of lines [.., side, 3, side]. The teeth follow one another along the last axis.
            lines = np.moveaxis(blocks, 3 if axis == "across" else 2, -1)
            # A grid is in all lines of a flat block, so their mean shows it best. Steps are only at the edge.
            periods = (enlarged * period, enlarged * PERIODS[-1])
            found["flat", period, axis] = Comb.of(teeth(lines[places.flat].mean(1), *periods))
            found["edge", period, axis] = Comb.of(teeth(lines[edges], *periods))
    return found


def enlarge(picture: Levels, factor: int) -> Levels:
    """Enlarges a picture by Lanczos."""
    size = (factor * picture.shape[1], factor * picture.shape[0])
    planes = (Image.fromarray(np.ascontiguousarray(picture[..., index])) for index in range(3))
    return np.stack([np.asarray(plane.resize(size, Image.Resampling.LANCZOS)) for plane in planes], -1)


def rows(name: str, decoder: infgen_rt.Decoder) -> Iterator[tuple[str, ...]]:
    """The rows of a sample: its enlarged 1x picture, its 4x picture, and the 4x picture enlarged to 8x."""
    latent = load_sample(name).latent
    own, large = (_levels(decoder.picture(latent, scale)) for scale in (1.0, float(SCALE)))
    smooth = enlarge(own, SCALE)
    places = Places.of(smooth)
    pictures = {
        f"1x, Lanczos to {SCALE}x": combs(smooth, places),
        f"{SCALE}x": combs(large, places),
        f"{SCALE}x, Lanczos to {2 * SCALE}x": combs(enlarge(large, 2), places, 2),
    }
    counts = {"flat": (places.flat, places.flat), "edge": (places.across, places.down)}
    for picture, found in pictures.items():
        for place, chosen in counts.items():
            cells = (str(found[place, period, axis]) for period in PERIODS for axis in ("across", "down"))
            yield name, picture, place, *(str(int(each.sum())) for each in chosen), *cells


def _levels(picture: infgen_rt.Picture) -> Levels:
    levels: Levels = 255 * np.clip(picture.read(dtype=np.float32), 0, 1)
    return levels


def _blocks(picture: Levels, side: int) -> NDArray[np.float32]:
    """The whole blocks of a picture, [rows, columns, side, side, 3]."""
    rows, columns = (length // side for length in picture.shape[:2])
    whole = picture[: rows * side, : columns * side]
    return whole.reshape(rows, side, columns, side, 3).transpose(0, 2, 1, 3, 4)


@click.command(cls=options.Command)
@options.model
@click.option("--sample", "names", multiple=True, help="Names of shipped samples; all by default.")
@click.option("--backend", default="onnxruntime", show_default=True)
@click.option("--threads", type=int, help="CPU threads; the backend's own choice by default.")
def main(model: Path, names: tuple[str, ...], backend: str, threads: int | None) -> None:
    """Prints the strength of the combs in each sample's pictures, in levels of 255."""
    click.echo(table.head(*HEADER))
    with warnings.catch_warnings(), infgen_rt.open(model, backend, precision="exact", threads=threads) as decoder:
        warnings.simplefilter("ignore", infgen_rt.InfGenWarning)
        for name in names or sample_names():
            for row in rows(name, decoder):
                click.echo(table.row(*row))


if __name__ == "__main__":
    main()
