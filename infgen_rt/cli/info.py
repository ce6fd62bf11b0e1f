"""`infgen-rt info`."""

import itertools
import json
import os
import zipfile
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from infgen_rt.backend.protocol import installed_backends
from infgen_rt.bundle.folder import DEFAULT_BUNDLE, Bundle
from infgen_rt.bundle.manifest import MANIFEST, Manifest
from infgen_rt.cli import options
from infgen_rt.cli.console import print_facts, say, warnings_to_stderr
from infgen_rt.cli.latents import expand, read_latent
from infgen_rt.common.memory import format_bytes
from infgen_rt.errors import InputError, LatentError
from infgen_rt.latent.arrays import Normalisation, as_latents
from infgen_rt.latent.choosing import space_of
from infgen_rt.latent.evidence import normalisation_of
from infgen_rt.latent.samples import load_sample, sample_names
from infgen_rt.latent.spaces import latent_space
from infgen_rt.version import __version__


@click.command(
    cls=options.Command,
    epilog="""Examples:
  infgen-rt info
  infgen-rt info latent.safetensors
  infgen-rt info model.zip --json""",
)
@click.argument("path", required=False, type=options.ANY_PATH)
@options.space
@options.normalisation
@options.latent_size
@options.key
@click.option("--verbose", is_flag=True, help="Print everything about a model: its training, graphs and verification.")
@options.as_json
def info(
    path: Path | None,
    space: str | None,
    normalisation: Normalisation | None,
    latent_size: tuple[int, int] | None,
    key: str | None,
    verbose: bool,
    as_json: bool,
) -> None:
    """Describe PATH, which is a model bundle or a latent.

    Without PATH, describe this installation. --json prints everything.
    """
    whole = verbose or as_json
    with warnings_to_stderr():
        if path is not None and os.path.isdir(path) and not os.path.isfile(os.path.join(path, MANIFEST)):
            with suppress(LatentError):  # a folder without latents is meant as a bundle
                raise InputError(f"{path} is a folder of latents: pass one of them, such as {expand([path])[0]}")
        if path is None or _is_bundle(path):
            given = {"--space": space, "--normalisation": normalisation, "--latent-size": latent_size, "--key": key}
            for option, value in given.items():
                if value is not None:
                    raise InputError(f"{option} is for a latent, and none is described: pass its file, or leave it out")
            facts = _describe_installation(whole) if path is None else _describe_bundle(path, whole)
        else:
            facts = _describe_latent(path, key, space, normalisation, latent_size)
    if as_json:
        say(json.dumps(facts), needed=True)
    else:
        print_facts(_shared_once(facts))


def _is_bundle(path: Path) -> bool:
    if os.path.isdir(path):  # `Path.is_dir` fails if the name is too long
        return True
    try:
        with zipfile.ZipFile(path) as archive:
            return MANIFEST in archive.namelist()
    except Exception:  # zipfile raises various exceptions for files that are damaged or not zips
        return False


def _describe_installation(whole: bool) -> dict[str, Any]:
    return {
        "version": __version__,
        "backends": list(installed_backends()),
        "samples": {name: load_sample(name).title for name in sample_names()},
        "model": _describe_bundle(DEFAULT_BUNDLE, whole) if DEFAULT_BUNDLE.is_dir() else None,
    }


def _describe_bundle(path: Path, whole: bool) -> dict[str, Any]:
    manifests = {space: Bundle.open(path, space).manifest for space in Bundle.open(path).spaces}
    files = {name: file.bytes for manifest in manifests.values() for name, file in manifest.files.items()}
    about = {"bundle": str(path), "size": format_bytes(sum(files.values()))}
    if not whole:
        licences = dict.fromkeys(manifest.model.licence for manifest in manifests.values())
        models = {space: _in_short(manifest) for space, manifest in manifests.items()}
        return {**about, "licence": list(licences), "models": models, "more": "with --verbose"}
    if len(manifests) == 1:
        return about | _describe_model(*manifests.values())
    return {**about, "models": {space: _describe_model(manifest) for space, manifest in manifests.items()}}


def _in_short(manifest: Manifest) -> str:
    model, (least, most) = manifest.model, manifest.scale_range
    arithmetics = itertools.product([recipe.name for recipe in manifest.recipes], ("fp32", "bf16", "fp16"))
    psnrs = [psnr for each in arithmetics if (psnr := manifest.psnr(*each)) is not None]
    verified = f"verified to {min(psnrs):.0f} dB against float32" if psnrs else "not verified"
    return f"{model.name} {model.version}, for scales {least:g} to {most:g}, {verified}"


def _shared_once(facts: dict[str, Any]) -> dict[str, Any]:
    """The same facts, with those that all models of a bundle share before the models."""
    if isinstance(model := facts.get("model"), dict):
        return facts | {"model": _shared_once(model)}
    models = facts.get("models", {})
    if not all(isinstance(each, dict) for each in models.values()) or len(models) < 2:
        return facts
    first, *others = models.values()
    shared = {name: value for name, value in first.items() if all(each[name] == value for each in others)}
    shared.pop("size", None)  # there are files that only one of the models needs
    own = {space: {name: each[name] for name in each if name not in shared} for space, each in models.items()}
    return {name: value for name, value in facts.items() if name != "models"} | shared | {"models": own}


def _describe_model(manifest: Manifest) -> dict[str, Any]:
    return {
        **asdict(manifest.model),
        "latent_space": manifest.latent_space,
        "scale_range": manifest.scale_range,
        "recipes": [f"{recipe.name} ({recipe.target}, {recipe.precision})" for recipe in manifest.recipes],
        "size": format_bytes(sum(file.bytes for file in manifest.files.values())),
        "verification": [_describe_verification(entry) for entry in manifest.verification],
    }


def _describe_verification(entry: dict[str, Any]) -> str:
    """One line about the exporter's verification. Bundles of other exporters may have it in another form."""
    try:
        errors = [check["max_error"] for check in entry["checks"]]
        return f"{entry['recipe']} {entry['graph']}: error {max(errors):.1e} at most in {len(errors)} shapes"
    except (KeyError, TypeError, ValueError):
        return json.dumps(entry)


def _describe_latent(
    path: Path,
    key: str | None,
    name: str | None,
    normalisation: Normalisation | None,
    latent_size: tuple[int, int] | None,
) -> dict[str, Any]:
    stored = read_latent(path, key)
    try:
        space = latent_space(name) if name is not None else space_of(stored, latent_size=latent_size)
        normalisation = normalisation or stored.normalisation(space)
        latents = as_latents(stored, space, normalisation=normalisation, latent_size=latent_size)
    except LatentError as error:
        raise LatentError(f"{path}: {error}") from None
    latent = latents[0]
    return {
        "latent": str(path),
        "pictures": len(latents),
        "latent_space": space.name,
        "stored_shape": stored.array.shape,
        "channels": space.channels,
        "cells": latent.shape[:0:-1],
        "native_size": space.native_size(latent),
        "mean": round(float(latent.mean()), 4),
        "std": round(float(latent.std()), 4),
        "likely_normalisation": normalisation_of(latent, space) if normalisation is None else normalisation,
        "metadata": stored.metadata,
    }
