"""Saves a picture: passes rows of tiles from the nodes to a writer, and counts the steps."""

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
    """The progress of a `save`. Print it for a description.

    Attributes:
        stage: the kind of the last step: `prefill`, `decode`, `encode` for encoding the file, or `reencode` for
            encoding a tile of the next stage's latent.
        done: the number of finished steps.
        total: the number of all steps. The last one finishes when the file has appeared under its name.
    """

    stage: SavingStep
    done: int
    total: int

    @property
    def fraction(self) -> float:
        """The share of finished steps, in [0, 1]."""
        return self.done / self.total

    def __str__(self) -> str:
        return f"{self.stage} {self.done}/{self.total} ({self.fraction:.0%})"


class Counter:
    """Counts and reports steps, and checks for cancellation after each.

    Args:
        total: the number of all steps.
        tell: called after each step. None for no reports.
        cancellation: checked after each step except the last, because a complete file cannot be cancelled.
    """

    def __init__(self, total: int, tell: Callable[[Progress], object] | None, cancellation: Cancellation) -> None:
        self._done, self._total = 0, total
        self._tell, self._cancellation = tell, cancellation

    def step(self, kind: SavingStep, reached: int = 0) -> None:
        """Count one step, or more if `reached` is larger, because other threads may have done some of the steps."""
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
