"""The export from a checkpoint to a bundle on disk."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from infgen_export import footprint
from infgen_export.errors import LONGEST, ExportError, RequestError
from infgen_export.inputs import trace_inputs
from infgen_export.quiet import quiet
from infgen_export.recipes import Recipe, select
from infgen_export.report import GraphReport, Report
from infgen_export.targets import DEPLOYMENT_TARGETS, OPSETS, Options, Session, Target, target_of
from infgen_export.verify import Case, Check, case_inputs, verify
from infgen_export.work import context_work
from infgen_model import InfGen
from infgen_model.checkpoint import load_checkpoint
from infgen_model.graphs import MAX_CELLS, MAX_TOKENS, Graph, graphs_of
from infgen_rt.bundle import manifest as bundle
from infgen_rt.bundle.graphs import kind_of
from infgen_rt.bundle.manifest import MANIFEST, FileInfo, Halo, Manifest, Memory, ModelInfo, Shapes
from infgen_rt.errors import one_line
from infgen_rt.geometry.shapes import Size

_UNMEASURED = Memory(0, 0, 0)
_TILE = Case("one tile", Size(64, 64), Size(512, 512))
"""The case that is timed."""


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


def export(
    checkpoint: str | Path,
    output: str | Path,
    targets: Sequence[str] = (),
    recipes: Sequence[str] = (),
    *,
    card: Card | None = None,
    options: Options | None = None,
    validate: bool = True,
    keep_going: bool = False,
    force: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Report:
    """Converts a checkpoint, verifies every graph against PyTorch and writes the bundle.

    The bundle appears at ``output`` only if it is complete and verified.

    Args:
        checkpoint: Folder with ``config.json`` and ``model.safetensors``.
        output: Bundle folder to make.
        targets: Formats from ``recipes.TARGETS``, or ``"all"``. If omitted, those of the recipes, or ONNX if there are
            none.
        recipes: Names from ``recipes.RECIPES``, or ``"all"``. If omitted, the targets' defaults.
        card: Information about the model for the manifest.
        options: Options of conversions.
        validate: Verify every graph. If false, the manifest and the report say that nothing was verified.
        keep_going: Try the other graphs after one has failed, so that the error reports all failures.
        force: Replace an existing bundle.
        progress: Called with a line of text for each step.

    Returns:
        A report with the sizes, errors and times of every graph.

    Raises:
        CheckpointError: The checkpoint is unusable.
        RequestError: The output exists or cannot be written, a target, recipe or option is unknown, or a target's
            packages are not installed.
        ExportError: A conversion failed, or a graph does not match the model. ``report`` has the results so far.
    """
    output, card, say = Path(output), card or Card(), progress or (lambda _: None)
    chosen, options = select(targets, recipes), options or Options()
    _check(options)
    converters = [(recipe, target_of(recipe)) for recipe in chosen]
    if output.exists() and not (force and _replaceable(output)):
        reason = "use --force to replace it" if _replaceable(output) else "it is not a bundle, so it is left alone"
        raise RequestError(f"{output} exists: {reason}")
    model = load_checkpoint(checkpoint)
    with _beside(output) as folder:
        building = folder / "bundle"
        work = _Work(model, building, card, options, validate, say)
        jobs = [(recipe, target, graph) for recipe, target in converters for graph in work.graphs_of(recipe)]
        entries: list[GraphReport] = []
        failures: list[str] = []
        for number, (recipe, target, graph) in enumerate(jobs, start=1):
            say(f"[{number}/{len(jobs)}] {recipe.name}: {graph.name}")
            try:
                entry = work.export_graph(recipe, target, graph)
            except ExportError as error:
                failures.append(str(error))
            else:
                entries.append(entry)
                failures += _failure(entry)
            if failures and not keep_going:
                break
        report = Report(model.config.name, tuple(entries))
        if failures:
            raise ExportError("; ".join(failures), report)
        work.write_manifest(converters, entries)
        if output.exists():
            output.rename(folder / "replaced")
        shutil.move(building, output)
    return report


@dataclass(frozen=True)
class _Work:
    """An export in progress in a folder."""

    model: InfGen
    folder: Path
    card: Card
    options: Options
    validate: bool
    say: Callable[[str], None]
    traced: dict[tuple[Any, ...], Any] = dataclasses.field(default_factory=dict)

    def graphs_of(self, recipe: Recipe) -> tuple[Graph, ...]:
        """The model's graphs with a recipe's shapes."""
        return graphs_of(self.model, recipe.shapes(self.model.config))

    def export_graph(self, recipe: Recipe, target: Target, graph: Graph) -> GraphReport:
        path = self._path(recipe, target, graph)
        path.parent.mkdir(parents=True, exist_ok=True)
        began = time.perf_counter()
        try:
            with quiet():
                key = (recipe.target, graph.name, graph.shapes)
                if key not in self.traced:
                    self.traced[key] = target.trace(graph, trace_inputs(graph, self.model), self.options)
                traced = self.traced[key]
                target.convert(traced, graph, path, self._metadata(graph), recipe, self.options)
                session = target.load(path, graph.name)
        # Converters may raise any exception.
        except Exception as error:
            raise ExportError(f"{recipe.name} {graph.name} cannot be converted: {one_line(error, LONGEST)}") from error
        entry = GraphReport(
            recipe=recipe.name,
            graph=graph.name,
            precision=recipe.precision,
            bytes=sum(file.stat().st_size for file in _files(path)),
            parameters=sum(p.numel() for p in graph.module.parameters()),
            operations=dict(session.operations.most_common()),
            checks=(),
            seconds=None,
            native={},
        )
        self.say(f"  converted in {time.perf_counter() - began:.1f} s, {entry.bytes / 1e6:.1f} MB")
        if not self.validate:
            return entry
        try:
            checks = tuple(self._told(verify(self.model, graph, session, recipe.precision)))
            # Fixed shapes are for devices other than this CPU.
            general = all(check.passed for check in checks) and not recipe.tiles
            native = self._native(target, path, graph, recipe) if general else {}
        except ExportError as error:
            raise ExportError(f"{recipe.name} {error}") from error
        seconds = self._seconds(graph, session) if target.NATIVE else None
        return dataclasses.replace(entry, checks=checks, seconds=seconds, native=native)

    def write_manifest(self, recipes: Sequence[tuple[Recipe, Target]], entries: Sequence[GraphReport]) -> None:
        """Writes the manifest, including memory figures."""
        described = []
        for recipe, target in recipes:
            paths = {graph.name: self._path(recipe, target, graph) for graph in self.graphs_of(recipe)}
            names = {graph: path.relative_to(self.folder).as_posix() for graph, path in paths.items()}
            shapes = recipe.shapes(self.model.config)
            entry = bundle.Recipe(recipe.name, recipe.target, recipe.precision, names, None, shapes)
            if target.BACKEND and not shapes:
                self.say(f"{recipe.name}: measuring memory")
                self._write(dataclasses.replace(entry, memory=_UNMEASURED), entries=entries)
                entry = dataclasses.replace(entry, memory=footprint.measure(self.folder, target.BACKEND))
            described.append(entry)
        self._write(*described, entries=entries)

    def _write(self, *recipes: bundle.Recipe, entries: Sequence[GraphReport]) -> None:
        config = self.model.config
        files = {}
        for recipe in recipes:
            for name in recipe.graphs.values():
                for file in _files(self.folder / name):
                    content = file.read_bytes()
                    key = file.relative_to(self.folder).as_posix()
                    files[key] = FileInfo(hashlib.sha256(content).hexdigest(), len(content))
        # All graphs of a kind share their parameters, and statistics uses prefill's.
        parts = {graph.kind: graph.module for graph in graphs_of(self.model) if graph.kind == kind_of(graph.kind).part}
        parameters = {kind: sum(p.numel() for p in module.parameters()) for kind, module in parts.items()}
        card = self.card
        manifest = Manifest(
            model=ModelInfo(config.name, card.version, card.licence, card.training, parameters),
            latent_space=config.latent_space,
            latent_channels=config.latent_channels,
            context_channels=config.context_channels(),
            patch=config.PATCH,
            scale_range=config.scale_range,
            halo=Halo(
                config.halo_tokens, config.halo_cells, config.encode_halo, config.refine_halo(), config.prefill_halo
            ),
            shapes=Shapes((1, MAX_CELLS), (1, MAX_CELLS), (1, MAX_TOKENS)),
            recipes=recipes,
            files=files,
            verification=tuple(entry.to_json() for entry in entries),
            feature_channels=config.feature_channels if config.detail else None,
            fine_channels=config.fine_channels,
            moments=config.moments,
            enlargements=tuple(
                bundle.Enlargement(
                    each.factor,
                    config.context_channels(each),
                    config.refine_halo(each),
                    context_work(self.model, each),
                )
                for each in config.enlargements
            ),
        )
        (self.folder / MANIFEST).write_text(manifest.to_json())

    def _path(self, recipe: Recipe, target: Target, graph: Graph) -> Path:
        return self.folder / recipe.name / (target.SHARED or f"{graph.name}{target.SUFFIX}")

    def _metadata(self, graph: Graph) -> dict[str, str]:
        config = self.model.config
        return {
            "author": "infgen-rt",
            "licence": self.card.licence,
            "version": self.card.version,
            "model": config.name,
            "latent_space": config.latent_space,
            "scale_range": "{}..{}".format(*config.scale_range),
            "graph": graph.name,
        }

    def _native(self, target: Target, path: Path, graph: Graph, recipe: Recipe) -> dict[str, float]:
        """Lowest PSNR in each low precision that the target's runtime would choose on this machine."""
        found = {}
        for precision in target.native_precisions():
            with quiet():
                session = target.load(path, graph.name, precision)
            # Weights in 8 bits limit the quality, in any precision of the runtime.
            least = "int8" if recipe.precision == "int8" else precision
            checks = list(verify(self.model, graph, session, least))
            if failed := [check for check in checks if not check.passed]:
                raise ExportError(f"{graph.name} in {precision} has {failed[0].psnr:.0f} dB at {failed[0].case!r}")
            found[precision] = min(check.psnr for check in checks)
        return found

    def _told(self, checks: Iterable[Check]) -> Iterator[Check]:
        """Reports each check as soon as it is done."""
        for check in checks:
            verdict = "" if check.passed else ", NOT the model's equal"
            self.say(f"  {check.case}: error {check.max_error:.1e}, {check.psnr:.0f} dB{verdict}")
            yield check

    def _seconds(self, graph: Graph, session: Session) -> float:
        """Median time of three runs, after a first run that is not counted."""
        inputs = case_inputs(self.model, graph, _TILE, torch.Generator().manual_seed(0))
        times = []
        for _ in range(4):
            start = time.perf_counter()
            session(inputs)
            times.append(time.perf_counter() - start)
        return statistics.median(times[1:])


def _failure(entry: GraphReport) -> list[str]:
    """The problems of a graph, if there are any."""
    failures = entry.failures()
    if not failures:
        return []
    worst = max(failures, key=lambda check: check.max_error)
    return [
        f"{entry.recipe} {entry.graph} differs from PyTorch in {len(failures)} of {len(entry.checks)} cases, most in "
        f"{worst.case!r}: {worst.max_error:.1e} of full scale at {list(worst.worst)} of {list(worst.shape)}, "
        f"{worst.psnr:.0f} dB"
    ]


def _check(options: Options) -> None:
    if not OPSETS[0] <= options.opset <= OPSETS[1]:
        raise RequestError(f"opset {options.opset} is not possible: expected {OPSETS[0]} to {OPSETS[1]}")
    if options.deployment_target not in DEPLOYMENT_TARGETS:
        expected = ", ".join(DEPLOYMENT_TARGETS)
        raise RequestError(f"unknown deployment target {options.deployment_target!r}: expected one of {expected}")


@contextlib.contextmanager
def _beside(output: Path) -> Iterator[Path]:
    """A temporary folder on the same file system as the output. It is deleted afterwards."""
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent)
    except OSError as error:
        raise RequestError(f"{output} cannot be written: {error.strerror}") from error
    with folder as name:
        yield Path(name)


def _files(path: Path) -> list[Path]:
    """The files of a graph, which is a file or a folder."""
    return sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]


def _replaceable(output: Path) -> bool:
    return (output / MANIFEST).is_file()
