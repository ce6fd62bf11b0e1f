"""Backends: what one is, which there are, and how one is chosen."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from .bundle import Manifest, Recipe
from .errors import BackendError
from .pixels import FloatArray

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUP = "infgen_rt.backends"
# Each backend this project has or will have, best first, with the extra that installs what it needs.
EXTRAS = {"coreml": "coreml", "cuda": "cuda", "onnxruntime": "cpu", "openvino": "openvino", "torch": "torch"}


@dataclass(frozen=True)
class Options:
    """What may be asked of any backend.

    Attributes:
        threads: CPU threads to compute with; None for the backend's own choice.
        keep_memory: whether working memory is kept from run to run, for a graph that is run often.
    """

    threads: int | None = None
    keep_memory: bool = True


class Session(Protocol):
    """One loaded graph; may be run from several threads."""

    def run(self, inputs: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
        """Run the graph once.

        Args:
            inputs: float32 arrays by the graph's input names.

        Returns:
            float32 arrays by the graph's output names.

        Raises:
            DecodeError: the graph could not be run.
        """
        ...

    def close(self) -> None:
        """Free everything; the session is not used again."""
        ...


class Backend(Protocol):
    """Code that loads graphs of one target and runs them on one kind of device.

    Attributes:
        name: what a user asks for it by.
        device: what it runs on, for people.
        target: the export target whose graphs it reads.
    """

    name: str
    device: str
    target: str

    def load(self, files: Mapping[str, bytes], options: Options) -> Session:
        """Load a graph.

        Args:
            files: the content of the graph's file, or of the files in its folder by their names there; digests are
                already checked.
            options: what the caller asked for.

        Raises:
            BackendError: the graph cannot be loaded.
        """
        ...


def installed_backends() -> dict[str, "EntryPoint"]:
    """Backends that packages here announce in the entry-point group `infgen_rt.backends`, best first."""
    from importlib.metadata import entry_points  # slow to import, and only needed here

    found = {entry.name: entry for entry in entry_points(group=GROUP)}
    order = list(EXTRAS)
    return dict(sorted(found.items(), key=lambda item: order.index(item[0]) if item[0] in order else len(order)))


def choose_backend(name: str, manifest: Manifest) -> tuple[Backend, Recipe]:
    """Find a backend and the recipe that it will run.

    A backend named by the user is used or refused, never replaced.

    Args:
        name: a backend's name, or `auto` for the best that runs here and that the bundle has graphs for.
        manifest: the bundle's.

    Raises:
        BackendError: it is unknown, not installed, or the bundle has no graphs for it.
    """
    installed = installed_backends()
    if name != "auto":
        return _match(_load(name, installed), manifest)
    refusals = []
    for candidate in installed:
        try:
            return _match(_load(candidate, installed), manifest)
        except BackendError as error:
            refusals.append(str(error))
    raise BackendError("; ".join(refusals) or "no backend is installed: pip install 'infgen-rt[cpu]'")


def _load(name: str, installed: Mapping[str, "EntryPoint"]) -> Backend:
    if name not in installed:
        here = ", ".join(["auto", *installed])
        state = "is not in this installation" if name in EXTRAS else "is unknown"
        raise BackendError(f"backend {name!r} {state}: available here are {here}")
    try:
        backend: Backend = installed[name].load()()
    except ImportError as error:
        remedy = f"pip install 'infgen-rt[{EXTRAS[name]}]'" if name in EXTRAS else "install what it needs"
        raise BackendError(f"backend {name!r} is not installed ({error}): {remedy}") from error
    return backend


def _match(backend: Backend, manifest: Manifest) -> tuple[Backend, Recipe]:
    recipe = manifest.recipe(backend.target)
    if recipe is None:
        targets = ", ".join(sorted({recipe.target for recipe in manifest.recipes})) or "none"
        bundle = f"the bundle {manifest.model.name!r} has {targets}"
        raise BackendError(f"backend {backend.name!r} needs graphs for {backend.target!r}, {bundle}")
    return backend, recipe
