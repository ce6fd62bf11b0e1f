"""Writes the Core ML packages of a bundle as other programs need them: each with its own file of weights."""

import hashlib
import os
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from infgen_rt.bundle.folder import Bundle
from infgen_rt.bundle.graphs import KINDS, apart
from infgen_rt.bundle.manifest import MANIFEST, FileInfo, Manifest, Recipe
from infgen_rt.bundle.several import write_models
from infgen_rt.common.callers import raise_callers
from infgen_rt.common.files import check_possible
from infgen_rt.errors import BundleError, OutputError, reason

_TARGET = "coreml"
_ENCODER = {kind.name for kind in KINDS if not kind.picture}


def unpack(
    output: str | Path, bundle: str | Path | None = None, spaces: Sequence[str] = (), encoder: bool = True
) -> tuple[str, ...]:
    """Write a bundle that has only complete Core ML packages, and their manifest.

    The folder appears only when it is complete.

    Args:
        output: the folder to write, which must not exist.
        bundle: the folder or the zip of the bundle to read. None for the bundle that ships in the package.
        spaces: the latent spaces of the models to write. Empty for all models that have Core ML packages.
        encoder: whether to write the graphs that encode pictures, which decoding does not need.

    Returns:
        The latent spaces of the models that were written.

    Raises:
        BundleError: the bundle cannot be read, or has no Core ML packages for one of the spaces.
        OutputError: the folder exists, or cannot be written.
    """
    output = Path(output)
    check_possible(output, OutputError)
    if os.path.lexists(output):
        raise OutputError(f"{output} exists: choose another folder, or remove it")
    opened = [Bundle.open(bundle, space) for space in spaces or Bundle.open(bundle).spaces]
    able = [each for each in opened if _recipes(each.manifest, encoder)]
    if not able or (spaces and len(able) < len(opened)):
        raise BundleError(f"{opened[0].path} has no Core ML packages: export its checkpoint with --target {_TARGET}")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as working:
            folder = Path(working) / output.name
            folder.mkdir()
            models = [_write(each, folder, encoder) for each in able]
            (folder / MANIFEST).write_text(write_models(models), encoding="utf-8")
            folder.rename(output)  # unlike shutil.move, this never moves it into a folder that has appeared
    except OSError as error:
        raise_callers(error)
        if os.path.lexists(output):
            raise OutputError(f"{output} exists: choose another folder, or remove it") from None
        raise OutputError(f"{output} cannot be written: {reason(error)}") from None
    return tuple(each.manifest.latent_space for each in able)


def _recipes(manifest: Manifest, encoder: bool) -> tuple[Recipe, ...]:
    """The recipes for Core ML, without references to a file of weights."""

    def without(graphs: dict[str, str]) -> dict[str, str]:
        return {name: value for name, value in graphs.items() if encoder or name not in _ENCODER}

    return tuple(
        replace(
            each,
            graphs=without(each.graphs),
            compute_units=without(each.compute_units),
            weights=None,
            space_weights=None,
        )
        for each in manifest.recipes
        if each.target == _TARGET
    )


def _write(bundle: Bundle, folder: Path, encoder: bool) -> Manifest:
    """Write the packages of one model, unless another model has written them, and return its new manifest."""
    recipes, files = _recipes(bundle.manifest, encoder), dict[str, FileInfo]()
    stored = {each.name: each for each in bundle.manifest.recipes}
    for recipe, graph in ((each, graph) for each in recipes for graph in each.graphs):
        for name, content in apart(bundle.read_graph(stored[recipe.name], graph))[0].items():
            path = f"{recipe.graphs[graph]}/{name}"
            files[path] = FileInfo(hashlib.sha256(content).hexdigest(), len(content))
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(content)
    written = {(recipe.name, graph) for recipe in recipes for graph in recipe.graphs}
    results = (each for each in bundle.manifest.verification if (each.get("recipe"), each.get("graph")) in written)
    counts = {
        kind: count for kind, count in bundle.manifest.model.parameters.items() if encoder or kind not in _ENCODER
    }
    model = replace(bundle.manifest.model, parameters=counts)
    return replace(bundle.manifest, model=model, recipes=recipes, files=files, verification=tuple(results))
