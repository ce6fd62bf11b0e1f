"""Packs verified graphs into the files of a bundle. Weights that several graphs have are stored once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from infgen_export.pool import Pool
from infgen_export.targets import Target
from infgen_rt.bundle.graphs import WEIGHTS


@dataclass(frozen=True)
class Part:
    """One converted graph on its way into the bundle.

    Attributes:
        target: Module of its target.
        path: The file or folder that the target's ``convert`` has written.
        name: Name of its file or folder in the bundle.
    """

    target: Target
    path: Path
    name: str


def pack(parts: Iterable[Part], folder: Path) -> None:
    """Writes graphs, and the file with their weights, into a folder.

    Args:
        parts: The graphs. No two have the same name.
        folder: An empty folder.
    """
    pool = Pool()
    # A tensor keeps the name under which it is added first. People know the names in checkpoints, so these come first.
    parts = sorted(parts, key=lambda part: not part.target.NAMED)
    for part in parts:
        for name, array in part.target.weights(part.path).items():
            own = f"{part.name}:{name}"
            if part.target.NAMED:
                pool.add((name, own), array)
            else:
                pool.add_constant(own, array)
    pool.save(folder / WEIGHTS)
    for part in parts:
        part.target.pack(part.path, folder / part.name, pool)
