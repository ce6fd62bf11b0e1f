"""The loaded graphs of one model, run no more at a time than the memory plan allows."""

import os
from collections.abc import Callable, Mapping
from threading import Lock
from typing import Any, Protocol, TypeVar, cast
from weakref import WeakSet

import numpy as np

from infgen_rt.backend import forks
from infgen_rt.backend.candidates import Candidate, Survey
from infgen_rt.backend.gate import Gate
from infgen_rt.backend.inputs import fill
from infgen_rt.backend.protocol import Options, Session, Values
from infgen_rt.bundle.folder import Bundle
from infgen_rt.bundle.graphs import DECODE, ENCODE, PREFILL, REFINE, STATISTICS, kind_of
from infgen_rt.bundle.manifest import Enlargement
from infgen_rt.common.cancellation import current
from infgen_rt.common.folders import writable_cache
from infgen_rt.common.memory import give_back
from infgen_rt.common.notices import warn
from infgen_rt.common.pixels import DevicePixels, FloatArray
from infgen_rt.errors import DecodeError
from infgen_rt.geometry.shapes import Box, Size

_SHARED = "shared "

V = TypeVar("V", bound=Values)


class Borrower(Protocol):
    """What holds results of an engine."""

    def let_go(self) -> None:
        """Hold them no longer: the engine is closed."""
        ...


class Engine:
    """Runs a recipe's graphs, encode once it is loaded; serves several threads.

    What comes out as NaN or infinite in less than float32 is computed again in float32 on the same device, if the
    bundle has graphs for that.

    Attributes:
        manifest: the model's manifest.
        recipe: the recipe whose graphs are loaded.
        workers: how many tiles are best decoded at a time, with a thread each; 1 where one with all threads is faster.

    Args:
        bundle: opened.
        candidate: what runs it.
        threads: CPU threads to compute with; None for the backend's own choice.

    Raises:
        BackendError: a graph cannot be loaded.
    """

    def __init__(self, bundle: Bundle, candidate: Candidate, threads: int | None = None) -> None:
        self.manifest = bundle.manifest
        self.recipe = candidate.recipe
        self._bundle, self._candidate, self._threads = bundle, candidate, threads
        self._sessions: dict[str, Session] = {}
        self._kinds = {kind.name: kind for kind in self.manifest.kinds(self.recipe)}
        self._closed, self._birthplace = False, forks.Birthplace()
        forks.keep_in_children(self)
        self._exact: Engine | None = None
        self._borrowers: WeakSet[Borrower] = WeakSet()
        parallel = candidate.device.id in getattr(candidate.backend, "parallel_on", ())
        self.workers = (threads or cores()) if parallel else 1
        # A run with all threads is alone: two at once would only double the memory.
        self._gate = Gate(self.workers)
        self._lock = Lock()
        for kind in self._kinds.values():
            if kind.picture and not kind.enlarged:
                self.load(kind.name)
        if not self.manifest.enlargements:
            self.load_for(self.manifest.contexts[0])

    def load(self, graph: str) -> None:
        """Load a graph of the recipe, if it is not there yet.

        Raises:
            BackendError: it cannot be loaded.
            DecodeError: the engine is closed.
        """
        self._load(graph, graph, self._threads)

    def load_for(self, enlargement: Enlargement) -> None:
        """Load what makes a context and decodes it; raises what `load` does."""
        for kind in self._kinds.values():
            if kind.enlarged:
                self.load(enlargement.graph(kind.name))

    def load_shared(self, enlargement: Enlargement) -> None:
        """Load decode for runs with a thread each; raises what `load` does."""
        graph = enlargement.graph(DECODE.name)
        self._load(_SHARED + graph, graph, 1)

    def _load(self, key: str, graph: str, threads: int | None) -> None:
        self._birthplace.check()
        with self._lock:
            if key in self._sessions:
                return
            self.check_open()
            backend, device = self._candidate.backend, self._candidate.device
            keep, cache = kind_of(graph).kept, writable_cache(backend.name)
            options = Options(device.id, self._candidate.arithmetic, threads, keep, cache)
            files = self._bundle.read_graph(self.recipe.graphs[graph])
            self._sessions[key] = backend.load(graph, files, options)
            if not getattr(backend, "survives_fork", True):
                forks.note_use(backend.name)

    @property
    def gathers(self) -> bool:
        """Whether prefill is local, given a latent's statistics; else it sees the whole latent."""
        return STATISTICS.name in self._kinds

    @property
    def refines(self) -> bool:
        """Whether features are refined to a context; else they are it."""
        return REFINE.name in self._kinds

    def statistics(self, latent: FloatArray, inner: Box | None = None, known: FloatArray | None = None) -> FloatArray:
        """Moments of a latent, or of a part of one.

        Args:
            latent: [C, h, w].
            inner: the cells that count, the others are a halo; None for all.
            known: [2, blocks, groups], moments of the whole latent, variances below 0 where they are not known; None if
                none are.

        Returns:
            float32 [2, blocks, groups]: means and variances.
        """
        shape = STATISTICS.output.at(self.manifest.sizes())
        box = inner or Size(*latent.shape[:0:-1]).box
        inputs = {
            "latent": latent[None],
            "share_y": _shares(latent.shape[1], box.y, box.height),
            "share_x": _shares(latent.shape[2], box.x, box.width),
            "known": np.full(shape, -1, np.float32) if known is None else known,
        }
        moments = self._run(STATISTICS.name, inputs)
        return self._finite(cast(FloatArray, moments), lambda exact: exact.statistics(latent, inner, known))

    def prefill(self, latent: FloatArray, moments: FloatArray | None = None) -> Values:
        """Latent [C, h, w] to features [1, F, h, w], which stay where the backend wants them.

        Without a refine graph they are the context.

        Args:
            latent: the whole, or with moments any part; sees no further than the manifest's halo.
            moments: of the whole latent, float32 [2, blocks, groups], if the recipe has a graph for them.
        """
        inputs = {"latent": latent[None]} | ({} if moments is None else {"moments": moments})
        features = self._run(PREFILL.name, inputs)
        return self._finite(features, lambda exact: exact.prefill(latent, moments))

    def refine(self, features: Values, enlargement: Enlargement) -> Values:
        """Features [1, F, h, w] to context [1, D, h, w]; sees no further than the enlargement's halo."""
        if not self.refines:
            return features
        context = self._run(enlargement.graph(REFINE.name), {"features": features}, enlargement)

        def again(exact: Engine) -> Values:
            exact.load_for(enlargement)
            return exact.refine(features, enlargement)

        return self._finite(context, again)

    def context(self, latent: FloatArray, enlargement: Enlargement) -> Values:
        """All of a latent's context at once: [1, D, h, w]."""
        return self.refine(self.prefill(latent, self.statistics(latent) if self.gathers else None), enlargement)

    def decode(
        self, inputs: Mapping[str, Any], enlargement: Enlargement, shared: bool = False
    ) -> FloatArray | DevicePixels:
        """Run decode.

        Args:
            inputs: as in the graph contract.
            enlargement: that of the context among them.
            shared: with one thread, beside others that do the same; after `load_shared`.

        Returns:
            float32 [3, patch * tokens down, patch * tokens across], about [0, 1], not clamped, where the backend
            computes.
        """
        patch = self.manifest.patch
        rows, columns = patch * len(inputs["token_y"]), patch * len(inputs["token_x"])
        graph = (_SHARED if shared else "") + enlargement.graph(DECODE.name)
        image: FloatArray | DevicePixels = self._run(graph, self._filled(inputs), enlargement)[0]

        def again(exact: Engine) -> FloatArray | DevicePixels:
            exact.load_for(enlargement)
            return exact.decode(inputs, enlargement)

        return self._finite(image[:, :rows, :columns], again)

    def encode(self, image: FloatArray) -> FloatArray:
        """Image [3, patch * h, patch * w] in [0, 1] to latent [C, h, w]; sees no further than the manifest's halo."""
        latent: FloatArray = self._run(ENCODE.name, {"image": image[None]})[0]

        def again(exact: Engine) -> FloatArray:
            exact.load(ENCODE.name)
            return exact.encode(image)

        return self._finite(latent, again)

    def lends_to(self, borrower: Borrower) -> None:
        """Have something let go of what this engine computed when it is closed; raises what `check_open` does."""
        self._birthplace.check()
        with self._lock:
            self._borrowers.add(borrower)

    def check_open(self) -> None:
        """Raises DecodeError: the engine is closed, or another process's."""
        self._birthplace.check()
        if self._closed:
            raise DecodeError("the decoder is closed: read what you need before close()")

    def close(self) -> None:
        """Free the graphs and what they have computed, after the run in progress; nothing in a forked child."""
        if not self._birthplace.here:
            return
        with self._gate.enter(alone=True), self._lock:
            self._closed = True
            # Before the graphs: results may lie in what a backend gives back with its last one.
            for borrower in list(self._borrowers):
                borrower.let_go()
            while self._sessions:
                self._sessions.popitem()[1].close()
            if self._exact is not None:
                self._exact.close()
        give_back()

    def _finite(self, result: V, again: Callable[["Engine"], V]) -> V:
        """The result, or what float32 gives if it is not finite."""
        if self._candidate.exact or is_finite(result):
            return result
        exact = self._in_float32()
        return result if exact is None else again(exact)

    def _in_float32(self) -> "Engine | None":
        """The same model in float32 on the same device, opened when it is first needed."""
        with self._lock:
            self.check_open()
            if self._exact is None:
                backend, device = self._candidate.backend.name, self._candidate.device.id
                candidates = Survey.of(self.manifest, backend, device).candidates
                exact = next((candidate for candidate in candidates if candidate.exact), None)
                if exact is None:
                    return None
                text = f"{self._candidate} gave NaN or infinite values, which are computed again in float32"
                warn(text)
                self._exact = Engine(self._bundle, exact, self._threads)
            return self._exact

    def _filled(self, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        """Padded to the smallest shape that the recipe has for them, if it has fixed ones."""
        sides = (len(inputs[name]) for name in ("token_y", "token_x", "key_y", "key_x"))
        needed = tuple(sides)
        for shape in self.recipe.shapes:
            available = (*shape.tokens, *shape.context)
            if all(need <= side for need, side in zip(needed, available, strict=True)):
                return fill(dict(inputs), Size(*shape.context[::-1]), Size(*shape.tokens[::-1]))
        if self.recipe.shapes:
            raise DecodeError(f"a tile of {needed} tokens and cells fits no shape of the recipe {self.recipe.name!r}")
        return inputs

    def _run(self, graph: str, inputs: Mapping[str, Any], enlargement: Enlargement | None = None) -> Values:
        # Before any lock: who holds it may be a thread that is not in this process.
        self._birthplace.check()
        with self._gate.enter(alone=not graph.startswith(_SHARED)):
            self.check_open()
            cancellation = current()
            cancellation.check()
            try:
                results = self._sessions[graph].run(inputs)
            except DecodeError:
                # A run that was interrupted fails, in words of the backend's own.
                cancellation.check()
                raise
        kind = self._kinds[kind_of(graph.removeprefix(_SHARED)).name]
        if not kind.kept:
            give_back()
        output, expected = kind.output.name, kind.output_shape(inputs, self.manifest.sizes(enlargement))
        shapes = {name: result.shape for name, result in results.items()}
        if shapes != {output: expected}:
            raise DecodeError(f"{graph} gave {shapes}, expected {output} {expected}: is the model damaged?")
        return results[output]


def _shares(count: int, first: int, counted: int) -> FloatArray:
    """What each of some rows counts for in a mean over a range of them."""
    shares = np.zeros(count, np.float32)
    shares[first : first + counted] = 1 / counted
    return shares


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def is_finite(values: Any) -> bool:
    """Whether none of an array is NaN or infinite; a backend's own arrays are asked where they are."""
    return bool((np.isfinite(values) if isinstance(values, np.ndarray) else values.isfinite()).all())
