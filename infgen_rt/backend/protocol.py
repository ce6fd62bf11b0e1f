"""The protocol of backends, and the list of installed ones."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from infgen_rt.backend import forks
from infgen_rt.bundle.graphs import Content
from infgen_rt.bundle.manifest import Recipe
from infgen_rt.common.callers import raise_callers
from infgen_rt.common.remedies import installing, missing_library, reinstalling, upgrading
from infgen_rt.errors import BackendError, one_line

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUP = "infgen_rt.backends"
_OWN = "infgen_runtimes"


class AbsentError(BackendError):
    """A backend, a device or its graphs are not available, which is normal on most machines."""


class Known(NamedTuple):
    """Information on one of this project's own backends that is available before it is imported."""

    extra: str
    target: str
    distributions: tuple[str, ...]

    @property
    def is_here(self) -> bool:
        """Whether its library is installed. It is not imported for this."""
        return find_spec(self.distributions[0].replace("-", "_")) is not None


KNOWN = {
    "onnxruntime": Known("cpu", "onnx", ("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml")),
    "openvino": Known("openvino", "openvino", ("openvino",)),
    "coreml": Known("coreml", "coreml", ("coremltools",)),
    "torch": Known("torch", "torch", ("torch",)),
}
# Names of devices that can be used as backends, with the backend and device that they stand for.
ALIASES = {"cuda": ("onnxruntime", "cuda")}
EXACT = "fp32"


@dataclass(frozen=True)
class Device:
    """A device that a backend can compute on, or could if a problem were solved.

    Attributes:
        id: the id by which a user selects it: `cpu`, `cuda:1`, `gpu`, `npu`.
        name: its name for people.
        problem: the reason why it cannot be used on this machine, and what to do about it. None if it can be used.
    """

    id: str
    name: str
    problem: str | None = None

    def answers_to(self, name: str) -> bool:
        """Whether a name that the user gave selects it: `cuda` also selects `cuda:0`."""
        return name.lower() in (self.id, self.id.removesuffix(":0"))


@dataclass(frozen=True)
class Options:
    """Options that every backend supports.

    Attributes:
        device: the id of one of its devices.
        arithmetic: one of the arithmetics that it offers for the recipe.
        threads: the number of CPU threads of a run. None for the backend's default.
        runs: the number of runs at a time. The session may be run by more threads, which then wait for each other.
        keep_memory: whether to keep working memory between runs, for a graph that runs often.
        cache: a writable folder for compiled graphs, which may be deleted. None to keep none.
    """

    device: str = "cpu"
    arithmetic: str = EXACT
    threads: int | None = None
    runs: int = 1
    keep_memory: bool = True
    cache: Path | None = None


class Values(Protocol):
    """A float32 array on a backend's device: a NumPy array, or an array that can be sliced like one.

    Its library must have a function `concatenate(arrays, axis=)` like NumPy's, or NumPy's must accept it
    (`__array_function__`).
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape."""
        ...

    def __getitem__(self, index: Any) -> Any:
        """A part of the array, on the same device."""
        ...


class Session(Protocol):
    """One loaded graph, which may be run from several threads.

    A session that can stop in the middle of a run uses `cancellation.current()` to do so. An error of the caller's own,
    such as that of a signal's handler, may be raised in the middle of any method. It need not be told from others: if
    a session's error is raised `from` it, the caller gets it as it is.
    """

    def run(self, inputs: Mapping[str, Values]) -> Mapping[str, Values]:
        """Run the graph once.

        Args:
            inputs: the inputs by name: NumPy arrays, and results of other sessions of the backend.

        Returns:
            The results by name. Features and contexts may stay on the device, where the next graph needs them. An image
            may stay there as `pixels.DevicePixels` of its last three axes. All others are NumPy arrays.

        Raises:
            DecodeError: the graph could not be run.
        """
        ...

    def close(self) -> None:
        """Free everything. The session is not used afterwards."""
        ...


class Backend(Protocol):
    """Code that loads graphs of one target and runs them. It is created without arguments.

    Attributes:
        name: the name by which a user selects it.
        target: the export target whose graphs it loads.
        version: the version of its library.
        parallel_on: ids of devices on which several runs at a time, with one thread each, are faster than one after
            another with all threads. This attribute is optional, and the default is none.
        survives_fork: whether a forked process can load graphs if its parent has loaded some. This attribute is
            optional, and the default is True.
    """

    name: str
    target: str
    version: str
    parallel_on: Collection[str]

    def devices(self) -> Sequence[Device]:
        """The devices on this machine, including those with a problem. If possible, no driver is loaded for this."""
        ...

    def arithmetics(self, device: str, recipe: Recipe) -> Sequence[str]:
        """The arithmetics in which a device can run a recipe's graphs, most exact first. Empty if it cannot run them.

        `fp32` is float32 throughout. The others (`bf16`, `fp16`) are the device's native arithmetics.
        """
        ...

    def load(self, graph: str, files: Mapping[str, Content], options: Options) -> Session:
        """Load a graph.

        Args:
            graph: `statistics`, `prefill`, `trunk`, `refine`, `decode` or `encode`.
            files: the content of the graph's file, or of the files in its folder, by name, and of the file of weights
                that the recipe may have, as `weights.safetensors`. Digests are already checked.
            options: the device, arithmetic and other options.

        Raises:
            BackendError: the graph cannot be loaded, or not on that device in that arithmetic.
        """
        ...


def installed_backends() -> dict[str, "EntryPoint"]:
    """The backends in the entry-point group `infgen_rt.backends` of installed packages, this project's first."""
    from importlib.metadata import EntryPoint, entry_points  # slow to import, and only needed here

    found = {entry.name: entry for entry in entry_points(group=GROUP)}
    # A frozen app may contain the code without the metadata.
    if found.keys().isdisjoint(KNOWN) and find_spec(_OWN) is not None:
        found |= {name: EntryPoint(name, f"{_OWN}.{name}:Backend", GROUP) for name in KNOWN}
    order = list(KNOWN)
    return dict(sorted(found.items(), key=lambda item: order.index(item[0]) if item[0] in order else len(order)))


def load_backend(name: str) -> Backend:
    """Import a backend.

    Raises:
        AbsentError: it is not installed.
        BackendError: it is unknown, its library is broken or too old, or it was used before this process was forked.
    """
    forks.check_backend(name)
    entries = installed_backends()
    if name not in entries:
        here = ", ".join(["auto", *ALIASES, *entries])
        raise BackendError(f"backend {name!r} is unknown: available here are {here}")
    try:
        backend: Backend = entries[name].load()()
    # A broken installation or a missing driver may raise any exception on import.
    except Exception as error:
        raise_callers(error)
        if isinstance(error, BackendError):
            raise
        # A module inside a package is missing only from a package that is damaged.
        if isinstance(error, ModuleNotFoundError) and "." not in (error.name or ""):
            remedy = installing(KNOWN[name].extra) if name in KNOWN else "install what it needs"
            raise AbsentError(f"backend {name!r} is not installed ({one_line(error)}): {remedy}") from error
        raise BackendError(f"backend {name!r} is broken ({one_line(error)}): {_mending(name, error)}") from error
    return backend


def _mending(name: str, error: Exception) -> str:
    """What to do about a backend that is installed, and whose import fails."""
    if isinstance(error, ImportError) and (library := missing_library(error)):
        return library
    again = reinstalling(KNOWN[name].distributions) if name in KNOWN else "reinstall it"
    return f"{again}; if that does not help, install the driver or the library that the brackets name"


def require_version(name: str, version: str) -> None:
    """Refuse a library that is older than this package's metadata allows.

    Args:
        name: the library's distribution.
        version: the installed version.

    Raises:
        BackendError: the library is too old.
    """
    if least := _lowest_version(name):
        needed, here = _numbers(least), _numbers(version)
        if here[: len(needed)] < needed:
            # The library may be installed under another name, as for GPUs, and must not be installed twice.
            names = next((each.distributions for each in KNOWN.values() if name in each.distributions), (name,))
            raise BackendError(f"{name} {version} is too old: expected {least} or newer; {upgrading(names)}")


def _lowest_version(name: str) -> str | None:
    """The lowest version of a library in this package's metadata, or None if there is none."""
    from importlib import metadata

    try:
        requirements = metadata.requires("infgen-rt") or []
    except metadata.PackageNotFoundError:  # an app may bring the code without the metadata
        return None
    found = (re.match(rf"{re.escape(name)}\s*>=\s*([\d.]+)", requirement) for requirement in requirements)
    # Another extra, such as the exporter's, may need a newer one.
    return min((match[1] for match in found if match), key=_numbers, default=None)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"(?:^|\.)(\d+)", version))
