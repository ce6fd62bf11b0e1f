"""Exports checkpoints into a bundle on disk."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from infgen_export import footprint
from infgen_export.description import Card, describe, files_in
from infgen_export.errors import ExportError, RequestError
from infgen_export.model_export import ModelExport
from infgen_export.packing import pack
from infgen_export.recipes import Recipe, select
from infgen_export.report import GraphReport, Report
from infgen_export.targets import DEPLOYMENT_TARGETS, OPSETS, Options, Target, target_of
from infgen_model import InfGen
from infgen_model.checkpoint import load_checkpoint
from infgen_model.graphs import graphs_of
from infgen_model.sharing import shares
from infgen_rt.bundle import manifest as bundle
from infgen_rt.bundle.manifest import MANIFEST, Memory
from infgen_rt.bundle.several import write_models
from infgen_rt.common.claims import claim, remove_leftovers
from infgen_rt.errors import one_line, reason

_UNMEASURED = Memory(0, 0, 0)


def export(
    checkpoints: str | Path | Sequence[str | Path],
    output: str | Path,
    targets: Sequence[str] = (),
    recipes: Sequence[str] = (),
    *,
    card: Card | None = None,
    options: Options | None = None,
    leave_out: Sequence[str] = (),
    validate: bool = True,
    keep_going: bool = False,
    force: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Report:
    """Converts checkpoints, verifies every graph against PyTorch and writes the bundle.

    The bundle appears at ``output`` only if it is complete and verified.

    Args:
        checkpoints: A folder with ``config.json`` and ``model.safetensors``, or several such folders. Several
            checkpoints must be for different latent spaces, and share all weights that do not belong to a space. The
            graphs that they have in common are exported once.
        output: Folder of the bundle to write.
        targets: Names from ``recipes.TARGETS``, or ``"all"`` as one of them. If empty, the targets of the named
            recipes, or ONNX if no recipe is named.
        recipes: Names from ``recipes.RECIPES``, or ``"all"`` as one of them for every recipe of the targets. If empty,
            the targets' default recipes.
        card: Information that the models themselves do not have, for the manifest.
        options: Options of conversions.
        leave_out: Shell-style patterns for the names of graphs to leave out, such as ``"*.encode"`` or
            ``"coreml-*.encode.sdxl"``. If an encoder has several graphs, they are left out together. A graph that
            pictures need cannot be left out.
        validate: Whether to verify every graph. If false, the manifest and the report list no checks.
        keep_going: Whether to try the other graphs after one has failed, so that the error reports all failures.
        force: Whether to replace an existing bundle.
        progress: Called with a line of text for each step.

    Returns:
        A report with the size, errors and time of every graph.

    Raises:
        CheckpointError: A checkpoint is unusable.
        RequestError: The output exists or cannot be written, a target, recipe or option is unknown, a target's
            packages are not installed, or the models cannot be in one bundle.
        ExportError: A conversion failed, or a graph does not match the model. ``report`` has the results so far.

    Examples:
        >>> report = export("checkpoint", "bundle", recipes=["onnx-fp32", "openvino-fp16"])  # doctest: +SKIP
        >>> print(report)  # doctest: +SKIP
    """
    output, card, say = Path(output), card or Card(), progress or (lambda _: None)
    chosen, options = select(targets, recipes), options or Options()
    _check(options, chosen)
    converters = [(recipe, target_of(recipe)) for recipe in chosen]
    place = Path(os.path.realpath(output))  # a link to a bundle stays a link
    paths = [checkpoints] if isinstance(checkpoints, str | Path) else list(checkpoints)
    if os.path.lexists(place):
        if inside := [path for path in paths if Path(os.path.realpath(path)).is_relative_to(place)]:
            raise RequestError(f"{inside[0]} is in {output}, which would be replaced: choose another output")
        _check_replaceable(output, place, force)
    models = [load_checkpoint(path) for path in paths]
    _check_together(paths, models)
    with _beside(place) as folder:
        first = ModelExport(
            models[0], folder / "graphs", card, options, tuple(leave_out), validate, say, len(models) > 1
        )
        works = [
            first,
            *(dataclasses.replace(first, model=model, lender=first, traced={}, entries={}) for model in models[1:]),
        ]
        _check_left_out(leave_out, works, chosen)
        jobs = [
            (work, recipe, target, graph)
            for work in works
            for recipe, target in converters
            for graph in work.own_graphs(recipe)
        ]
        failures: list[str] = []
        for number, (work, recipe, target, graph) in enumerate(jobs, start=1):
            say(f"[{number}/{len(jobs)}] {work.label(recipe, graph)}")
            try:
                failures += _failure(work.export_graph(recipe, target, graph))
            except ExportError as error:
                failures.append(str(error))
            if failures and not keep_going:
                break
        names = ", ".join(model.config.name for model in models)
        report = Report(names, tuple(entry for work in works for entry in work.entries.values()))
        if failures:
            raise ExportError("; ".join(failures), report)
        building = folder / "bundle"
        building.mkdir()
        parts = [work.part(recipe, target, graph) for work, recipe, target, graph in jobs]
        pack({part.name: part for part in parts}.values(), building)
        _write_manifest(building, works, converters)
        _put(building, place, folder / "replaced", force)
    return report


def _put(bundle: Path, output: Path, replaced: Path, force: bool) -> None:
    """Moves a bundle to its place, and what was there to ``replaced``.

    If that fails, what was there comes back, and the new bundle is kept beside it.

    Raises:
        ExportError: The system did not allow it, or something has appeared there that must not be replaced.
    """
    try:
        if os.path.lexists(output):
            _check_replaceable(output, output, force)
            output.rename(replaced)
        bundle.rename(output)
    except BaseException as error:
        if replaced.exists():
            replaced.rename(output)
        if not isinstance(error, OSError | RequestError):
            raise
        kept, where = replaced.parent.with_name(f"{output.name}-new"), ""
        if not kept.exists():
            with contextlib.suppress(OSError):
                bundle.rename(kept)
                where = f"; the new bundle is {kept}"
        if isinstance(error, RequestError):
            raise ExportError(f"{error}; it was not there when the export began{where}") from error
        raise ExportError(
            f"{output} cannot be replaced ({one_line(error)}): close the programs that use it{where}"
        ) from error


def _write_manifest(folder: Path, works: Sequence[ModelExport], recipes: Sequence[tuple[Recipe, Target]]) -> None:
    """Writes the manifest of a packed bundle, including memory figures.

    Memory is measured with the first model only, because the others have at most as many layers.
    """
    files, first = files_in(folder), works[0]
    described: list[list[bundle.Recipe]] = [[] for _ in works]
    for recipe, target in recipes:
        entries = [work.describe(recipe, target, files) for work in works]
        if target.BACKEND and not entries[0].shapes:
            first.say(f"{recipe.name}: measuring memory")
            alone = dataclasses.replace(entries[0], memory=_UNMEASURED)
            manifest = describe(first.model, first.card, [alone], (), files)
            (folder / MANIFEST).write_text(manifest.to_json())
            memory = footprint.measure(folder, target.BACKEND)
            entries = [dataclasses.replace(entry, memory=memory) for entry in entries]
        for own, entry in zip(described, entries, strict=True):
            own.append(entry)
    models = [
        describe(work.model, work.card, own, work.results(), files) for work, own in zip(works, described, strict=True)
    ]
    (folder / MANIFEST).write_text(write_models(models))


def _check_together(paths: Sequence[str | Path], models: Sequence[InfGen]) -> None:
    """Checks that models can be in one bundle.

    Raises:
        RequestError: There is no model, two models have the same latent space, or a model differs from the first in
            weights that the models of a bundle share.
    """
    if not models:
        raise RequestError("no checkpoint to export: expected one folder or more")
    for number, (path, model) in enumerate(zip(paths, models, strict=True)):
        space = model.config.latent_space
        if space in {other.config.latent_space for other in models[:number]}:
            raise RequestError(f"{path} is a second model for {space} latents: a bundle has one for each latent space")
        if not shares(models[0], model):
            raise RequestError(
                f"{path} and {paths[0]} differ in what models of one bundle share, which is everything except the "
                "trunk and the encoder: export each to its own bundle"
            )


def _check_left_out(patterns: Sequence[str], works: Sequence[ModelExport], recipes: Sequence[Recipe]) -> None:
    """Checks the patterns of graphs to leave out.

    Raises:
        RequestError: A pattern matches no graph, or it matches a graph that pictures need.
    """
    labels = {
        work.label(recipe, graph): graph.kind.picture
        for work in works
        for recipe in recipes
        for graph in graphs_of(work.model)
    }
    for pattern in patterns:
        matching = {label: needed for label, needed in labels.items() if fnmatchcase(label, pattern)}
        if not matching:
            raise RequestError(f"no graph matches {pattern!r}: their names are like {next(iter(labels))!r}")
        if needed := next((label for label, needed in matching.items() if needed), None):
            raise RequestError(f"{needed!r} cannot be left out, because pictures need it")


def _failure(entry: GraphReport) -> list[str]:
    """The message about a graph that differs from PyTorch, as a list of one. The list is empty if it does not."""
    failures = entry.failures()
    if not failures:
        return []
    worst = max(failures, key=lambda check: check.max_error)
    return [
        f"{entry.label} differs from PyTorch in {len(failures)} of {len(entry.checks)} cases, most in "
        f"{worst.case!r}: {worst.max_error:.1e} of full scale at {list(worst.worst)} of {list(worst.shape)}, "
        f"{worst.psnr:.0f} dB"
    ]


def _check(options: Options, recipes: Sequence[Recipe]) -> None:
    """Checks the options of conversions.

    Raises:
        RequestError: An option has an unsupported value, or is for a target that is not exported.
    """
    if not OPSETS[0] <= options.opset <= OPSETS[1]:
        raise RequestError(f"opset {options.opset} is not possible: expected {OPSETS[0]} to {OPSETS[1]}")
    if options.deployment_target not in DEPLOYMENT_TARGETS:
        expected = ", ".join(DEPLOYMENT_TARGETS)
        raise RequestError(f"unknown deployment target {options.deployment_target!r}: expected one of {expected}")
    targets, usual = {recipe.target for recipe in recipes}, Options()
    for given, target, option in (
        (options.opset != usual.opset, "onnx", "--opset"),
        (options.deployment_target != usual.deployment_target, "coreml", "--min-deployment-target"),
    ):
        if given and target not in targets:
            raise RequestError(f"{option} is for {target}, which is not exported: leave it out, or export {target} too")


@contextlib.contextmanager
def _beside(output: Path) -> Iterator[Path]:
    """A temporary folder on the same file system as the output. It is deleted afterwards.

    Folders that processes have left behind when they died are deleted first.
    """
    held = contextlib.ExitStack()
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(output.parent, re.compile(re.escape(f".{output.name}.") + "[0-9a-f]{8}"))
        folder = claim(lambda unique: output.with_name(f".{output.name}.{unique}"), held, 0o700)
    except OSError as error:
        raise RequestError(f"{output} cannot be written: {reason(error)}") from error
    try:
        with held:
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _check_replaceable(named: Path, output: Path, force: bool) -> None:
    """Checks that a path may be replaced. Only the folder of a bundle, of any version, is ever replaced.

    Args:
        named: The path as the user has named it, for messages.
        output: The path without links.
        force: Whether the user wants to replace a bundle.

    Raises:
        RequestError: It may not be replaced.
    """
    try:
        found = json.loads((output / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or "format" not in found or found.keys().isdisjoint(("models", "recipes")):
        raise RequestError(f"{named} exists: it is not a bundle's folder, so choose another output")
    if not force:
        raise RequestError(f"{named} exists: use --force to replace it")
    listed = found.get("files")
    there = {file.relative_to(output).as_posix() for file in output.rglob("*") if not file.is_dir()}
    if isinstance(listed, dict) and (strangers := there - {MANIFEST, *listed}):
        raise RequestError(
            f"{named} exists: it is a bundle with other files in it, such as {min(strangers)}, which would be deleted: "
            "move them, or choose another output"
        )
