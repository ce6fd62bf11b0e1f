"""Choosing what runs a bundle: the fastest that verifies, or what the user named and nothing else."""

import contextlib
import itertools
import sys
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from .backends import ALIASES, EXACT, KNOWN, AbsentError, Backend, Device, installed_backends, load_backend
from .bundle import Bundle, Manifest, Recipe
from .errors import BackendError, InfGenWarning

if TYPE_CHECKING:
    from .measure import Result

Precision = Literal["fast", "exact"]
PRECISIONS = ("fast", "exact")
LEAST_PSNR = 45.0
"""Against float32, in decibels: what `fast` may cost."""
AUTO = "auto"


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

    def suits(self, precision: Precision) -> bool:
        """Whether it is as exact as asked for, as far as the exporter knows."""
        return self.exact or (precision == "fast" and (self.psnr is None or self.psnr >= LEAST_PSNR))

    def __str__(self) -> str:
        return f"{self.backend.name} on {self.device.name}, {self.recipe.name} in {self.arithmetic}"


@dataclass(frozen=True)
class Speed:
    """What was measured of a way of running a bundle.

    Attributes:
        decode: seconds for a megapixel of tiles, with as many at a time as are decoded so.
        context: seconds for the context of a thousand cells.
        encode: seconds for the encoding of a thousand cells; None without an encode graph.
    """

    decode: float
    context: float
    encode: float | None

    @property
    def typical(self) -> float:
        """Seconds for a thousand cells and their picture at twice the size, a quarter of a megapixel."""
        return self.context + self.decode / 4


@dataclass(frozen=True)
class Choice:
    """What runs a bundle, and why.

    Attributes:
        name: of the backend.
        device: id of its device.
        device_name: the same for people.
        recipe: name of the graphs.
        arithmetic: what they are computed in: `fp32`, `bf16`, `fp16`.
        psnr: of prefill and decode against float32 in decibels, None where it was not measured.
        speed: None where it was not measured.
        reason: why this one.
    """

    name: str
    device: str
    device_name: str
    recipe: str
    arithmetic: str
    psnr: float | None
    speed: Speed | None
    reason: str

    def __str__(self) -> str:
        cost = "" if self.arithmetic == EXACT or self.psnr is None else f", {self.psnr:.0f} dB against float32"
        return f"{self.name} on {self.device_name}, {self.arithmetic}{cost} ({self.reason})"


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
            if not _worth_importing(entry, manifest):
                continue
            try:
                backend = load_backend(entry)
                candidates += _candidates(backend, _devices(backend, device), manifest)
            except AbsentError as error:
                absent.append(str(error))
            except BackendError as error:
                broken.append(str(error))
        return cls(tuple(candidates), tuple(absent), tuple(broken))


def choose(
    bundle: Bundle,
    name: str = AUTO,
    device: str | None = None,
    precision: Precision = "fast",
    threads: int | None = None,
) -> tuple[Candidate, Choice]:
    """Find what runs a bundle.

    A backend or a device that the user named is used or refused, never replaced. Where several ways remain, each is
    measured once, and remembered in the user's cache folder.

    Args:
        bundle: opened.
        name: a backend's name, `auto` for any, or one of `ALIASES`.
        device: id of a device, or None for any of the backend's.
        precision: `exact` for float32 throughout, `fast` for what the device does natively.
        threads: CPU threads that it will have.

    Raises:
        BackendError: what was named is unknown, not installed or cannot run the bundle, or nothing can.
    """
    from . import measure  # which needs an engine, and that a candidate

    if precision not in PRECISIONS:
        raise BackendError(f"precision {precision!r} is unknown: expected one of {', '.join(PRECISIONS)}")
    if name in ALIASES and device is None:
        name, device = ALIASES[name]
    key, question = measure.key(bundle, threads), name if device is None else f"{name} {device}"
    record = measure.recall(key)
    if question in record.asked:
        known = [result for result in record.results if _answers(result, name, device, bundle.manifest)]
        if found := _fastest(known, precision):
            with contextlib.suppress(BackendError, StopIteration):  # it was here when it was measured
                survey = Survey.of(bundle.manifest, found.backend, found.device)
                candidate = next(each for each in survey.candidates if found.is_of(each))
                return candidate, _choice(candidate, found, known, precision)
    survey = Survey.of(bundle.manifest, name, device)
    suitable = [candidate for candidate in survey.candidates if candidate.suits(precision)]
    if not suitable:
        raise BackendError(_refusal(survey, bundle.manifest, precision))
    for line in survey.broken:
        warnings.warn(line, InfGenWarning, stacklevel=3)
    if len(suitable) == 1:
        before = next((result for result in record.results if result.is_of(suitable[0])), None)
        return suitable[0], _choice(suitable[0], before, (), precision)
    results = measure.measure(bundle, survey.candidates, threads)
    measure.remember(key, record.add(results, question))
    for result in results:
        if result.error:
            warnings.warn(f"{result} is left out: {result.error}", InfGenWarning, stacklevel=3)
    best = _fastest(results, precision)
    if best is None:
        raise BackendError("nothing here runs the bundle: " + "; ".join(f"{each}: {each.error}" for each in results))
    candidate = next(each for each in survey.candidates if best.is_of(each))
    return candidate, _choice(candidate, best, results, precision)


def _answers(result: "Result", name: str, device: str | None, manifest: Manifest) -> bool:
    """Whether a measurement is of what was asked for."""
    named = result.backend == name or (name == AUTO and _worth_importing(result.backend, manifest))
    return named and (device is None or Device(result.device, "").answers_to(device))


def _worth_importing(name: str, manifest: Manifest) -> bool:
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


def _candidates(backend: Backend, usable: Iterable[Device], manifest: Manifest) -> list[Candidate]:
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
    return found


def _fastest(results: Iterable["Result"], precision: Precision) -> "Result | None":
    suitable = (result for result in results if result.suits(precision))
    return min(suitable, key=lambda result: result.speed.typical if result.speed else 0.0, default=None)


def _choice(candidate: Candidate, result: "Result | None", among: Iterable["Result"], precision: Precision) -> Choice:
    count = sum(each.suits(precision) for each in among)
    return Choice(
        name=candidate.backend.name,
        device=candidate.device.id,
        device_name=candidate.device.name,
        recipe=candidate.recipe.name,
        arithmetic=candidate.arithmetic,
        psnr=candidate.psnr if candidate.psnr is not None or result is None else result.psnr,
        speed=result.speed if result else None,
        reason=f"fastest of {count} measured" if count > 1 else "the only one that suits",
    )


def _refusal(survey: Survey, manifest: Manifest, precision: Precision) -> str:
    if survey.candidates:
        backend = survey.candidates[0].backend
        return (
            f"nothing runs the bundle {manifest.model.name!r} in {precision!r} precision on {backend.name!r}: "
            f"infgen-export CHECKPOINT --recipe {backend.target}-fp32 -o BUNDLE makes graphs in float32"
        )
    targets = ", ".join(sorted({recipe.target for recipe in manifest.recipes})) or "none"
    nothing = f"no backend here runs the bundle {manifest.model.name!r}, which has graphs for {targets}"
    remedies = [known.extra for known in KNOWN.values() if any(r.target == known.target for r in manifest.recipes)]
    remedy = f"pip install 'infgen-rt[{remedies[0]}]'" if remedies else "install a backend for them"
    return "; ".join([*survey.absent, *survey.broken, f"{nothing}: {remedy}"])
