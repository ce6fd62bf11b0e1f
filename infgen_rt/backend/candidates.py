"""Candidates: the ways in which a bundle can be run here."""

import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from infgen_rt.backend.protocol import EXACT, KNOWN, AbsentError, Backend, Device, installed_backends, load_backend
from infgen_rt.bundle.manifest import Manifest, Recipe
from infgen_rt.errors import BackendError

Precision = Literal["fast", "exact"]
PRECISIONS = ("fast", "exact")
LEAST_PSNR = 45.0
"""Against float32, in decibels: what `fast` may cost."""
AUTO = "auto"


@dataclass(frozen=True)
class Way:
    """What tells one way of running a bundle from another, by names.

    Attributes:
        backend: what loads the graphs.
        device: id of what runs them.
        recipe: the graphs.
        arithmetic: what they are computed in.
    """

    backend: str
    device: str
    recipe: str
    arithmetic: str

    def __str__(self) -> str:
        return f"{self.backend} on {self.device}, {self.recipe} in {self.arithmetic}"


@dataclass(frozen=True)
class Candidate:
    """One way of running a bundle here.

    Attributes:
        backend: what loads the graphs.
        device: what runs them.
        recipe: the graphs.
        arithmetic: what they are computed in.
        exact: whether that is float32 throughout, with the most exact weights that the bundle has for the target.
        psnr: of prefill and decode against float32, as the exporter measured it, in decibels; None if it did not.
    """

    backend: Backend
    device: Device
    recipe: Recipe
    arithmetic: str
    exact: bool
    psnr: float | None

    @property
    def way(self) -> Way:
        """What tells it from others."""
        return Way(self.backend.name, self.device.id, self.recipe.name, self.arithmetic)

    def suits(self, precision: Precision) -> bool:
        """Whether it is as exact as asked for, as far as the exporter knows."""
        return self.exact or (precision == "fast" and (self.psnr is None or self.psnr >= LEAST_PSNR))

    def __str__(self) -> str:
        return f"{self.backend.name} on {self.device.name}, {self.recipe.name} in {self.arithmetic}"


@dataclass(frozen=True)
class Survey:
    """What could run a bundle here, and what could not.

    Attributes:
        candidates: backends in order, each one's devices in order, most exact first.
        absent: why a backend that is not here is not among them, a line each.
        broken: the same for one that is here and cannot be used.
    """

    candidates: tuple[Candidate, ...]
    absent: tuple[str, ...] = ()
    broken: tuple[str, ...] = ()

    @classmethod
    def of(cls, manifest: Manifest, name: str = AUTO, device: str | None = None) -> "Survey":
        """Look at one backend, or at all that `auto` may take.

        Raises:
            BackendError: the named backend or device is unknown or not usable, or the bundle has no graphs for it.
        """
        if name != AUTO:
            backend = load_backend(name)
            return cls(tuple(_candidates(backend, _devices(backend, device), manifest)))
        candidates: list[Candidate] = []
        absent, broken = [], []
        for entry in installed_backends():
            if not worth_importing(entry, manifest):
                continue
            try:
                backend = load_backend(entry)
                candidates += _candidates(backend, _devices(backend, device), manifest)
            except AbsentError as error:
                absent.append(str(error))
            except BackendError as error:
                broken.append(str(error))
        return cls(tuple(candidates), tuple(absent), tuple(broken))


def worth_importing(name: str, manifest: Manifest) -> bool:
    """Whether `auto` looks at a backend; to import some takes seconds and hundreds of megabytes."""
    if name == "torch" and "torch" not in sys.modules:
        return False
    return name not in KNOWN or any(recipe.target == KNOWN[name].target for recipe in manifest.recipes)


def _devices(backend: Backend, wanted: str | None) -> list[Device]:
    found = backend.devices()
    named = [device for device in found if wanted is None or device.answers_to(wanted)]
    if not named:
        ids = ", ".join(device.id for device in found) or "none"
        raise AbsentError(f"backend {backend.name!r} knows no device {wanted!r}: here it has {ids}")
    if usable := [device for device in named if device.problem is None]:
        return usable
    raise AbsentError(f"backend {backend.name!r} cannot use {named[0].id}: {named[0].problem}")


def _candidates(backend: Backend, usable: Sequence[Device], manifest: Manifest) -> list[Candidate]:
    recipes = [recipe for recipe in manifest.recipes if recipe.target == backend.target]
    if not recipes:
        targets = ", ".join(sorted({recipe.target for recipe in manifest.recipes})) or "none"
        raise AbsentError(
            f"backend {backend.name!r} needs graphs for {backend.target!r}, the bundle {manifest.model.name!r} has "
            f"{targets}: infgen-export CHECKPOINT --target {backend.target} -o BUNDLE makes them"
        )
    # Weights in 16 bits are exact where there are none in 32.
    best = "fp32" if any(recipe.precision == "fp32" for recipe in recipes) else "fp16"
    found = []
    for device, recipe in itertools.product(usable, recipes):
        for arithmetic in backend.arithmetics(device.id, recipe):
            exact = arithmetic == EXACT and recipe.precision == best
            psnr = manifest.psnr(recipe.name, arithmetic)
            found.append(Candidate(backend, device, recipe, arithmetic, exact, psnr))
    if not found:
        raise AbsentError("; ".join(unsuited(backend, device, manifest) for device in usable))
    return found


def unsuited(backend: Backend, device: Device, manifest: Manifest) -> str:
    """Why a device that works has no candidate: it computes in none of the precisions that the bundle has."""
    recipes = ", ".join(recipe.name for recipe in manifest.recipes if recipe.target == backend.target)
    return (
        f"backend {backend.name!r} runs none of the graphs of {manifest.model.name!r} on {device.name}, which are "
        f"{recipes}: infgen-export CHECKPOINT --recipe {backend.target}-fp32 -o BUNDLE makes graphs that it runs"
    )
