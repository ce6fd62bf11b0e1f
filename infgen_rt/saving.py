"""Saving a picture: rows of tiles on their way from the nodes to a writer, counted step by step."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Literal

import numpy as np

from infgen_rt.common.cancellation import Cancellation
from infgen_rt.common.pixels import Bits, LevelArray, level_type
from infgen_rt.geometry.shapes import Box
from infgen_rt.nodes.node import Step
from infgen_rt.source import Stage
from infgen_rt.writers import Format, Layer, write

SavingStep = Step | Literal["encode"]


@dataclass(frozen=True)
class Progress:
    """How far a `save` is; `print` shows it.

    Attributes:
        stage: what was just done: `prefill`, `decode`, `encode` of the file, or between two stages of a plan
            `reencode`, a tile of the later one's latent.
        done: steps done.
        total: steps in all; the last is done when the file is complete under its name.
    """

    stage: SavingStep
    done: int
    total: int

    @property
    def fraction(self) -> float:
        """Share of the steps done, in [0, 1]."""
        return self.done / self.total

    def __str__(self) -> str:
        return f"{self.stage} {self.done}/{self.total} ({self.fraction:.0%})"


class Counter:
    """Counts steps and tells of them; asks after each whether to go on.

    Args:
        total: steps in all.
        tell: told of each; None for nobody.
        cancellation: asked after each but the last: what is complete cannot be cancelled.
    """

    def __init__(self, total: int, tell: Callable[[Progress], object] | None, cancellation: Cancellation) -> None:
        self._done, self._total = 0, total
        self._tell, self._cancellation = tell, cancellation

    def step(self, kind: SavingStep, reached: int = 0) -> None:
        """One step more, or as many as are done already if that is more: others may have done some."""
        self._done = max(self._done + 1, reached)
        if self._tell is not None:
            self._tell(Progress(kind, self._done, self._total))
        if self._done < self._total:
            self._cancellation.check()


def save(
    path: Path,
    form: Format,
    stages: Sequence[Stage],
    box: Box,
    preparation: int,
    bits: Bits,
    force: bool,
    tell: Callable[[Progress], object] | None,
    cancellation: Cancellation,
) -> None:
    """Decode into a file, which appears under its name only when it is complete.

    Args:
        path: the file, which can be written.
        form: its format.
        stages: the picture, and the smaller ones that the format wants too.
        box: what is written of the picture, in pixels; all of it if there are smaller ones.
        preparation: steps before the first pixel.
        bits: of a level.
        force: replace an existing file.
        tell: called after each step.
        cancellation: asked between steps.

    Raises:
        DecodeError: decoding failed.
        WriteError: writing failed.
        Cancelled: the cancellation said so.
    """
    boxes = [box, *(stage.tiles.size.box for stage in stages[1:])]
    rows = [stage.plan.rows(each) for stage, each in zip(stages, boxes, strict=True)]
    # Steps: the preparation, each part that is decoded and each row that is encoded, and completing the file.
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
    """Rows of tiles, uint8 or uint16 [rows, width, 3]; a step is counted after each part and each row."""
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
