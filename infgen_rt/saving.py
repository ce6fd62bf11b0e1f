"""Saves a picture: passes rows of tiles from the nodes to a writer, and counts the steps."""

from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import chain
from pathlib import Path

import numpy as np

from infgen_rt.common.cancellation import Cancellation
from infgen_rt.common.pixels import Bits, LevelArray, level_type
from infgen_rt.common.progress import Counter, Tell
from infgen_rt.geometry.shapes import Box
from infgen_rt.source import Stage
from infgen_rt.writers import Format, Layer, write


def save(
    path: Path,
    form: Format,
    stages: Sequence[Stage],
    box: Box,
    preparation: int,
    bits: Bits,
    force: bool,
    tell: Tell | None,
    cancellation: Cancellation,
) -> None:
    """Decode into a file, which appears under its name only when it is complete.

    Args:
        path: the file, which has been checked.
        form: its format.
        stages: the picture, and the smaller pictures that the format also needs.
        box: the part of the picture to write, in pixels. All of it if there are smaller pictures.
        preparation: the number of steps before the first pixel.
        bits: the bits per channel.
        force: whether to replace an existing file.
        tell: called after each step.
        cancellation: checked between steps.

    Raises:
        DecodeError: decoding failed.
        WriteError: writing failed.
        Cancelled: the work was cancelled.
    """
    boxes = [box, *(stage.tiles.size.box for stage in stages[1:])]
    rows = [stage.plan.rows(each) for stage, each in zip(stages, boxes, strict=True)]
    # The steps are the preparation, each decoded part, each encoded row, and completing the file.
    parts = sum(len(row) + 1 for of_stage in rows for row in of_stage)
    counter = Counter(preparation + parts + 1, tell, cancellation)

    def prepared(bands: Iterator[LevelArray]) -> Iterator[LevelArray]:
        cancellation.check()
        for step in stages[0].tiles.prepare():
            counter.step(step)
        counter.step("prefill", preparation)
        yield from bands

    layers = [
        Layer(each.size, bits, _bands(stage, each, of_stage, bits, counter))
        for stage, each, of_stage in zip(stages, boxes, rows, strict=True)
    ]
    layers[0] = Layer(layers[0].size, bits, prepared(layers[0].bands))
    with cancellation.watched():
        write(path, form, layers, force, confirm=cancellation.check)
    counter.step("encode")


def _bands(stage: Stage, box: Box, rows: Sequence[Sequence[Box]], bits: Bits, counter: Counter) -> Iterator[LevelArray]:
    """Yield rows of tiles, uint8 or uint16 [rows, width, 3], and count a step after each part and each row."""
    number = level_type(bits)
    with closing(stage.tiles.read_each(list(chain.from_iterable(rows)), number)) as pixels:
        for row in rows:
            band = np.empty((row[0].height, box.width, 3), number)
            for part in row:
                left = part.x - box.x
                band[:, left : left + part.width] = next(pixels).transpose(1, 2, 0)
                counter.step("decode")
            yield band
            counter.step("encode")
