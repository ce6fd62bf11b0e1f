"""The whole way from a checkpoint to a bundle on disk."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import logging
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from infgen_export import footprint
from infgen_export.checkpoint import load_checkpoint
from infgen_export.errors import ExportError, RequestError, one_line
from infgen_export.graphs import MAX_CELLS, MAX_TOKENS, graphs_of, trace_inputs
from infgen_export.model import InfGen
from infgen_export.report import GraphReport, Report
from infgen_export.targets import onnx
from infgen_export.verify import verify
from infgen_rt.bundle import MANIFEST, FileInfo, Halo, Manifest, Memory, ModelInfo, Recipe, Shapes

TARGETS = ("onnx",)
_UNMEASURED = Memory(0, 0, 0)


@dataclass(frozen=True)
class Card:
    """What a bundle says of its model.

    Attributes:
        version: Of the weights.
        licence: Of the weights.
        training: How they were made.
    """

    version: str = "0"
    licence: str = "unspecified"
    training: str = "unspecified"


def export(
    checkpoint: str | Path,
    output: str | Path,
    targets: Sequence[str] = TARGETS,
    *,
    card: Card | None = None,
    opset: int = onnx.OPSET,
    force: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Report:
    """Converts a checkpoint, proves every graph against PyTorch and writes the bundle.

    The bundle appears at ``output`` whole and proven, or not at all.

    Args:
        checkpoint: Folder with ``config.json`` and ``model.safetensors``.
        output: Bundle folder to make.
        targets: Formats, from ``TARGETS``.
        card: What the manifest says of the model.
        opset: ONNX operator set.
        force: Replace an existing bundle.
        progress: Told what is being done, a line at a time.

    Returns:
        Sizes and errors of every graph.

    Raises:
        CheckpointError: The checkpoint is unusable.
        RequestError: The output exists or cannot be written, or a target is unknown.
        ExportError: A conversion failed or a graph is not the model's equal.
    """
    output, card, say = Path(output), card or Card(), progress or (lambda _: None)
    if unknown := sorted(set(targets) - set(TARGETS)):
        raise RequestError(f"unknown target {unknown[0]!r}: expected one of {', '.join(TARGETS)}")
    if output.exists() and not (force and _replaceable(output)):
        reason = "use --force to replace it" if _replaceable(output) else "it is not a bundle, so it is left alone"
        raise RequestError(f"{output} exists: {reason}")
    model = load_checkpoint(checkpoint)
    with _beside(output) as folder:
        building = folder / "bundle"
        recipe, entries = _export_onnx(model, building, card, opset, say)
        manifest = _manifest(model, building, card, (recipe,), entries)
        (building / MANIFEST).write_text(manifest.to_json())
        say(f"{recipe.name}: measuring memory")
        recipe = dataclasses.replace(recipe, memory=footprint.measure(building, onnx.BACKEND))
        (building / MANIFEST).write_text(dataclasses.replace(manifest, recipes=(recipe,)).to_json())
        if output.exists():
            output.rename(folder / "replaced")
        shutil.move(building, output)
    return Report(tuple(entries))


@contextlib.contextmanager
def _beside(output: Path) -> Iterator[Path]:
    """A folder for what is being made, on the file system where it shall end up; gone afterwards."""
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent)
    except OSError as error:
        raise RequestError(f"{output} cannot be written: {error.strerror}") from error
    with folder as name:
        yield Path(name)


def _export_onnx(
    model: InfGen, folder: Path, card: Card, opset: int, say: Callable[[str], None]
) -> tuple[Recipe, list[GraphReport]]:
    name = "onnx-fp32"
    (folder / name).mkdir(parents=True)
    metadata = {
        "author": "infgen-rt",
        "licence": card.licence,
        "model": model.config.name,
        "latent_space": model.config.latent_space,
        "scale_range": "{}..{}".format(*model.config.scale_range),
    }
    entries, files = [], {}
    for graph in graphs_of(model):
        file = folder / name / f"{graph.name}.onnx"
        say(f"{name}: converting {graph.name}")
        try:
            with _quiet():
                onnx.convert(graph, trace_inputs(graph, model), file, metadata | {"graph": graph.name}, opset)
                session = onnx.Session(file)
        # Converters raise whatever they like.
        except Exception as error:
            raise ExportError(f"{name} {graph.name} cannot be converted: {one_line(error)}") from error
        say(f"{name}: verifying {graph.name}")
        checks = tuple(verify(model, graph, session))
        parameters = sum(p.numel() for p in graph.module.parameters())
        entry = GraphReport(name, graph.name, file.stat().st_size, parameters, checks)
        if failures := entry.failures():
            worst = max(failures, key=lambda check: check.max_error)
            raise ExportError(
                f"{name} {graph.name} differs from PyTorch in {len(failures)} of {len(checks)} cases, most in "
                f"{worst.case!r}: {worst.max_error:.1e} of full scale at {list(worst.worst)} of {list(worst.shape)}"
            )
        entries.append(entry)
        files[graph.name] = file
    graphs = {graph: file.relative_to(folder).as_posix() for graph, file in files.items()}
    return Recipe(name, "onnx", "fp32", graphs, _UNMEASURED), entries


def _manifest(
    model: InfGen, folder: Path, card: Card, recipes: tuple[Recipe, ...], entries: Sequence[GraphReport]
) -> Manifest:
    config = model.config
    files = {}
    for recipe in recipes:
        for name in recipe.graphs.values():
            content = (folder / name).read_bytes()
            files[name] = FileInfo(hashlib.sha256(content).hexdigest(), len(content))
    parameters = {entry.graph: entry.parameters for entry in entries}
    return Manifest(
        model=ModelInfo(config.name, card.version, card.licence, card.training, parameters),
        latent_space=config.latent_space,
        latent_channels=config.latent_channels,
        context_channels=config.context_channels,
        patch=config.PATCH,
        scale_range=config.scale_range,
        halo=Halo(config.halo_tokens, config.halo_cells, config.encode_halo),
        shapes=Shapes((1, MAX_CELLS), (1, MAX_CELLS), (1, MAX_TOKENS)),
        recipes=recipes,
        files=files,
        verification=tuple(entry.to_json() for entry in entries),
    )


def _replaceable(output: Path) -> bool:
    return (output / MANIFEST).is_file()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the converter's own progress, meant for its developers, off the terminal."""
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)
