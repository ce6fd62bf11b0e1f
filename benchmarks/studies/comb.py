"""Measures patterns that pixel shuffles leave in pictures: ``python -m benchmarks.studies.comb [--model BUNDLE]``.

A shuffle makes neighbouring pixels from different channels. If the channels disagree, the error repeats every two or
four pixels, like the teeth of a comb. It is visible as a grid in flat areas (sky), and as steps at straight edges.

A comb is a line in the spectrum of the pixels, because it has one period. Detail has all periods, so its spectrum is
smooth. The study measures how much higher the spectrum is at the period than beside it, and gives the height of such a
wave from its lowest to its highest level, in levels of 255. The number in brackets is the mean absolute difference
between pixels half a period apart, in the mean of all blocks. It shows a comb whose teeth are at the same pixels
everywhere.

For comparison, the table has the model's 1x picture enlarged by Lanczos, which has no comb, and pictures of twice the
size: the 4x picture enlarged by Lanczos, and what the runtime makes, which are two stages.
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
        height: Height of the wave of this period that rises above the spectrum beside it.
        shared: Mean absolute difference of positions half a period apart, in the mean of all blocks.
    """

    height: float
    shared: float

    @classmethod
    def of(cls, lines: NDArray[np.float32], period: int, longest: int) -> Comb:
        """Measures the comb of a period in lines of pixels [blocks, ..., n]. ``longest`` is as for ``teeth``."""
        if not lines.size:
            return cls(np.nan, np.nan)
        found = teeth(lines, period, longest)
        return cls(height(lines, period), float(np.abs(found.mean(tuple(range(found.ndim - 2)))).mean()))

    def __str__(self) -> str:
        return "" if np.isnan(self.height) else f"{self.height:.3f} ({self.shared:.3f})"


def height(lines: NDArray[np.float32], period: int) -> float:
    """Computes the height of a wave, from its lowest to its highest level, that all lines have beside their detail.

    Args:
        lines: Lines of pixels [..., n], where ``n`` is a multiple of the period.
        period: The period in pixels.
    """
    length = lines.shape[-1]
    # A gradient has a spectrum of its own, which would hide a weak wave.
    place = np.arange(length) - (length - 1) / 2
    level = lines - lines.mean(-1, keepdims=True) - (lines @ place / (place @ place))[..., None] * place
    window = np.hanning(length + 1)[:-1]
    spectrum = np.fft.rfft(level * window) / window.sum()
    power = np.square(np.abs(spectrum)).reshape(-1, length // 2 + 1).mean(0)
    line = length // period
    # The spectrum is mirrored at its highest frequency.
    beside = np.sqrt(power[line - 1] * power[length // 2 - abs(length // 2 - line - 1)])
    # The window spreads a quarter of a line's power to either side. A wave has half of its amplitude at its frequency,
    # and all of it at the highest.
    amplitude = np.sqrt(max(0.0, power[line] - beside) / 0.75) * (1 if period == 2 else 2)
    return float(2 * amplitude)


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
            found["flat", period, axis] = Comb.of(lines[places.flat].mean(1), *periods)
            found["edge", period, axis] = Comb.of(lines[edges], *periods)
    return found


def enlarge(picture: Levels, factor: int) -> Levels:
    """Enlarges a picture by Lanczos."""
    size = (factor * picture.shape[1], factor * picture.shape[0])
    planes = (Image.fromarray(np.ascontiguousarray(picture[..., index])) for index in range(3))
    return np.stack([np.asarray(plane.resize(size, Image.Resampling.LANCZOS)) for plane in planes], -1)


def rows(name: str, decoder: infgen_rt.Decoder) -> Iterator[tuple[str, ...]]:
    """The rows of a sample: its enlarged 1x picture, its 4x picture, the latter enlarged to 8x, and its 8x picture."""
    latent = load_sample(name).latent
    own, large, twice = (_levels(decoder.picture(latent, float(scale))) for scale in (1, SCALE, 2 * SCALE))
    smooth = enlarge(own, SCALE)
    places = Places.of(smooth)
    pictures = {
        f"1x, Lanczos to {SCALE}x": combs(smooth, places),
        f"{SCALE}x": combs(large, places),
        f"{SCALE}x, Lanczos to {2 * SCALE}x": combs(enlarge(large, 2), places, 2),
        f"{2 * SCALE}x": combs(twice, places, 2),
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
