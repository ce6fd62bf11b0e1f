"""Chooses how to run a bundle: in the fastest way that is exact enough, or exactly as the user has requested."""

from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec

from infgen_rt.backend import measuring
from infgen_rt.backend.candidates import AUTO, PRECISIONS, Candidate, Precision, Survey, worth_importing
from infgen_rt.backend.measuring import Result, Speed
from infgen_rt.backend.others import other_backends
from infgen_rt.backend.protocol import ALIASES, EXACT, KNOWN, Device, installed_backends
from infgen_rt.bundle.folder import Bundle
from infgen_rt.bundle.manifest import Manifest
from infgen_rt.common.callers import suppress_but_callers
from infgen_rt.common.notices import warn
from infgen_rt.common.progress import Tell
from infgen_rt.common.remedies import installing
from infgen_rt.common.shortages import remedy
from infgen_rt.errors import BackendError


@dataclass(frozen=True)
class Choice:
    """The choice of how to run a bundle, and the reason for it. Print it for a description.

    Attributes:
        name: the name of the backend.
        device: the id of its device.
        device_name: the name of the device for people.
        recipe: the name of the recipe.
        arithmetic: the arithmetic in which the graphs are computed: `fp32`, `bf16` or `fp16`.
        psnr: the PSNR against float32, in decibels. None if it was not measured.
        speed: the measured speed. None if it was not measured.
        reason: the reason for the choice.

    Examples:
        >>> import infgen_rt
        >>> with infgen_rt.open(backend="onnxruntime", device="cpu") as decoder:
        ...     print(decoder.backend.name, decoder.backend.device)
        onnxruntime cpu
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


def choose(
    bundle: Bundle,
    name: str = AUTO,
    device: str | None = None,
    precision: Precision = "fast",
    threads: int | None = None,
    progress: Tell | None = None,
    *,
    again: bool = False,
) -> tuple[Candidate, Choice]:
    """Choose how to run a bundle.

    A backend or device that the user has named is used, or it is an error, but it is never replaced. If several ways
    remain, each is measured once. The results are stored in the user's cache folder.

    Args:
        bundle: the opened bundle.
        name: a backend's name, `auto` for any, or one of `ALIASES`.
        device: the id of a device, or None for any device of the backend.
        precision: `exact` for float32 throughout, or `fast` for the device's native arithmetic.
        threads: the number of CPU threads that will be used. None for the backend's default.
        progress: called while ways are measured.
        again: whether to measure again, because what was stored does not work any more.

    Returns:
        The candidate, and its description for the caller.

    Raises:
        BackendError: the named backend or device is unknown, not installed or cannot run the bundle, or no backend can.
        Cancelled: the current work was cancelled.
    """
    if precision not in PRECISIONS:
        raise BackendError(f"precision {precision!r} is unknown: expected one of {', '.join(PRECISIONS)}")
    if name in ALIASES:
        name, device = _named(name, device)
    key, questions = measuring.key(bundle, threads), _questions(name, device, bundle.manifest)

    def remembered() -> tuple[Candidate, Choice] | None:
        record = measuring.recall(key)
        if not set(questions) <= set(record.asked):
            return None
        known = [result for result in record.results if _answers(result, name, device, bundle.manifest)]
        for found in _by_speed(known, precision):
            with suppress_but_callers(BackendError, StopIteration):  # it may have been uninstalled since
                survey = Survey.of(bundle.manifest, found.way.backend, found.way.device)
                candidate = next(each for each in survey.candidates if each.way == found.way)
                if candidate.suits(precision):
                    for result in known:
                        if result.speed is None:
                            warn(f"{result} is left out: {result.error}; infgen-rt devices --measure tries it again")
                    return candidate, _choice(candidate, found, known, precision)
        return None

    if not again and (before := remembered()):
        return before
    survey = Survey.of(bundle.manifest, name, device)
    suitable = [candidate for candidate in survey.candidates if candidate.suits(precision)]
    if not suitable:
        raise BackendError(_refusal(survey, bundle.manifest, precision))
    for line in survey.broken:
        warn(line)
    if len(suitable) == 1:
        known = measuring.recall(key).results
        result = next((result for result in known if result.way == suitable[0].way), None)
        return suitable[0], _choice(suitable[0], result, (), precision)
    with measuring.turn():
        # Another process may have measured the ways while this one waited.
        if not again and (before := remembered()):
            return before
        results = measuring.measure(bundle, survey.candidates, threads, progress)
        measuring.remember(key, results, *questions)
    for result in results:
        if result.error:
            warn(f"{result} is left out: {result.error}")
    ways = {candidate.way for candidate in suitable}
    best = next(iter(_by_speed((result for result in results if result.way in ways), precision)), None)
    if best is None:
        tried = {each.way.backend for each in results}
        errors = "; ".join(f"{each}: {each.error}" for each in results)
        step = other_backends(tried, bundle.manifest)
        raise BackendError(f"nothing that was tried runs the bundle, and {remedy(errors) or step}: {errors}")
    candidate = next(each for each in survey.candidates if each.way == best.way)
    return candidate, _choice(candidate, best, results, precision)


def _named(alias: str, device: str | None) -> tuple[str, str]:
    """The backend and the device that an alias stands for. The device may be one of several of its kind."""
    name, kind = ALIASES[alias]
    if device is not None and not Device(device, "").answers_to(kind):
        raise BackendError(f"{device} is no device of {alias!r}: leave the device out, or pass one such as {kind}:1")
    return name, device or kind


def _questions(name: str, device: str | None, manifest: Manifest) -> list[str]:
    """What must have been measured to answer a request: each backend that may answer it, and the requested device."""
    names = [each for each in installed_backends() if worth_importing(each, manifest)] if name == AUTO else [name]
    return [each if device is None else f"{each} {device}" for each in names]


def _answers(result: Result, name: str, device: str | None, manifest: Manifest) -> bool:
    """Whether a measurement is for the requested backend and device."""
    way = result.way
    named = way.backend == name or (name == AUTO and worth_importing(way.backend, manifest))
    return named and (device is None or Device(way.device, "").answers_to(device))


def _by_speed(results: Iterable[Result], precision: Precision) -> list[Result]:
    """The measurements that are exact enough, the fastest first."""
    suitable = (result for result in results if result.suits(precision))
    return sorted(suitable, key=lambda result: result.speed.typical if result.speed else 0.0)


def _choice(candidate: Candidate, result: Result | None, among: Iterable[Result], precision: Precision) -> Choice:
    count = sum(each.suits(precision) for each in among)
    return Choice(
        name=candidate.way.backend,
        device=candidate.way.device,
        device_name=candidate.device.name,
        recipe=candidate.way.recipe,
        arithmetic=candidate.arithmetic,
        psnr=candidate.psnr if candidate.psnr is not None or result is None else result.psnr,
        speed=result.speed if result else None,
        reason=f"fastest of {count} measured" if count > 1 else "the only one that suits",
    )


def _refusal(survey: Survey, manifest: Manifest, precision: Precision) -> str:
    if survey.candidates:
        backend = survey.candidates[0].backend
        nothing = f"nothing runs the bundle {manifest.model.name!r} in {precision!r} precision on {backend.name!r}"
        if precision == "exact" and any(candidate.suits("fast") for candidate in survey.candidates):
            return (
                f"{nothing}: pass precision='fast' (--precision fast), or make graphs in float32 with "
                f"infgen-export CHECKPOINT --recipe {backend.target}-fp32 -o BUNDLE"
            )
        return f"{nothing}: infgen-export CHECKPOINT --recipe {backend.target}-fp32 -o BUNDLE makes graphs in float32"
    targets = ", ".join(sorted({recipe.target for recipe in manifest.recipes})) or "none"
    nothing = f"no backend here runs the bundle {manifest.model.name!r}, which has graphs for {targets}"
    reasons = [*survey.absent, *survey.broken]
    known = [name for name, each in KNOWN.items() if any(recipe.target == each.target for recipe in manifest.recipes)]
    if "torch" in known and not worth_importing("torch", manifest) and find_spec("torch"):
        reasons.append("PyTorch is left out unless it is imported already: pass backend='torch' (--backend torch)")
    if reasons:
        return "; ".join([nothing, *reasons])
    return f"{nothing}: {installing(KNOWN[known[0]].extra) if known else 'install a backend for them'}"
