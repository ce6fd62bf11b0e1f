"""What an export made and how well it passed."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from infgen_export.verify import Check


@dataclass(frozen=True)
class GraphReport:
    """One graph of one recipe.

    Attributes:
        recipe: Name of the recipe.
        graph: Name of the graph.
        bytes: File size.
        parameters: Weights and biases.
        checks: Results, a case each.
    """

    recipe: str
    graph: str
    bytes: int
    parameters: int
    checks: tuple[Check, ...]

    @property
    def max_error(self) -> float:
        """Largest error of all cases, as a share of full scale."""
        return max(check.max_error for check in self.checks)

    @property
    def psnr(self) -> float:
        """Lowest PSNR of all cases, in decibels."""
        return min(check.psnr for check in self.checks)

    def failures(self) -> list[Check]:
        """Checks beyond the tolerance."""
        return [check for check in self.checks if not check.passed]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; an infinite PSNR (equal outputs) becomes null."""
        values = dataclasses.asdict(self)
        for check in values["checks"]:
            check["psnr"] = check["psnr"] if math.isfinite(check["psnr"]) else None
        return values


@dataclass(frozen=True)
class Report:
    """A whole export.

    Attributes:
        graphs: One entry a graph and recipe.
    """

    graphs: tuple[GraphReport, ...]

    def __str__(self) -> str:
        rows: Iterable[tuple[str, ...]] = [
            (
                entry.recipe,
                entry.graph,
                f"{entry.parameters / 1e6:.2f} M",
                f"{entry.bytes / 1e6:.1f} MB",
                str(len(entry.checks)),
                f"{entry.max_error:.1e}",
                f"{entry.psnr:.0f} dB",
            )
            for entry in self.graphs
        ]
        table = [("recipe", "graph", "parameters", "file", "shapes", "max error", "least PSNR"), *rows]
        widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table
        )
