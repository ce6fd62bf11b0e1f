"""The report of an export. People read it as a table or as Markdown, and programs as JSON."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from infgen_export.verify import Check


def label_of(recipe: str, graph: str, space: str | None) -> str:
    """The name of an exported graph in messages and files, such as ``"onnx-fp32.trunk.sdxl"``.

    Args:
        recipe: Name of the recipe.
        graph: Name of the graph.
        space: Latent space of the graph. ``None`` if models of all spaces in the bundle share it.

    Examples:
        >>> label_of("onnx-fp32", "decode4", None)
        'onnx-fp32.decode4'
    """
    return ".".join(part for part in (recipe, graph, space) if part)


@dataclass(frozen=True)
class GraphReport:
    """The results of one graph of one recipe.

    Attributes:
        recipe: Name of the recipe.
        graph: Name of the graph.
        space: Latent space of the graph. ``None`` if the bundle has one space, or its spaces share the graph.
        precision: Precision of the recipe.
        bytes: Size of the graph's files in bytes, before packing. If graphs share a file, it is the size that this one
            adds.
        parameters: Number of weights and biases.
        operations: How often each kind of operation occurs, most frequent first.
        checks: The result of each case. Empty if nothing was verified.
        seconds: Median time of one run in the target's own runtime on the exporting machine's CPU. Decode makes a tile
            of 512x512 pixels. The other graphs work on 64x64 cells. ``None`` if it was not measured.
        native: Lowest PSNR in decibels, by each low precision that the target's runtime chooses by itself on this
            machine.
    """

    recipe: str
    graph: str
    space: str | None
    precision: str
    bytes: int
    parameters: int
    operations: dict[str, int]
    checks: tuple[Check, ...]
    seconds: float | None
    native: dict[str, float]

    @property
    def label(self) -> str:
        """The graph's name in messages."""
        return label_of(self.recipe, self.graph, self.space)

    @property
    def place(self) -> str:
        """The graph's name in tables, with its latent space if it has one of its own."""
        return f"{self.graph} ({self.space})" if self.space else self.graph

    @property
    def max_error(self) -> float:
        """Largest error over all cases, as a share of full scale. NaN if nothing was verified."""
        return max((check.max_error for check in self.checks), default=math.nan)

    @property
    def psnr(self) -> float:
        """Lowest PSNR over all cases, in decibels. NaN if nothing was verified."""
        return min((check.psnr for check in self.checks), default=math.nan)

    def failures(self) -> list[Check]:
        """The checks that did not pass."""
        return [check for check in self.checks if not check.passed]

    def to_json(self) -> dict[str, Any]:
        """The entry as plain JSON values. A number that is not finite becomes null, as the PSNR of equal outputs."""
        values = dataclasses.asdict(self)
        values["checks"] = [_finite(check) for check in values["checks"]]
        return values | {"native": _finite(self.native)}

    def cells(self) -> tuple[str, ...]:
        """The entry as a row of a table. A figure that was not measured is a dash."""
        shapes = str(len(self.checks)) if self.checks else "-"
        return (
            self.recipe,
            self.place,
            f"{self.parameters / 1e6:.2f} M",
            f"{self.bytes / 1e6:.2f} MB",
            str(sum(self.operations.values())),
            shapes,
            f"{self.max_error:.1e}" if self.checks else "-",
            f"{self.psnr:.0f} dB" if self.checks else "-",
            ", ".join(f"{name} {psnr:.0f} dB" for name, psnr in self.native.items()) or "-",
            f"{1000 * self.seconds:.0f} ms" if self.seconds is not None else "-",
        )


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    """The same values, with None in place of numbers that are not finite. JSON has none."""
    return {
        name: None if isinstance(each, float) and not math.isfinite(each) else each for name, each in values.items()
    }


_HEADER = (
    *("recipe", "graph", "parameters", "files", "operations", "shapes", "max error", "least PSNR", "native"),
    "one tile",
)


@dataclass(frozen=True)
class Report:
    """The report of a whole export.

    Attributes:
        model: Name of the model.
        graphs: One entry per graph and recipe.
    """

    model: str
    graphs: tuple[GraphReport, ...]

    def __str__(self) -> str:
        table = [_HEADER, *(entry.cells() for entry in self.graphs)]
        widths = [max(len(row[column]) for row in table) for column in range(len(_HEADER))]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table
        )

    def to_markdown(self) -> str:
        """The report as Markdown: a table of the graphs, then every check."""
        checks = [
            (entry.recipe, entry.place, check.case, "x".join(map(str, check.shape)))
            + (f"{check.max_error:.1e}", f"{check.psnr:.0f} dB", "yes" if check.passed else "no")
            for entry in self.graphs
            for check in entry.checks
        ]
        header = ("recipe", "graph", "case", "output", "max error", "PSNR", "passed")
        graphs = _markdown([_HEADER, *(entry.cells() for entry in self.graphs)])
        return f"# {self.model}\n\n{graphs}\n\n{_markdown([header, *checks])}\n"

    def to_json(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        return {"model": self.model, "graphs": [entry.to_json() for entry in self.graphs]}


def _markdown(rows: list[tuple[str, ...]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])
