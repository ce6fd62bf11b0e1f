"""Packs verified graphs into the files of a bundle. Weights that several graphs have are stored once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from infgen_export.pool import Pool
from infgen_export.targets import Target
from infgen_rt.bundle.graphs import weights_name


@dataclass(frozen=True)
class Part:
    """One converted graph on its way into the bundle.

    Attributes:
        target: Module of its target.
        path: The file or folder that the target's ``convert`` has written.
        name: Name of its file or folder in the bundle.
        space: Latent space that the graph belongs to. ``None`` if it is shared, or belongs to the bundle's first model.
    """

    target: Target
    path: Path
    name: str
    space: str | None = None


def pack(parts: Iterable[Part], folder: Path) -> None:
    """Writes graphs, and the files with their weights, into a folder.

    There is a file of weights for each latent space but the first, and one for all other graphs. A graph refers to one
    of these files only. The exception is a file for PyTorch, which has several graphs, and refers to both the file of
    its space and the shared one.

    Args:
        parts: The graphs. No two have the same name.
        folder: An empty folder.
    """
    # A tensor keeps the name under which it is added first. People know the names in checkpoints, so these come first.
    parts = sorted(parts, key=lambda part: not part.target.NAMED)
    spaces = dict.fromkeys([*(part.space for part in parts), None])
    pools = {space: Pool(folder / weights_name(space)) for space in spaces}
    for part in parts:
        for name, array in part.target.weights(part.path).items():
            own = f"{part.name}:{name}"
            if not part.target.NAMED:
                pools[part.space].add_constant(own, array)
            elif part.space is not None and name.startswith(f"{part.space}/"):
                pools[part.space].add((name, own), array)
            else:
                pools[None].add((name, own), array)
    for pool in pools.values():
        pool.save()
    for part in parts:
        several = (part.space, None) if part.target.NAMED else (part.space,)
        part.target.pack(part.path, folder / part.name, [pools[space] for space in dict.fromkeys(several)])
