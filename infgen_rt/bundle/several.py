"""Reads and writes manifests of several models, one for each of several latent spaces, which share files."""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from infgen_rt.bundle.manifest import FORMAT, FileInfo, Manifest, load
from infgen_rt.errors import BundleError

_MODELS, _FILES, _VERIFICATION = "models", "files", "verification"


def read_models(text: str | bytes) -> tuple[Manifest, ...]:
    """Parse a manifest file, which describes one model, or several in a list `models`.

    Returns:
        The models, in the file's order. The `files` of each model are only those of its own graphs.

    Raises:
        BundleError: the file is not JSON, has a newer format or lacks a value, or two models have the same latent
            space.
    """
    data = load(text)
    if _MODELS not in data:
        return (Manifest.of(data),)
    described, files = data[_MODELS], data.get(_FILES)
    if not isinstance(described, list) or not described or not all(isinstance(each, dict) for each in described):
        raise BundleError("manifest: 'models' is not a list of one model or more")
    common = {"format": data["format"], _FILES: files, _VERIFICATION: data.get(_VERIFICATION, [])}
    models = [Manifest.of({**each, **common}) for each in described]
    spaces = [each.latent_space for each in models]
    if twin := next((space for space in spaces if spaces.count(space) > 1), None):
        raise BundleError(f"manifest: two models are for {twin!r} latents")
    return tuple(_own(each) for each in models)


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
    common = ("format", _FILES, _VERIFICATION)
    described = [{name: value for name, value in asdict(each).items() if name not in common} for each in models]
    listed = {name: asdict(info) for name, info in files.items()}
    results: list[dict[str, Any]] = []
    for result in (result for model in models for result in model.verification):
        if result not in results:
            results.append(result)
    shared = {_FILES: listed, _VERIFICATION: results}
    return json.dumps({"format": FORMAT, _MODELS: described, **shared}, indent=2) + "\n"


def _own(model: Manifest) -> Manifest:
    """The model, with only the files of its own graphs, and only the results of verification for these.

    Results for shared graphs name no latent space.
    """
    used = {name for recipe in model.recipes for name in recipe.files}
    files = {name: model.files[name] for each in sorted(used) for name in model.files_of(each)}
    results = tuple(each for each in model.verification if each.get("space") in (None, model.latent_space))
    return replace(model, files=files, verification=results)
