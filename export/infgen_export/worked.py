"""Worked numbers of a bundle: the inputs and outputs of each of its graphs, for a small latent and one tile.

``python -m infgen_export.worked BUNDLE -o numbers.json`` writes them for people who run the graphs from another
language. ``docs/bundle.md`` explains the file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from infgen_export.errors import RequestError
from infgen_rt.backend.candidates import Survey
from infgen_rt.backend.engine import Engine
from infgen_rt.backend.inputs import cell_inputs, statistics_inputs, tile_inputs
from infgen_rt.bundle.folder import Bundle
from infgen_rt.bundle.graphs import (
    DECODE,
    DECODE_CELLS,
    ENCODE,
    ENCODE_LATENT,
    ENCODE_STATISTICS,
    PREFILL,
    REFINE,
    STATISTICS,
    TRUNK,
    Kind,
)
from infgen_rt.bundle.manifest import Enlargement
from infgen_rt.common.pixels import FloatArray, fetch
from infgen_rt.errors import InfGenError
from infgen_rt.geometry.grid import Grid
from infgen_rt.geometry.shapes import Box, Size
from infgen_rt.geometry.tiling import HaloTiling, Tiling
from infgen_rt.nodes.moments import merged

FORMAT = 1
"""Version of the file's format."""
CELLS = Size(40, 6)
"""Size of the latent. It is so wide that halos end inside it, and so low that halos are clipped at its edges."""
ENCODED = Size(3, 2)
"""Size of the picture that is encoded, in cells."""
TILE = Size(4, 3)
"""Size of the tile that is decoded, in tokens."""
TOLERANCE = 1e-3
"""Largest allowed error on another machine, as a share of the largest value of the output."""
_SHORT, _SHOWN = 64, 8
"""Largest array that is written as a whole, and how many of a larger array's first and last values are written."""


def worked(path: Path | None = None, backend: str = "onnxruntime") -> dict[str, Any]:
    """Runs each graph of a bundle in float32, and returns its inputs and outputs as JSON values.

    For the first latent space of the bundle, a picture is decoded at a scale of every enlargement. For the others, only
    the first of these pictures is decoded.

    Args:
        path: The bundle. ``None`` for the models in the package.
        backend: Name of the backend that runs the graphs on the CPU.

    Returns:
        The content of the file, which ``as_text`` writes.

    Raises:
        InfGenError: The bundle cannot be opened, or the backend cannot run it in float32.
    """
    models: list[dict[str, Any]] = []
    for space in Bundle.open(path).spaces:
        bundle = Bundle.open(path, space)
        candidates = [each for each in Survey.of(bundle.manifest, backend, "cpu").candidates if each.exact]
        if not candidates:
            raise RequestError(
                f"{bundle.path} has no graphs that {backend} runs in float32: pass another backend (--backend), or "
                "export the recipe onnx-fp32"
            )
        with closing(Engine(bundle, candidates[0], threads=1)) as engine:
            models.append(_Run(engine).described(complete=not models))
    manifest = Bundle.open(path).manifest
    return {
        "format": FORMAT,
        "bundle": {"format": manifest.format, "name": manifest.model.name, "version": manifest.model.version},
        "tolerance": TOLERANCE,
        "models": models,
    }


def latent_of(channels: int, cells: Size) -> FloatArray:
    """The latent of the example, float32 [C, h, w]. Its values are eighths in [-1, 1], which are exact in float32."""
    channel, row, column = np.ogrid[:channels, : cells.height, : cells.width]
    return np.asarray((7 * channel + 5 * row + 3 * column) % 17 / 8 - 1, np.float32)


def picture_of(size: Size) -> FloatArray:
    """The picture that is encoded in the example, float32 [3, H, W]. Its values are sixteenths in [0, 1]."""
    channel, row, column = np.ogrid[:3, : size.height, : size.width]
    return np.asarray((3 * channel + 5 * row + 7 * column) % 17 / 16, np.float32)


@dataclass(frozen=True)
class _Run:
    """The engine of one model, and the description of what it computes."""

    engine: Engine

    def described(self, complete: bool) -> dict[str, Any]:
        """The inputs and outputs of a model's graphs, for all enlargements or for only the first."""
        manifest = self.engine.manifest
        latent = latent_of(manifest.latent_channels, CELLS)
        parts: dict[str, Any] = {"space": manifest.latent_space, "latent": _tensor(latent)}
        moments = None
        if self.engine.has(STATISTICS):
            moments, parts["statistics"] = self.step(STATISTICS, statistics_inputs(latent, manifest))
            parts["statistics_in_tiles"] = self.in_tiles(latent)
        contexts = manifest.contexts if complete else manifest.contexts[:1]
        parts["pictures"] = [self.picture(latent, moments, each) for each in contexts]
        if self.engine.recipe.has(ENCODE):
            self.engine.load_encoder()
            image = picture_of(Size(*(side * manifest.patch for side in ENCODED)))
            encoded, parts[ENCODE.name] = self.step(ENCODE, {"image": image[None]})
            if self.engine.has(ENCODE_STATISTICS):
                inputs = statistics_inputs(encoded[0], manifest, kind=ENCODE_STATISTICS)
                moments, parts[ENCODE_STATISTICS.name] = self.step(ENCODE_STATISTICS, inputs)
                inputs = {"encoded": encoded, "moments": moments}
                parts[ENCODE_LATENT.name] = self.step(ENCODE_LATENT, inputs)[1]
        return parts

    def step(
        self, kind: Kind, inputs: Mapping[str, Any], enlargement: Enlargement | None = None
    ) -> tuple[FloatArray, dict[str, Any]]:
        """Runs a graph, and describes its inputs and its output."""
        output = np.asarray(self.engine.run(kind, inputs, enlargement))
        graph = enlargement.graph(kind.name) if enlargement and kind.enlarged else kind.name
        kind = next(own for own in self.engine.manifest.kinds(self.engine.recipe) if own.name == kind.name)
        exact = {spec.name for spec in kind.inputs if not spec.holds_values and spec.name not in ("moments", "known")}
        return output, {
            "graph": graph,
            "inputs": {name: _tensor(value, name in exact) for name, value in inputs.items()},
            "outputs": {kind.output.name: _tensor(output)},
        }

    def in_tiles(self, latent: FloatArray) -> dict[str, Any]:
        """The statistics of the latent in two tiles, with one pass for each block."""
        manifest = self.engine.manifest
        tiles = HaloTiling(Tiling.of(CELLS, Size(CELLS.width // 2, CELLS.height)), manifest.halo.prefill)
        known = np.full(STATISTICS.output.at(manifest.sizes()), -1, np.float32)
        passes = []
        for block in range(known.shape[1]):
            runs, results = [], []
            for tile, window in tiles.windows():
                part = np.ascontiguousarray(latent[:, *window.slices])
                inputs = statistics_inputs(part, manifest, tile.relative_to(window), known)
                output, described = self.step(STATISTICS, inputs)
                results.append(output[:, block])
                runs.append({"tile": _box(tile), "window": _box(window), **described})
            known = known.copy()
            known[:, block] = merged(results, [tile.size.area for tile, _ in tiles.windows()])
            passes.append({"block": block, "runs": runs, "known_afterwards": _tensor(known)})
        return {"passes": passes}

    def picture(self, latent: FloatArray, moments: FloatArray | None, enlargement: Enlargement) -> dict[str, Any]:
        """Decodes a tile at a scale that the enlargement is for, from the part of the latent that the tile needs."""
        engine, manifest = self.engine, self.engine.manifest
        engine.load_for(enlargement)
        factor = enlargement.factor or 2
        scale = 1.0 if factor == 1 else 0.78 * factor
        size = Size(*(round(scale * manifest.patch * side) for side in CELLS))
        grid = Grid(CELLS, size, manifest.patch)
        # The tile is at the picture's bottom edge, where its halo is clipped.
        tile = Box(grid.tokens.width // 2, grid.tokens.height - TILE.height, *TILE)
        tokens = tile.grow(manifest.halo.tokens, grid.tokens.box)
        cells = grid.context_of(tokens, manifest.halo.cells)
        refined = cells.grow(enlargement.halo, CELLS.box) if engine.has(REFINE) else cells
        # Without statistics, prefill is local only if the manifest says so.
        local = moments is not None or manifest.prefill_is_local
        seen = refined.grow(manifest.halo.prefill, CELLS.box) if local else CELLS.box
        given = {"latent": np.ascontiguousarray(latent[None, :, *seen.slices])}
        values, described = self.step(PREFILL, given | ({} if moments is None else {"moments": moments}))
        steps = [described]
        if engine.has(REFINE):
            inputs = {"features": _cut(values, refined, seen)}
            if engine.has(TRUNK):
                inputs["fine"], described = self.step(TRUNK, inputs)
                steps.append(described)
            values, described = self.step(REFINE, inputs, enlargement)
            steps.append(described)
        context = _cut(values, cells, refined if engine.has(REFINE) else seen)
        by_cells = {}
        if engine.recipe.has(DECODE_CELLS, enlargement):
            by_cells = {DECODE_CELLS.name: self.step(DECODE_CELLS, cell_inputs(context), enlargement)[1]}
        image, described = self.step(DECODE, tile_inputs(grid, context, cells, tokens), enlargement)
        box = grid.pixels_of(tile)
        pixels = image[0][:, *box.relative_to(grid.pixels_of(tokens)).slices]
        levels = fetch(pixels.copy(), np.uint8)
        return {
            "size": [size.width, size.height],
            "enlargement": enlargement.factor,
            "tile": _box(tile),
            "tokens": _box(tokens),
            "cells": _box(cells),
            "refined": _box(refined),
            "prefilled": _box(seen),
            "steps": [*steps, described],
            **by_cells,
            "pixels": {
                "box": _box(box),
                "shape": list(levels.shape),
                "dtype": "uint8",
                "first": levels.ravel()[:_SHOWN].tolist(),
                "last": levels.ravel()[-_SHOWN:].tolist(),
                "mean": _rounded(levels.mean()),
            },
        }


def _cut(values: FloatArray, box: Box, whole: Box) -> FloatArray:
    return np.ascontiguousarray(values[:, :, *box.relative_to(whole).slices])


def _box(box: Box) -> dict[str, int]:
    return {"x": box.x, "y": box.y, "width": box.width, "height": box.height}


def _tensor(array: FloatArray, exact: bool = False) -> dict[str, Any]:
    """Describes an array: by all values if it is short, and else by its first and last values and two means.

    Args:
        array: The array, float32.
        exact: Whether to write each value as the shortest decimal number that is exactly the same in float32.
            Otherwise, values have six significant digits, because the others depend on the machine.
    """
    flat = array.astype(np.float32).ravel()
    number = (lambda value: float(str(value))) if exact else _rounded
    described: dict[str, Any] = {"dtype": "float32", "shape": list(array.shape)}
    if flat.size <= _SHORT:
        return described | {"values": [number(value) for value in flat]}
    wide = flat.astype(np.float64)
    return described | {
        "first": [number(value) for value in flat[:_SHOWN]],
        "last": [number(value) for value in flat[-_SHOWN:]],
        "mean": _rounded(wide.mean()),
        "mean_absolute": _rounded(np.abs(wide).mean()),
    }


def _rounded(value: float | np.floating[Any]) -> float:
    return float(f"{value:.6g}")


def as_text(numbers: Mapping[str, Any]) -> str:
    """The text of the file: JSON with each list of numbers on one line."""
    text = json.dumps(numbers, indent=1)
    return re.sub(r"\[([^\[\]{}]*)\]", lambda found: f"[{' '.join(found[1].split())}]", text) + "\n"


@click.command()
@click.argument("bundle", required=False, type=click.Path(exists=True, path_type=Path))
@click.option("--backend", default="onnxruntime", show_default=True, help="The backend that runs the graphs.")
@click.option("-o", "--output", required=True, type=click.Path(dir_okay=False, path_type=Path), help="File to write.")
def main(bundle: Path | None, backend: str, output: Path) -> None:
    """Writes the inputs and outputs of each graph of a BUNDLE, or of the models in the package, as JSON."""
    try:
        numbers = worked(bundle, backend)
    except InfGenError as error:
        raise click.ClickException(str(error)) from None
    output.write_text(as_text(numbers))


if __name__ == "__main__":
    main()
