"""Backends: what one is, and which there are."""

import re
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from infgen_rt.backend import forks
from infgen_rt.bundle.manifest import Recipe
from infgen_rt.errors import BackendError, one_line

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUP = "infgen_rt.backends"
_OWN = "infgen_runtimes"


class AbsentError(BackendError):
    """A backend, a device or its graphs are not here, as is usual on most machines."""


class Known(NamedTuple):
    """What this project's own backends are known by before they are imported."""

    extra: str
    target: str
    distributions: tuple[str, ...]


KNOWN = {
    "onnxruntime": Known("cpu", "onnx", ("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml")),
    "openvino": Known("openvino", "openvino", ("openvino",)),
    "coreml": Known("coreml", "coreml", ("coremltools",)),
    "torch": Known("torch", "torch", ("torch",)),
}
# What people ask for by the name of the device: backend and device.
ALIASES = {"cuda": ("onnxruntime", "cuda")}
EXACT = "fp32"


@dataclass(frozen=True)
class Device:
    """Something that a backend computes on, or would if it could.

    Attributes:
        id: what a user asks for it by: `cpu`, `cuda:1`, `gpu`, `npu`.
        name: the same for people.
        problem: why it cannot be used here and what to do, or None.
    """

    id: str
    name: str
    problem: str | None = None

    def answers_to(self, name: str) -> bool:
        """Whether a user means it: `cuda` is `cuda:0` too."""
        return name.lower() in (self.id, self.id.removesuffix(":0"))


@dataclass(frozen=True)
class Options:
    """What may be asked of any backend.

    Attributes:
        device: id of one of its devices.
        arithmetic: one of those that it offered for the recipe.
        threads: CPU threads to compute with; None for the backend's own choice.
        keep_memory: whether working memory is kept from run to run, for a graph that is run often.
        cache: a folder for compiled graphs that may be written in and lost; None to keep none.
    """

    device: str = "cpu"
    arithmetic: str = EXACT
    threads: int | None = None
    keep_memory: bool = True
    cache: Path | None = None


class Values(Protocol):
    """float32 numbers where a backend computes: a NumPy array, or one that can be sliced alike.

    Its library must have a function `concatenate(arrays, axis=)` as NumPy's, or NumPy's must take it
    (`__array_function__`).
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """Its sides."""
        ...

    def __getitem__(self, index: Any) -> Any:
        """A part of it, in the same place."""
        ...


class Session(Protocol):
    """One loaded graph; may be run from several threads.

    One that can stop in the middle of a run does so by `cancellation.current()`.
    """

    def run(self, inputs: Mapping[str, Values]) -> Mapping[str, Values]:
        """Run the graph once.

        Args:
            inputs: by the graph's input names: NumPy arrays, and what other sessions of the backend gave.

        Returns:
            Results by the graph's output names. Features and a context may stay on the device, where the next graph
            wants them, and an image as `pixels.DevicePixels` that are the last three sides; others are NumPy arrays.

        Raises:
            DecodeError: the graph could not be run.
        """
        ...

    def close(self) -> None:
        """Free everything; the session is not used again."""
        ...


class Backend(Protocol):
    """Code that loads graphs of one target and runs them; made without arguments.

    Attributes:
        name: what a user asks for it by.
        target: the export target whose graphs it reads.
        version: of the library behind it.
        parallel_on: ids of devices on which several runs at a time with a thread each are faster than one after another
            with all threads; may be missing, as none.
        survives_fork: whether a process can load graphs although the one that it was forked from has done so; may be
            missing, as True.
    """

    name: str
    target: str
    version: str
    parallel_on: Collection[str]

    def devices(self) -> Sequence[Device]:
        """What it can compute on here, and what it could with a remedy; found without loading a driver if possible."""
        ...

    def arithmetics(self, device: str, recipe: Recipe) -> Sequence[str]:
        """In what a device can run the graphs of a recipe, most exact first; empty if it cannot.

        `fp32` is float32 throughout. Others (`bf16`, `fp16`) are what the device does natively.
        """
        ...

    def load(self, graph: str, files: Mapping[str, bytes], options: Options) -> Session:
        """Load a graph.

        Args:
            graph: `statistics`, `prefill`, `refine`, `decode` or `encode`.
            files: the content of the graph's file, or of the files in its folder by their names there; digests are
                already checked.
            options: what the caller asked for.

        Raises:
            BackendError: the graph cannot be loaded, or not on that device in that arithmetic.
        """
        ...


def installed_backends() -> dict[str, "EntryPoint"]:
    """Backends that packages here announce in the entry-point group `infgen_rt.backends`, this project's first."""
    from importlib.metadata import EntryPoint, entry_points  # slow to import, and only needed here

    found = {entry.name: entry for entry in entry_points(group=GROUP)}
    # A frozen app may have the code without the metadata.
    if found.keys().isdisjoint(KNOWN) and find_spec(_OWN) is not None:
        found |= {name: EntryPoint(name, f"{_OWN}.{name}:Backend", GROUP) for name in KNOWN}
    order = list(KNOWN)
    return dict(sorted(found.items(), key=lambda item: order.index(item[0]) if item[0] in order else len(order)))


def load_backend(name: str) -> Backend:
    """Import a backend.

    Raises:
        AbsentError: it is not installed.
        BackendError: it is unknown, its library is broken or too old, or it was in use before this process was forked.
    """
    forks.check_backend(name)
    installed = installed_backends()
    if name not in installed:
        here = ", ".join(["auto", *ALIASES, *installed])
        raise BackendError(f"backend {name!r} is unknown: available here are {here}")
    remedy = installing(KNOWN[name].extra) if name in KNOWN else "install what it needs"
    try:
        backend: Backend = installed[name].load()()
    except ImportError as error:
        raise AbsentError(f"backend {name!r} is not installed ({one_line(error)}): {remedy}") from error
    except BackendError:
        raise
    # Whatever a half-installed library or a missing driver does when it is imported.
    except Exception as error:
        raise BackendError(f"backend {name!r} is broken ({one_line(error)}): reinstall it, {remedy}") from error
    return backend


def installing(extra: str) -> str:
    """What a user does to have one of this package's extras."""
    if getattr(sys, "frozen", False):
        return f"this app was built without it, and must be built with infgen-rt[{extra}]"
    return f"pip install 'infgen-rt[{extra}]'"


def require_version(name: str, version: str) -> None:
    """Refuse a library that is older than this package's metadata allows.

    Args:
        name: its distribution.
        version: what is here.

    Raises:
        BackendError: it is too old.
    """
    if least := _lowest_version(name):
        needed, here = (tuple(int(part) for part in re.findall(r"(?:^|\.)(\d+)", text)) for text in (least, version))
        if here[: len(needed)] < needed:
            raise BackendError(f"{name} {version} is too old: expected {least} or newer; pip install --upgrade {name}")


def _lowest_version(name: str) -> str | None:
    """The lowest version of a library in this package's metadata; None if it does not say."""
    from importlib import metadata

    try:
        requirements = metadata.requires("infgen-rt") or []
    except metadata.PackageNotFoundError:  # an app may bring the code without the metadata
        return None
    found = (re.match(rf"{re.escape(name)}\s*>=\s*([\d.]+)", requirement) for requirement in requirements)
    return next((match[1] for match in found if match), None)
