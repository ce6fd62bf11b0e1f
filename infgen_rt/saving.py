"""Prepares a picture for a writer: finds a plan that leaves memory for writing, and decodes rows of tiles on demand."""

from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import chain

import numpy as np

from infgen_rt.common.cancellation import Cancellation
from infgen_rt.common.memory import enough, format_bytes
from infgen_rt.common.pixels import Bits, LevelArray, level_type
from infgen_rt.common.progress import Counter, Tell
from infgen_rt.errors import OutputError
from infgen_rt.geometry.shapes import Box, Size
from infgen_rt.plan.costs import Writing
from infgen_rt.plan.making import TooLittleMemory
from infgen_rt.plan.plan import Plan
from infgen_rt.source import Source, Stage
from infgen_rt.writers import Format, Layer


def memory_to_save(plan: Plan, form: Format, size: Size, bits: Bits) -> tuple[int, int]:
    """The peak memory of decoding and writing a part of a picture.

    Args:
        plan: the picture's plan.
        form: the format.
        size: the size of the part in pixels.
        bits: the bits per channel.

    Returns:
        The peak memory in bytes, and the bytes of it that are for tiles that are kept.
    """
    return plan.beside(_writing(form, size, bits).extra(plan.stages[-1]))


def plan_to_save(source: Source, plan: Plan, form: Format, size: Size, bits: Bits) -> Plan:
    """Find a plan for decoding and writing a picture within its budget: its own plan, or one with smaller tiles.

    Args:
        source: the latent.
        plan: the picture's plan.
        form: the format.
        size: the size of the part to write.
        bits: the bits per channel.

    Raises:
        OutputError: the budget is too small even for the smallest tiles.
    """
    if memory_to_save(plan, form, size, bits)[0] <= plan.budget:
        return plan
    try:
        return source.for_writing(plan, _writing(form, size, bits))
    except TooLittleMemory as error:
        tiles = f" with tiles of {source.tile} pixels" if source.tile else ""
        other = "" if (form.name, bits) == ("PNG", 8) else ", or write 8-bit .png"
        other += ", or decode in one stage (max_scale=inf, --max-scale inf)" if len(plan.stages) > 1 else ""
        raise OutputError(
            f"writing {form.name} needs at least {enough(error.needed)} for {size}{tiles}, of "
            f"{format_bytes(plan.budget)}: pass that as memory (--memory){other}"
        ) from None


def _writing(form: Format, size: Size, bits: Bits) -> Writing:
    return Writing(form.memory(size, bits), bits // 8)


def layers_of(
    stage: Stage, plan: Plan, form: Format, box: Box, bits: Bits, tell: Tell | None, cancellation: Cancellation
) -> tuple[list[Layer], Counter]:
    """The layers of a picture for a format to write.

    Args:
        stage: the picture.
        plan: its plan.
        form: the format. If it stores the picture at several sizes, each size at a scale that the model was trained for
            becomes a layer. For a part of the picture, there is only one layer.
        box: the part of the picture to write, in pixels.
        bits: the bits per channel.
        tell: called after each step.
        cancellation: checked between steps.

    Returns:
        The layers, and the counter of their steps. The last step, the completion of the file, is left to the caller.
        Iterating over a layer may raise DecodeError or Cancelled.
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
    stage.prepare(preparation, counter)
    with closing(stage.tiles.read_each(list(chain.from_iterable(rows)), number)) as pixels:
        for row in rows:
            band = np.empty((row[0].height, box.width, 3), number)
            for part in row:
                left = part.x - box.x
                band[:, left : left + part.width] = next(pixels).transpose(1, 2, 0)
                counter.step("decode")
            yield band
            counter.step("encode")
