"""Converts and verifies the graphs of one model. ``packing`` then makes a bundle of them."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch

from infgen_export.description import Card
from infgen_export.errors import LONGEST, ExportError
from infgen_export.inputs import trace_inputs
from infgen_export.packing import Part
from infgen_export.quiet import quiet
from infgen_export.recipes import Recipe
from infgen_export.report import GraphReport, label_of
from infgen_export.targets import Options, Session, Target
from infgen_export.verify import LEAST_PSNR, Case, Check, case_inputs, verify
from infgen_model import InfGen
from infgen_model.graphs import Graph, graphs_of
from infgen_rt.bundle import manifest as bundle
from infgen_rt.bundle.graphs import kind_of, weights_name
from infgen_rt.errors import one_line
from infgen_rt.geometry.shapes import Size

_TILE = Case("one tile", Size(64, 64), Size(512, 512))
"""The case that is timed."""


@dataclass(frozen=True)
class ModelExport:
    """The export of one model in progress.

    Attributes:
        model: The model.
        folder: Where converted graphs are written.
        card: Information that the model itself does not have.
        options: Options of conversions.
        leave_out: Patterns for the labels of graphs to leave out.
        validate: Whether graphs are verified.
        say: Called with a line of text for each step.
        several: Whether the bundle has models of several latent spaces.
        lender: The export of another model, whose graphs this model uses unless they belong to a latent space.
            ``None`` for the first model of a bundle.
        traced: Traced graphs, by target, name and shapes.
        entries: The results so far, by the names of recipe and graph.
    """

    model: InfGen
    folder: Path
    card: Card
    options: Options
    leave_out: tuple[str, ...]
    validate: bool
    say: Callable[[str], None]
    several: bool
    lender: ModelExport | None = None
    traced: dict[tuple[Any, ...], Any] = field(default_factory=dict)
    entries: dict[tuple[str, str], GraphReport] = field(default_factory=dict)

    def graphs_of(self, recipe: Recipe) -> tuple[Graph, ...]:
        """The model's graphs with a recipe's shapes, without those that are left out."""
        return tuple(
            graph
            for graph in graphs_of(self.model, recipe.shapes(self.model.config))
            if not self._left_out(recipe, graph)
        )

    def own_graphs(self, recipe: Recipe) -> tuple[Graph, ...]:
        """The graphs that this model exports itself, because no other model lends them."""
        return tuple(graph for graph in self.graphs_of(recipe) if self._owner(graph) is self)

    def label(self, recipe: Recipe, graph: Graph) -> str:
        """The name of an exported graph; see ``label_of``."""
        return label_of(recipe.name, graph.name, self._space(graph))

    def _left_out(self, recipe: Recipe, graph: Graph) -> bool:
        """Whether a pattern leaves a graph out. The graphs of an encoder are useless without each other."""
        together = [graph]
        if not graph.kind.picture:
            together = [each for each in graphs_of(self.model) if not each.kind.picture]
        labels = [self.label(recipe, each) for each in together]
        return any(fnmatchcase(label, pattern) for label in labels for pattern in self.leave_out)

    def file(self, recipe: Recipe, target: Target, graph: Graph) -> str:
        """The name of a graph's file or folder in the bundle."""
        owner = self._owner(graph)
        if not target.SHARED:
            return f"{owner.label(recipe, graph)}{target.SUFFIX}"
        space = f".{owner.model.config.latent_space}" if self.several else ""
        return f"{recipe.name}{space}{target.SUFFIX}"

    def path(self, recipe: Recipe, target: Target, graph: Graph) -> Path:
        """Where a graph is converted to. No other graph has files in the folder around it, unless they share a file."""
        name = self.file(recipe, target, graph)
        return self.folder / name / name

    def part(self, recipe: Recipe, target: Target, graph: Graph) -> Part:
        """A converted graph, or the file that it shares with the model's other graphs, for the bundle."""
        # Graphs of other models may be in the first model's files, so its weights are with those that all models share.
        space = self.model.config.latent_space if self.lender else None
        return Part(target, self.path(recipe, target, graph), self.file(recipe, target, graph), space)

    def _space(self, graph: Graph) -> str | None:
        return self.model.config.latent_space if self.several and graph.kind.of_space else None

    def _owner(self, graph: Graph) -> ModelExport:
        return self if self.lender is None or graph.kind.of_space else self.lender

    def export_graph(self, recipe: Recipe, target: Target, graph: Graph) -> GraphReport:
        """Converts and verifies a graph.

        Raises:
            ExportError: The graph cannot be converted or does not run, or its output has another shape than the
                model's, or it does not pass in a precision that the runtime may choose by itself.
        """
        path = self.path(recipe, target, graph)
        path.parent.mkdir(parents=True, exist_ok=True)
        before = _size(path.parent)
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
            raise ExportError(f"{self.label(recipe, graph)} cannot be converted: {one_line(error, LONGEST)}") from error
        entry = GraphReport(
            recipe=recipe.name,
            graph=graph.name,
            space=self._space(graph),
            precision=recipe.precision,
            bytes=_size(path.parent) - before,
            parameters=sum(p.numel() for p in graph.module.parameters()),
            operations=dict(session.operations.most_common()),
            checks=(),
            seconds=None,
            native={},
        )
        self.say(f"  converted in {time.perf_counter() - began:.1f} s, {entry.bytes / 1e6:.1f} MB")
        if self.validate:
            label = self.label(recipe, graph)
            checks = tuple(self._told(verify(self.model, graph, session, recipe.precision, label)))
            # Graphs of fixed shapes are for other devices, so this CPU's precisions do not matter to them.
            general = all(check.passed for check in checks) and not recipe.tiles
            native = self._native(target, path, graph, recipe) if general else {}
            seconds = self._seconds(graph, session) if target.NATIVE else None
            entry = dataclasses.replace(entry, checks=checks, seconds=seconds, native=native)
        self.entries[recipe.name, graph.name] = entry
        return entry

    def describe(self, recipe: Recipe, target: Target, files: Collection[str]) -> bundle.Recipe:
        """The recipe's entry in the manifest, without memory figures.

        Args:
            recipe: The recipe.
            target: The module of its target.
            files: Names of the bundle's files.
        """
        graphs = {graph.name: self.file(recipe, target, graph) for graph in self.graphs_of(recipe)}
        stored = [weights_name(space) for space in (None, self.model.config.latent_space)]
        weights, own = (name if name in files and target.POOLED else None for name in stored)
        shapes = recipe.shapes(self.model.config)
        suiting = {name: recipe.compute_units(kind_of(name)) for name in graphs}
        units = {name: chosen for name, chosen in suiting.items() if chosen}
        return bundle.Recipe(recipe.name, recipe.target, recipe.precision, graphs, None, shapes, weights, units, own)

    def results(self) -> tuple[GraphReport, ...]:
        """The results of all graphs of the model, including those that another model lends."""
        lent = self.lender.entries if self.lender else {}
        shared = (entry for entry in lent.values() if not kind_of(entry.graph).of_space)
        return (*self.entries.values(), *shared)

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
        """Lowest PSNR in decibels, by each low precision that the target's runtime may choose on this machine.

        Runtimes compute an encoder in float32 if it does not pass. Other graphs must pass.

        Raises:
            ExportError: The graph does not run in one of these precisions, or does not pass.
        """
        found, label = {}, self.label(recipe, graph)
        for precision in target.native_precisions():
            try:
                with quiet():
                    session = target.load(path, graph.name, precision)
            # Runtimes may raise any exception.
            except Exception as error:
                raise ExportError(f"{label} cannot be loaded in {precision}: {one_line(error, LONGEST)}") from error
            # Weights in 8 bits limit the quality whatever the runtime's precision, so their own limit applies.
            least = "int8" if recipe.precision == "int8" else precision
            checks = list(verify(self.model, graph, session, least, f"{label} in {precision}"))
            if graph.kind.picture and (failed := [check for check in checks if not check.passed]):
                worst = min(failed, key=lambda check: check.psnr)
                raise ExportError(
                    f"{label} in {precision} has {worst.psnr:.0f} dB against PyTorch in {worst.case!r}, expected "
                    f"{LEAST_PSNR[least]:.0f} dB or more"
                )
            found[precision] = min(check.psnr for check in checks)
        return found

    def _told(self, checks: Iterable[Check]) -> Iterator[Check]:
        """Reports each check as soon as it is done."""
        for check in checks:
            verdict = "" if check.passed else ", NOT close enough to PyTorch"
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


def _size(folder: Path) -> int:
    """The size of all files in a folder and its subfolders, in bytes."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
