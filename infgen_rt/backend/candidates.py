"""Lists the candidates: all ways in which a bundle can be run on this machine."""

import itertools
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from infgen_rt.backend.others import fits, other_backends
from infgen_rt.backend.protocol import EXACT, KNOWN, AbsentError, Backend, Device, installed_backends, load_backend
from infgen_rt.bundle.manifest import Manifest, Recipe
from infgen_rt.common.callers import raise_callers
from infgen_rt.common.cancellation import current
from infgen_rt.errors import BackendError, one_line

Precision = Literal["fast", "exact"]
PRECISIONS = ("fast", "exact")
LEAST_PSNR = 45.0
"""The smallest PSNR against float32 that is allowed in the precision `fast`, in decibels."""
AUTO = "auto"


@dataclass(frozen=True)
class Way:
    """The names that identify a way of running a bundle.

    Attributes:
        backend: the name of the backend that loads the graphs.
        device: the id of the device that runs them.
        recipe: the name of the recipe.
        arithmetic: the arithmetic in which they are computed: `fp32`, `bf16` or `fp16`.
    """

    backend: str
    device: str
    recipe: str
    arithmetic: str

    def __str__(self) -> str:
        return f"{self.backend} on {self.device}, {self.recipe} in {self.arithmetic}"


@dataclass(frozen=True)
class Candidate:
    """One way of running a bundle on this machine.

    Attributes:
        backend: the backend that loads the graphs.
        device: the device that runs them.
        recipe: the recipe of the graphs.
        arithmetic: the arithmetic in which they are computed.
        exact: whether it is float32 throughout, with the most exact weights that the bundle has for the target.
        psnr: the lowest PSNR of the graphs for pictures against float32, in decibels, as measured by the exporter. None
            if it was not measured.
    """

    backend: Backend
    device: Device
    recipe: Recipe
    arithmetic: str
    exact: bool
    psnr: float | None

    @property
    def way(self) -> Way:
        """The names that identify it."""
        return Way(self.backend.name, self.device.id, self.recipe.name, self.arithmetic)

    def suits(self, precision: Precision) -> bool:
        """Whether it is as exact as `precision` demands, according to the exporter's measurements."""
        return self.exact or (precision == "fast" and (self.psnr is None or self.psnr >= LEAST_PSNR))

    def __str__(self) -> str:
        return f"{self.backend.name} on {self.device.name}, {self.recipe.name} in {self.arithmetic}"


@dataclass(frozen=True)
class Survey:
    """The candidates for a bundle on this machine, and the backends that cannot run it.

    Attributes:
        candidates: the candidates, ordered by backend, then by device. For each device, the most exact come first.
        absent: one line for each backend that is not installed, or that this bundle or machine has nothing for, with
            the reason.
        broken: one line for each backend that is installed but fails, with the reason.
    """

    candidates: tuple[Candidate, ...]
    absent: tuple[str, ...] = ()
    broken: tuple[str, ...] = ()

    @classmethod
    def of(cls, manifest: Manifest, name: str = AUTO, device: str | None = None) -> "Survey":
        """Examine one backend, or all backends that `auto` may choose.

        Args:
            manifest: the bundle's manifest.
            name: the name of a backend, or `auto`.
            device: the id of a device. None for all devices.

        Raises:
            BackendError: the named backend or device is unknown or not usable, or the bundle has no graphs for it.
            Cancelled: the current work was cancelled.
        """
        if name != AUTO:
            backend = load_backend(name)
            return cls(tuple(_candidates(backend, _devices(backend, device, manifest), manifest)))
        candidates: list[Candidate] = []
        absent: list[str] = []
        broken: list[str] = []
        for entry in installed_backends():
            if not worth_importing(entry, manifest):
                continue
            current().check()  # importing a library takes seconds
            try:
                backend = load_backend(entry)
                candidates += _candidates(backend, _devices(backend, device, manifest), manifest)
            except BackendError as error:
                raise_callers(error)
                (absent if isinstance(error, AbsentError) else broken).append(str(error))
        return cls(tuple(candidates), tuple(absent), tuple(broken))


def worth_importing(name: str, manifest: Manifest) -> bool:
    """Whether `auto` considers a backend. Importing some backends takes seconds and hundreds of megabytes of memory."""
    if name == "torch" and "torch" not in sys.modules:
        return False
    return name not in KNOWN or any(recipe.target == KNOWN[name].target for recipe in manifest.recipes)


def devices_of(backend: Backend) -> list[Device]:
    """The devices of a backend.

    Raises:
        BackendError: they cannot be listed, for example because of a broken driver.
    """
    with _library_errors(backend):
        return list(backend.devices())


@contextmanager
def _library_errors(backend: Backend) -> Iterator[None]:
    """A block in which any error of a backend's library becomes a BackendError, so that other backends still work."""
    try:
        yield
    except BackendError:
        raise
    except Exception as error:
        raise_callers(error)
        raise BackendError(f"backend {backend.name!r} cannot tell its devices: {one_line(error)}") from error


def _devices(backend: Backend, wanted: str | None, manifest: Manifest) -> list[Device]:
    found = devices_of(backend)
    named = [device for device in found if wanted is None or device.answers_to(wanted)]
    if not named:
        if wanted is None:
            raise AbsentError(f"backend {backend.name!r} finds no device on this machine: pass another (--backend)")
        ids = ", ".join(device.id for device in found) or "none"
        raise AbsentError(f"backend {backend.name!r} knows no device {wanted!r}: here it has {ids}")
    if usable := [device for device in named if device.problem is None]:
        return usable
    # Nothing makes a device usable on a system that its library does not run on.
    hopeless = backend.name in KNOWN and not fits(backend.name, manifest)
    step = f": {other_backends({backend.name}, manifest)}" if hopeless else ""
    raise AbsentError(f"backend {backend.name!r} cannot use {named[0].id}: {named[0].problem}{step}")


def _candidates(backend: Backend, usable: Sequence[Device], manifest: Manifest) -> list[Candidate]:
    recipes = [recipe for recipe in manifest.recipes if recipe.target == backend.target]
    if not recipes:
        targets = ", ".join(sorted({recipe.target for recipe in manifest.recipes})) or "none"
        raise AbsentError(
            f"backend {backend.name!r} needs graphs for {backend.target!r}, the bundle {manifest.model.name!r} has "
            f"{targets}: pass another backend (--backend), or make the graphs with infgen-export CHECKPOINT --target "
            f"{backend.target} -o BUNDLE"
        )
    # If the bundle has no weights in 32 bits, those in 16 bits count as exact.
    best = "fp32" if any(recipe.precision == "fp32" for recipe in recipes) else "fp16"
    found = []
    for device, recipe in itertools.product(usable, recipes):
        with _library_errors(backend):
            offered = backend.arithmetics(device.id, recipe)
        for arithmetic in offered:
            exact = arithmetic == EXACT and recipe.precision == best
            psnr = manifest.psnr(recipe.name, arithmetic)
            found.append(Candidate(backend, device, recipe, arithmetic, exact, psnr))
    if not found:
        raise AbsentError("; ".join(unsuited(backend, device, manifest) for device in usable))
    return found


def unsuited(backend: Backend, device: Device, manifest: Manifest) -> str:
    """The message that a device works, but supports none of the precisions of the bundle's graphs."""
    recipes = ", ".join(recipe.name for recipe in manifest.recipes if recipe.target == backend.target)
    return (
        f"backend {backend.name!r} runs none of the graphs of {manifest.model.name!r} on {device.name}, which are "
        f"{recipes}: pass another backend or device (--backend, --device), or make graphs that it runs with "
        f"infgen-export CHECKPOINT --recipe {backend.target}-fp32 -o BUNDLE"
    )
