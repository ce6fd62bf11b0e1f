"""Bundles with a model for each of several latent spaces. The models share the files of graphs that are the same."""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace

from infgen_rt.bundle.manifest import FORMAT, FileInfo, Manifest, load
from infgen_rt.errors import BundleError

_MODELS, _FILES = "models", "files"


def read_models(text: str | bytes) -> tuple[Manifest, ...]:
    """Parse a manifest file, which describes one model, or several in a list `models`.

    Returns:
        The models, in the file's order. Each one's `files` are those of its own graphs.

    Raises:
        BundleError: the file is not JSON, has a newer format, or lacks something, or two models have the same latent
            space.
    """
    data = load(text)
    if _MODELS not in data:
        return (Manifest.of(data),)
    described, files = data[_MODELS], data.get(_FILES)
    if not isinstance(described, list) or not described or not all(isinstance(each, dict) for each in described):
        raise BundleError("manifest: 'models' is not a list of one model or more")
    models = [Manifest.of({**each, "format": data["format"], _FILES: files}) for each in described]
    spaces = [each.latent_space for each in models]
    if twin := next((space for space in spaces if spaces.count(space) > 1), None):
        raise BundleError(f"manifest: two models are for {twin!r} latents")
    return tuple(replace(each, files=_own_files(each)) for each in models)


def write_models(models: Sequence[Manifest]) -> str:
    """The manifest file of a bundle with these models, as indented JSON. A shared file is listed once.

    Raises:
        ValueError: two models name different files by the same name.
    """
    if len(models) == 1:
        return models[0].to_json()
    files: dict[str, FileInfo] = {}
    for model in models:
        for name, info in model.files.items():
            if files.setdefault(name, info) != info:
                raise ValueError(f"two models have different files {name!r}")
    shared = ("format", _FILES)
    described = [{name: value for name, value in asdict(each).items() if name not in shared} for each in models]
    listed = {name: asdict(info) for name, info in files.items()}
    return json.dumps({"format": FORMAT, _MODELS: described, _FILES: listed}, indent=2) + "\n"


def _own_files(model: Manifest) -> dict[str, FileInfo]:
    graphs = {graph for recipe in model.recipes for graph in recipe.graphs.values()}
    return {name: model.files[name] for graph in sorted(graphs) for name in model.files_of(graph)}
