"""Prepares a picture for a writer: the rows of its tiles, which are decoded when the writer takes them."""

from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import chain

import numpy as np

from infgen_rt.common.cancellation import Cancellation
from infgen_rt.common.pixels import Bits, LevelArray, level_type
from infgen_rt.common.progress import Counter, Tell
from infgen_rt.geometry.shapes import Box
from infgen_rt.plan.plan import Plan
from infgen_rt.source import Stage
from infgen_rt.writers import Format, Layer


def layers_of(
    stage: Stage, plan: Plan, form: Format, box: Box, bits: Bits, tell: Tell | None, cancellation: Cancellation
) -> tuple[list[Layer], Counter]:
    """The layers of a picture for a format to write.

    Args:
        stage: the picture.
        plan: its plan.
        form: the format. The sizes that it stores are decoded separately, down to the scales of training, except for a
            part of the picture.
        box: the part of the picture to write, in pixels.
        bits: the bits per channel.
        tell: called after each step.
        cancellation: checked between steps.

    Returns:
        The layers, and the counter of their steps. One step remains when all layers are written: that of completing
        the file. Iterating over a layer may raise DecodeError or Cancelled.
    """
    stages = [stage]
    for size in form.sizes(box.size)[1:] if box == stage.tiles.size.box else []:
        if (smaller := stage.resized(size, plan.workers)) is None:
            break
        stages.append(smaller)
    boxes = [box, *(each.tiles.size.box for each in stages[1:])]
    rows = [each.plan.rows(part) for each, part in zip(stages, boxes, strict=True)]
    # The steps are the preparation, each decoded part, each encoded row, and completing the file.
    parts = sum(len(row) + 1 for of_stage in rows for row in of_stage)
    counter = Counter(plan.preparation + parts + 1, tell, cancellation)
    befores = [plan.preparation, *(0 for _ in stages[1:])]
    layers = [
        Layer(part.size, bits, _bands(each, part, of_stage, bits, counter, before))
        for each, part, of_stage, before in zip(stages, boxes, rows, befores, strict=True)
    ]
    return layers, counter


def _bands(
    stage: Stage, box: Box, rows: Sequence[Sequence[Box]], bits: Bits, counter: Counter, preparation: int
) -> Iterator[LevelArray]:
    """Yield rows of tiles, uint8 or uint16 [rows, width, 3], and count a step after each part and each row."""
    number = level_type(bits)
    if preparation:
        for step in stage.tiles.prepare():
            counter.step(step)
        counter.step("prefill", preparation)
    with closing(stage.tiles.read_each(list(chain.from_iterable(rows)), number)) as pixels:
        for row in rows:
            band = np.empty((row[0].height, box.width, 3), number)
            for part in row:
                left = part.x - box.x
                band[:, left : left + part.width] = next(pixels).transpose(1, 2, 0)
                counter.step("decode")
            yield band
            counter.step("encode")
