"""Loads the graphs of one model and runs them. No more of them run at the same time than the memory plan allows."""

import os
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from itertools import takewhile
from threading import Lock
from typing import Any, Protocol, cast
from weakref import WeakSet

import numpy as np

from infgen_rt.backend import forks
from infgen_rt.backend.candidates import LEAST_PSNR, Candidate, Survey
from infgen_rt.backend.ending import end_at_exit
from infgen_rt.backend.gate import Gate
from infgen_rt.backend.inputs import fill, statistics_inputs
from infgen_rt.backend.others import instead_of
from infgen_rt.backend.protocol import Options, Session, Values
from infgen_rt.bundle.folder import Bundle
from infgen_rt.bundle.graphs import DECODE, Kind, kind_of
from infgen_rt.bundle.manifest import Enlargement
from infgen_rt.common.callers import raise_callers
from infgen_rt.common.cancellation import current
from infgen_rt.common.folders import writable_cache
from infgen_rt.common.memory import give_back
from infgen_rt.common.notices import warn
from infgen_rt.common.pixels import FloatArray
from infgen_rt.common.shortages import MORE_MEMORY, remedy
from infgen_rt.errors import BackendError, DecodeError
from infgen_rt.geometry.shapes import Size
from infgen_rt.geometry.tiling import LARGEST_SHARED_TILE, LARGEST_TILE

_SHARED = "shared "
# Seconds to wait at the end of the interpreter for a graph that runs. A device that hangs must not keep the process.
_PATIENCE = 10.0
_LESS = "; pass less memory (--memory) or a smaller tile (--tile), or "


@dataclass(frozen=True)
class Purpose:
    """What graphs run for. Memory that they keep is of use for runs of the same purpose only.

    Attributes:
        about: what it is, as anything that can be compared.
        keeps: whether there is room for all graphs to keep their working memory between runs. Decode always does.
    """

    about: Hashable
    keeps: bool = False


IDLE = Purpose("idle")
"""The purpose between runs. Declaring it frees the memory that graphs keep."""
_ENCODING = Purpose("encoding", keeps=True)


class Borrower(Protocol):
    """An object that holds results of an engine, possibly in the memory of a backend's device."""

    def let_go(self) -> None:
        """Release the results. The engine calls this when it is closed."""
        ...


class Engine:
    """Runs a recipe's graphs. Several threads may use it.

    The graphs for pictures are loaded when the engine is created, except those that exist once per enlargement, which
    `load_for` loads, and those that decode tiles. Those of the encoder are loaded by `load_encoder`. Two graphs of an
    enlargement can decode, and each exists in two forms, for one tile at a time and for several. Most pictures need
    only one of the four, so each is loaded when it is first needed.

    If a result in a lower arithmetic than float32 has NaN or infinite values, it is computed again in float32 on the
    same device, provided that the bundle has graphs for that.

    Attributes:
        manifest: the model's manifest.
        recipe: the recipe whose graphs are loaded.
        workers: the best number of tiles to decode at the same time, with one thread each. It is 1 if decoding one tile
            with all threads is faster.
        largest: the sides in tokens above which larger tiles are not faster: of a tile that is decoded alone, and of
            one that is decoded at the same time as others.

    Args:
        bundle: the opened bundle.
        candidate: how the bundle is run.
        threads: the number of CPU threads. None for the backend's default.
        advises: whether errors of the backend end with advice about what to use instead.

    Raises:
        BackendError: a graph cannot be loaded.
    """

    def __init__(self, bundle: Bundle, candidate: Candidate, threads: int | None = None, advises: bool = False) -> None:
        self.manifest = bundle.manifest
        self.recipe = candidate.recipe
        self._bundle, self._candidate, self._threads, self._advises = bundle, candidate, threads, advises
        self._sessions: dict[str, Session] = {}
        self._checked: set[str] = set()
        self._kinds = {kind.name: kind for kind in self.manifest.kinds(self.recipe)}
        self._closed, self._birthplace = False, forks.Birthplace()
        forks.keep_in_children(self)
        end_at_exit(self)
        self._exact: Engine | None = None
        self._purpose = IDLE
        self._borrowers: WeakSet[Borrower] = WeakSet()
        parallel = candidate.device.id in getattr(candidate.backend, "parallel_on", ())
        self.workers = (threads or cores()) if parallel else 1
        largest: int | None = getattr(candidate.backend, "largest_tile", None)
        self.largest = (largest or LARGEST_TILE, largest or LARGEST_SHARED_TILE)
        # A run that uses all threads runs alone, because two at the same time would only double the memory.
        self._gate = Gate(self.workers)
        self._lock = Lock()
        for kind in self._kinds.values():
            if kind.picture and not kind.enlarged:
                self.load(kind.name)
        if not self.manifest.enlargements:
            self.load_for(self.manifest.contexts[0])

    def load(self, graph: str) -> None:
        """Load a graph of the recipe, if it is not loaded yet.

        Raises:
            BackendError: it cannot be loaded.
            DecodeError: the engine is closed.
            Cancelled: the current work was cancelled.
        """
        self._load(graph, graph, self._threads)

    def load_encoder(self) -> None:
        """Load the graphs that encode a picture, which the recipe must have. The errors are those of `load`."""
        for kind in self._kinds.values():
            if not kind.picture:
                self.load(kind.name)

    def load_for(self, enlargement: Enlargement) -> None:
        """Load the graphs that compute an enlargement's context, and check those that decode, which are loaded later.

        Raises:
            BundleError: a file is damaged.
            BackendError: a graph cannot be loaded.
            DecodeError: the engine is closed.
            Cancelled: the current work was cancelled.
        """
        for kind in self._kinds.values():
            if kind.enlarged and not kind.kept:
                self.load(enlargement.graph(kind.name))
        self.check_open()
        for kind in self._kinds.values():
            graph = enlargement.graph(kind.name)
            if kind.kept and graph in self.recipe.graphs and graph not in self._checked:
                self._bundle.check_graph(self.recipe, graph)
                self._checked.add(graph)

    def load_shared(self, kind: Kind, enlargement: Enlargement) -> None:
        """Load a graph that decodes for runs with one thread each. The errors are those of `load`."""
        graph = enlargement.graph(kind.name)
        self._load(_SHARED + graph, graph, 1, self.workers)

    def _load(self, key: str, graph: str, threads: int | None, runs: int = 1) -> None:
        self._birthplace.check()
        # Loading cannot be interrupted, but if the work was cancelled, no further graph is loaded.
        current().check()
        with self._lock:
            if key in self._sessions:
                return
            self.check_open()
            backend, device = self._candidate.backend, self._candidate.device
            kind, cache = kind_of(graph), writable_cache(backend.name)
            options = Options(device.id, self._arithmetic(kind), threads, runs, cache)
            files = self._bundle.read_graph(self.recipe, graph)
            try:
                self._sessions[key] = backend.load(graph, files, options)
            except BackendError as error:
                raise_callers(error)
                raise BackendError(f"{error}{self._advice(error)}") from error
            if not getattr(backend, "survives_fork", True):
                forks.note_use(backend.name)

    def _arithmetic(self, kind: Kind) -> str:
        """The arithmetic for a kind of graph.

        An encoder runs in a lower arithmetic than float32 only if the exporter has measured that it is close enough. In
        bfloat16, some encoders agree with float32 to 35 dB only.
        """
        chosen = self._candidate.arithmetic
        if not kind.picture:
            measured = self.manifest.psnr(self.recipe.name, chosen, encoding=True)
            if measured is None or measured < LEAST_PSNR:
                return self._candidate.backend.arithmetics(self._candidate.device.id, self.recipe)[0]
        return chosen

    def run(
        self, kind: Kind, inputs: Mapping[str, Any], enlargement: Enlargement | None = None, shared: bool = False
    ) -> Values:
        """Run a graph of a kind that the recipe has. It is loaded first, if it is not loaded yet.

        Args:
            kind: the kind of graph.
            inputs: the inputs of the graph, by name.
            enlargement: the enlargement of the graph, if there is one graph per enlargement.
            shared: whether to use only one thread, because other tiles are decoded at the same time.

        Returns:
            The output, on the backend's device, in the shape that the kind has for these inputs.

        Raises:
            BackendError: the graph cannot be loaded. If the result has NaN or infinite values, this also goes for its
                float32 version.
            DecodeError: the run failed, or the engine is closed.
            Cancelled: the current work was cancelled.
        """
        if not kind.picture:
            self.run_for(_ENCODING)
        graph = enlargement.graph(kind.name) if kind.enlarged and enlargement else kind.name
        filled = self._filled(kind, inputs)
        # This check comes before any lock is taken. In a forked process, a lock may be held by a thread that exists in
        # the parent process only.
        self._birthplace.check()
        key = _SHARED + graph if shared else graph
        # Without this check, a run would wait while another thread loads another graph.
        if key not in self._sessions:
            self._load(key, graph, *((1, self.workers) if shared else (self._threads,)))
        with self._gate.enter(alone=not shared):
            self.check_open()
            cancellation = current()
            cancellation.check()
            try:
                results = self._sessions[key].run(filled)
            except DecodeError as error:
                raise_callers(error)
                # If the run was interrupted, it fails with an error of the backend. Raise Cancelled instead.
                cancellation.check()
                advice = self._advice(error, _LESS)
                raise DecodeError(f"{error}{advice}") from error
            finally:
                if not kind.kept and not self._purpose.keeps:
                    _release(self._sessions[key])
        kind, sizes = self._kinds[kind.name], self.manifest.sizes(enlargement)
        output, expected = kind.output.name, kind.output_shape(filled, sizes)
        shapes = {name: values.shape for name, values in results.items()}
        if shapes != {output: expected}:
            # Damaged files are not the cause, because digests are checked.
            advice = self._advice(before="; export the model again, or ")
            raise DecodeError(
                f"{graph} gave {shapes}, expected {output} {expected}: the backend or the export is at fault{advice}"
            )
        result = results[output]
        if filled is not inputs:
            result = result[tuple(slice(side) for side in kind.output_shape(inputs, sizes))]
        exact = None if self._candidate.exact or is_finite(result) else self._in_float32()
        if exact is None or not exact.has(kind):
            return result
        return exact.run(kind, inputs, enlargement)

    def run_for(self, purpose: Purpose) -> None:
        """Declare what graphs run for from now on. If it is something else than before, the memory they keep is freed.

        Raises:
            DecodeError: the engine belongs to another process.
        """
        self._birthplace.check()
        if purpose is self._purpose or purpose == self._purpose:
            return
        with self._gate.enter(alone=True), self._lock:
            for session in self._sessions.values():
                _release(session)
            self._purpose = purpose
        if self._exact is not None:
            self._exact.run_for(IDLE)

    def has(self, kind: Kind) -> bool:
        """Whether the model has graphs of a kind. The recipe may lack encode nevertheless."""
        return kind.name in self._kinds

    def context(self, latent: FloatArray, enlargement: Enlargement) -> Values:
        """Compute the whole context [1, D, h, w] of a latent [C, h, w] at once, with all graphs before decode."""
        values = statistics_inputs(latent, self.manifest)
        for kind in takewhile(lambda kind: kind.name != DECODE.name, self._kinds.values()):
            inputs = {each.name: values[each.name] for each in kind.inputs}
            values[kind.output.name] = self.run(kind, inputs, enlargement)
        return cast(Values, values[DECODE.inputs[0].name])

    def lends_to(self, borrower: Borrower) -> None:
        """Register an object whose `let_go` is called when the engine is closed.

        Raises:
            DecodeError: the engine belongs to another process.
        """
        self._birthplace.check()
        with self._lock:
            self._borrowers.add(borrower)

    def check_open(self) -> None:
        """Check that the engine can be used.

        Raises:
            DecodeError: the engine is closed or belongs to another process.
        """
        self._birthplace.check()
        if self._closed:
            raise DecodeError("the decoder is closed: read what you need before close()")

    def close(self) -> None:
        """Free the graphs and their results, when the runs in progress have ended. In a forked child, do nothing."""
        if not self._birthplace.here:
            return
        with self._gate.enter(alone=True), self._lock:
            self._closed = True
            # Results are released before the graphs, because a backend may free their memory with its last graph.
            for borrower in list(self._borrowers):
                borrower.let_go()
            while self._sessions:
                self._sessions.popitem()[1].close()
            if self._exact is not None:
                self._exact.close()
            self._bundle.let_go()
        give_back()

    def end(self) -> None:
        """Let no further graph run, and wait for those that are running or being loaded, but not for ever.

        This is for the end of the interpreter. In a forked child, it does nothing.
        """
        if self._birthplace.here:
            self._closed = True
            self._gate.shut(_PATIENCE)
            self._lock.acquire(timeout=_PATIENCE)

    def _in_float32(self) -> "Engine | None":
        """An engine for the same model in float32 on the same device. It is created when it is first needed.

        None if the bundle has no graphs for it.
        """
        with self._lock:
            self.check_open()
            if self._exact is None:
                backend, device = self._candidate.backend.name, self._candidate.device.id
                candidates = Survey.of(self.manifest, backend, device).candidates
                exact = next((candidate for candidate in candidates if candidate.exact), None)
                if exact is None:
                    return None
                text = (
                    f"{self._candidate} gave NaN or infinite values, which are computed again in float32; pass "
                    "precision='exact' if every latent does so"
                )
                warn(text)
                self._exact = Engine(self._bundle, exact, self._threads, self._advises)
            return self._exact

    def _advice(self, error: Exception | None = None, before: str = "; ") -> str:
        """The end of an error's message: what to do. Empty if this engine does not give advice.

        Args:
            error: the error of the backend. If the system ran out of something, another backend would not help.
            before: what may help before another backend is used.
        """
        if not self._advises:
            return ""
        here = self._candidate.device.id == "cpu"
        lacking = remedy(str(error), f"{before[2:]}{MORE_MEMORY}") if error is not None and here else None
        return f"; {lacking}" if lacking else f"{before}{instead_of(self._candidate, self.manifest)}"

    def _filled(self, kind: Kind, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        """Pad the inputs of decode to the recipe's smallest shape that holds them, if it has fixed shapes."""
        if kind.name != DECODE.name or not self.recipe.shapes:
            return inputs
        needed = tuple(len(inputs[name]) for name in ("token_y", "token_x", "key_y", "key_x"))
        for shape in self.recipe.shapes:
            available = (*shape.tokens, *shape.context)
            if all(need <= side for need, side in zip(needed, available, strict=True)):
                return fill(dict(inputs), Size(*shape.context[::-1]), Size(*shape.tokens[::-1]))
        raise DecodeError(
            f"a tile of {needed} tokens and cells fits no shape of the recipe {self.recipe.name!r}: pass another "
            "backend or device, and report this"
        )


def _release(session: Session) -> None:
    """Free the working memory that a session keeps, and return it to the system."""
    getattr(session, "release", lambda: None)()
    give_back()


def cores() -> int:
    """The number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def is_finite(values: Any) -> bool:
    """Whether all values of an array are finite. Arrays of a backend are checked on their device."""
    return bool((np.isfinite(values) if isinstance(values, np.ndarray) else values.isfinite()).all())
