"""The protocol of backends, and functions that list and import the installed ones."""

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
    """A backend, a device or graphs for it are not available. On most machines, this is normal for some backends."""


class Known(NamedTuple):
    """What is known about one of this project's own backends before it is imported.

    Attributes:
        extra: the extra of this package that installs what it needs.
        target: the export target whose graphs it loads.
        distributions: the distributions that may have its library, the usual one first.
    """

    extra: str
    target: str
    distributions: tuple[str, ...]

    @property
    def is_here(self) -> bool:
        """Whether its library is installed. The library is not imported."""
        return find_spec(self.distributions[0].replace("-", "_")) is not None


KNOWN = {
    "onnxruntime": Known("cpu", "onnx", ("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml")),
    "openvino": Known("openvino", "openvino", ("openvino",)),
    "coreml": Known("coreml", "coreml", ("coremltools",)),
    "torch": Known("torch", "torch", ("torch",)),
}
ALIASES = {"cuda": ("onnxruntime", "cuda")}
"""Names that can be passed as a backend, with the backend and the device that they stand for."""
EXACT = "fp32"
"""The arithmetic that is float32 throughout."""


@dataclass(frozen=True)
class Device:
    """A device on which a backend can compute, or could if a problem were solved.

    Attributes:
        id: the id by which a user selects it, such as `cpu`, `cuda:1`, `gpu` or `npu`.
        name: its name for people.
        problem: the reason why it cannot be used on this machine, and what to do about it. None if it can be used.
    """

    id: str
    name: str
    problem: str | None = None

    def answers_to(self, name: str) -> bool:
        """Whether a user's name for a device selects this one. `cuda` also selects `cuda:0`."""
        return name.lower() in (self.id, self.id.removesuffix(":0"))


@dataclass(frozen=True)
class Options:
    """Options that every backend supports.

    Attributes:
        device: the id of one of its devices.
        arithmetic: one of the arithmetics that it offers for the recipe.
        threads: the number of CPU threads of a run. None for the backend's default.
        runs: the number of runs at the same time. If more threads run the session, some of them wait.
        cache: a writable folder for compiled graphs. A user may delete it at any time. None to store no compiled
            graphs.
    """

    device: str = "cpu"
    arithmetic: str = EXACT
    threads: int | None = None
    runs: int = 1
    cache: Path | None = None


class Values(Protocol):
    """A float32 array on a backend's device: a NumPy array, or an array that can be sliced in the same way.

    Its library must have a function `concatenate(arrays, axis=)` like NumPy's, or its class must support NumPy's own
    function by `__array_function__`.
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

    A session that can stop in the middle of a run uses `infgen_rt.common.cancellation.current()` to do so.

    In the middle of any method, an error of the caller's own code may be raised, for example by a signal handler. A
    session may treat it like any other error. If it raises its own error `from` the caller's, the caller gets the
    original error.

    A session may keep its working memory from one run to the next. It then has a method `release`, which takes no
    arguments and frees this memory. This method is optional. It is called while no graph runs, and the session may be
    run again afterwards.
    """

    def run(self, inputs: Mapping[str, Values]) -> Mapping[str, Values]:
        """Run the graph once.

        Args:
            inputs: the inputs by name, float32. They are NumPy arrays, or results of the backend's other sessions.

        Returns:
            The results by name, float32. Features, fine features and contexts may stay on the device, where the next
            graph needs them. An image may stay there if its element 0 is an `infgen_rt.common.pixels.DevicePixels`.
            All other results are NumPy arrays.

        Raises:
            DecodeError: the graph could not be run.
        """
        ...

    def close(self) -> None:
        """Free everything that it holds. The session is not used afterwards."""
        ...


class Backend(Protocol):
    """Code that loads the graphs of one target and runs them. Its class is called without arguments.

    Attributes:
        name: the name by which a user selects it.
        target: the export target whose graphs it loads.
        parallel_on: the ids of devices on which several runs at the same time, with one thread each, are faster than
            runs one after another with all threads. This attribute is optional, and empty by default.
        largest_tile: the side in tokens above which larger tiles are not faster. This attribute is optional. By
            default, it is `LARGEST_SHARED_TILE` of `infgen_rt.geometry.tiling` for tiles that are decoded at the same
            time, and `LARGEST_TILE` for others.
        survives_fork: whether a forked process can load graphs if its parent has loaded some. This attribute is
            optional, and True by default.
    """

    name: str
    target: str
    parallel_on: Collection[str]

    def devices(self) -> Sequence[Device]:
        """The devices on this machine, including those with a problem. If possible, it loads no driver."""
        ...

    def arithmetics(self, device: str, recipe: Recipe) -> Sequence[str]:
        """The arithmetics in which a device can run a recipe's graphs, most exact first. Empty if it cannot run them.

        Args:
            device: the id of a device.
            recipe: a recipe of the backend's target.

        Returns:
            `fp32` for float32 throughout. `bf16` and `fp16` for the device's native arithmetics.
        """
        ...

    def load(self, graph: str, files: Mapping[str, Content], options: Options) -> Session:
        """Load a graph.

        Args:
            graph: the graph's name: that of its kind (`infgen_rt.bundle.graphs.KINDS`). If there is one graph per
                enlargement, the name ends with its factor, as in `decode2`.
            files: the contents of the graph's file, or of the files in its folder, by name, and those of the files of
                weights that it refers to. `infgen_rt.bundle.graphs.apart` tells them apart. Digests are already
                checked, and files that are stored as parts of the weights are put together.
            options: the device, the arithmetic and other options.

        Raises:
            BackendError: the graph cannot be loaded, or not on that device in that arithmetic.
        """
        ...


_DEVICES = ("cpu", "gpu", "npu")
"""Names of devices, which may be taken for those of backends."""


def installed_backends() -> dict[str, "EntryPoint"]:
    """The backends by name, from the entry-point group `infgen_rt.backends`. Those of this project come first."""
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
        known = ", ".join(["auto", *ALIASES, *entries])
        device = f", and {name} is a device (device={name!r}, --device {name})" if name in _DEVICES else ""
        raise BackendError(
            f"backend {name!r} is unknown: known are {known}{device}; infgen-rt devices lists what runs here"
        )
    try:
        backend: Backend = entries[name].load()()
    # A broken installation or a missing driver may raise any exception on import.
    except Exception as error:
        raise_callers(error)
        if isinstance(error, BackendError):
            raise
        # If the missing module is inside a package, that package is installed, but damaged.
        if isinstance(error, ModuleNotFoundError) and "." not in (error.name or ""):
            remedy = installing(KNOWN[name].extra) if name in KNOWN else "install what it needs"
            raise AbsentError(f"backend {name!r} is not installed ({one_line(error)}): {remedy}") from error
        raise BackendError(f"backend {name!r} is broken ({one_line(error)}): {_mending(name, error)}") from error
    return backend


def _mending(name: str, error: Exception) -> str:
    """What to do about a backend that is installed, but cannot be imported."""
    if isinstance(error, ImportError) and (library := missing_library(error)):
        return library
    again = reinstalling(KNOWN[name].distributions) if name in KNOWN else "reinstall it"
    return f"{again}; if that does not help, install the driver or the library that the brackets name"


def require_version(name: str, version: str) -> None:
    """Check that a library is not older than this package's metadata allows.

    Args:
        name: the library's distribution.
        version: the installed version.

    Raises:
        BackendError: the library is too old.
    """
    if least := _lowest_version(name):
        needed, here = _numbers(least), _numbers(version)
        if here[: len(needed)] < needed:
            # The library may be installed under another name, such as the build for GPUs. It must not be installed
            # twice.
            names = next((each.distributions for each in KNOWN.values() if name in each.distributions), (name,))
            raise BackendError(f"{name} {version} is too old: expected {least} or newer; {upgrading(names)}")


def _lowest_version(name: str) -> str | None:
    """The lowest version of a library that this package's metadata allows, or None if there is no limit."""
    from importlib import metadata

    try:
        requirements = metadata.requires("infgen-rt") or []
    except metadata.PackageNotFoundError:  # a frozen app may contain the code without the metadata
        return None
    found = (re.match(rf"{re.escape(name)}\s*>=\s*([\d.]+)", requirement) for requirement in requirements)
    # Extras may have different limits. The exporter's, for example, may need a newer version.
    return min((match[1] for match in found if match), key=_numbers, default=None)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"(?:^|\.)(\d+)", version))
