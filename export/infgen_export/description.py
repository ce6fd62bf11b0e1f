"""Describes an exported model for the manifest of its bundle."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from infgen_export.report import GraphReport
from infgen_export.work import context_work
from infgen_model import InfGen
from infgen_model.graphs import MAX_CELLS, MAX_TOKENS, graphs_of
from infgen_rt.bundle.manifest import Enlargement, FileInfo, Halo, Manifest, ModelInfo, Recipe, Shapes


@dataclass(frozen=True)
class Card:
    """Information about the model that is stored in the bundle.

    Attributes:
        version: Version of the weights.
        licence: Licence of the weights.
        training: How the weights were trained.
    """

    version: str = "0"
    licence: str = "unspecified"
    training: str = "unspecified"


def describe(
    model: InfGen,
    card: Card,
    recipes: Iterable[Recipe],
    entries: Iterable[GraphReport],
    files: Mapping[str, FileInfo],
) -> Manifest:
    """Makes the manifest of one model.

    Args:
        model: The exported model.
        card: Information that the model itself does not have.
        recipes: The recipes that the model was exported with.
        entries: The results of all graphs that the recipes use.
        files: All files of the bundle by name. The manifest lists those that the recipes use.
    """
    config, recipes = model.config, tuple(recipes)
    used = {name for recipe in recipes for name in recipe.files}
    # Graphs of one kind share their parameters, and statistics uses those of prefill, so each kind is counted once.
    parts = {graph.kind.name: graph.module for graph in graphs_of(model) if graph.kind.name == graph.kind.part}
    parameters = {kind: sum(p.numel() for p in module.parameters()) for kind, module in parts.items()}
    return Manifest(
        model=ModelInfo(config.name, card.version, card.licence, card.training, parameters),
        latent_space=config.latent_space,
        latent_channels=config.latent_channels,
        context_channels=config.context_channels(),
        patch=config.PATCH,
        scale_range=config.scale_range,
        halo=Halo(
            config.halo_tokens,
            config.radius,
            config.encode_halo,
            config.refine_halo(),
            config.prefill_halo,
            config.encode_latent_halo,
        ),
        shapes=Shapes((1, MAX_CELLS), (1, MAX_CELLS), (1, MAX_TOKENS)),
        recipes=recipes,
        files={name: info for name, info in files.items() if name in used or used & _folders(name)},
        verification=tuple(entry.to_json() for entry in entries),
        feature_channels=config.feature_channels if config.detail else None,
        fine_channels=config.fine_channels,
        moments=config.moments,
        prefill_is_local=config.prefill_is_local,
        encoder_channels=config.encoder_channels,
        encoder_moments=config.encoder_moments,
        enlargements=tuple(
            Enlargement(each.factor, config.context_channels(each), config.refine_halo(each), context_work(model, each))
            for each in config.enlargements
        ),
    )


def files_in(folder: Path) -> dict[str, FileInfo]:
    """Reads the SHA-256 digest and the length in bytes of each file in a folder and its subfolders.

    Args:
        folder: The folder of a bundle.

    Returns:
        The files by their path relative to the folder, with forward slashes.
    """
    found = {}
    for file in sorted(each for each in folder.rglob("*") if each.is_file()):
        content = file.read_bytes()
        found[file.relative_to(folder).as_posix()] = FileInfo(hashlib.sha256(content).hexdigest(), len(content))
    return found


def _folders(name: str) -> set[str]:
    """The folders that a file is in: ``a`` and ``a/b`` for ``a/b/c``."""
    parts = name.split("/")
    return {"/".join(parts[:count]) for count in range(1, len(parts))}
