"""The report of `infgen-rt devices`: the devices of all backends, with their speed or the reason why they fail."""

from collections.abc import Sequence
from dataclasses import dataclass

from infgen_rt.backend import measuring
from infgen_rt.backend.candidates import Candidate, Survey, Way, devices_of, unsuited, worth_importing
from infgen_rt.backend.measuring import Speed
from infgen_rt.backend.protocol import KNOWN, installed_backends, load_backend
from infgen_rt.bundle.folder import Bundle
from infgen_rt.common.callers import raise_callers
from infgen_rt.common.cancellation import Cancel, Cancellation, current
from infgen_rt.common.progress import Tell
from infgen_rt.common.threads import checked_threads
from infgen_rt.errors import BackendError


@dataclass(frozen=True)
class Fact:
    """One way of running a model, or the reason why a backend or a device cannot run it.

    Attributes:
        backend: the name of the backend.
        device: the id of the device. None if the backend itself is the problem.
        device_name: the name of the device for people.
        recipe: the name of the recipe. None if the device is not usable.
        arithmetic: the arithmetic in which the graphs are computed.
        speed: the measured speed. None if it was not measured.
        psnr: the PSNR against float32, in decibels. None if it was not measured.
        problem: the reason why it is not usable, and what to do about it. None if it is usable.
        auto: whether `auto` takes it for the precision `fast`, by what was measured.
    """

    backend: str
    device: str | None = None
    device_name: str | None = None
    recipe: str | None = None
    arithmetic: str | None = None
    speed: Speed | None = None
    psnr: float | None = None
    problem: str | None = None
    auto: bool = False

    def order(self) -> tuple[bool, float]:
        """The sort key: the usable ways come first, and of these the fastest."""
        return self.problem is not None, float("inf") if self.speed is None else self.speed.typical

    def __str__(self) -> str:
        where = self.backend if self.device is None else f"{self.backend} {self.device} ({self.device_name})"
        if self.problem:
            return f"- {where}: {self.problem}"
        speed = "not measured" if self.speed is None else f"{self.speed.decode:.3f} s per megapixel"
        quality = "" if self.psnr is None else f", {self.psnr:.0f} dB against float32"
        return f"{'*' if self.auto else '+'} {where}: {self.recipe} in {self.arithmetic}, {speed}{quality}"


def describe_devices(
    bundle: Bundle,
    threads: int | None = None,
    fresh: bool = False,
    *,
    progress: Tell | None = None,
    cancel: Cancel | None = None,
) -> list[Fact]:
    """List all ways of running a bundle on this machine.

    Args:
        bundle: the bundle to run.
        threads: the number of CPU threads.
        fresh: whether to measure all usable ways now. Otherwise, only earlier measurements are reported.
        progress: called while ways are measured, before the first and after each.
        cancel: an event or a function that stops the measuring, as for `infgen_rt.open`.

    Returns:
        The usable ways, fastest first, then the others.

    Raises:
        BackendError: the number of threads is not possible.
        Cancelled: the work was cancelled with `cancel`.
    """
    with Cancellation(cancel).watched():
        return _describe(bundle, checked_threads(threads), fresh, progress)


def _describe(bundle: Bundle, threads: int | None, fresh: bool, progress: Tell | None) -> list[Fact]:
    facts: list[Fact] = []
    candidates: list[Candidate] = []
    key = measuring.key(bundle, threads)
    # What `auto` takes may depend on whether PyTorch is imported, so this comes before the backends are imported.
    automatic = {name for name in installed_backends() if worth_importing(name, bundle.manifest)}
    names = [*KNOWN, *sorted(installed_backends().keys() - KNOWN.keys())]
    for name in names:
        current().check()  # importing a library takes seconds
        try:
            found = devices_of(load_backend(name))
            facts += [Fact(name, device.id, device.name, problem=device.problem) for device in found if device.problem]
            if usable := [device for device in found if device.problem is None]:
                those = Survey.of(bundle.manifest, name).candidates
                candidates += those
                for device in usable:
                    if all(candidate.device.id != device.id for candidate in those):
                        problem = unsuited(those[0].backend, device, bundle.manifest)
                        facts.append(Fact(name, device.id, device.name, problem=problem))
        except BackendError as error:
            raise_callers(error)
            facts.append(Fact(name, problem=str(error)))
    if fresh and candidates:
        with measuring.turn():
            measuring.remember(key, measuring.measure(bundle, candidates, threads, progress), *names)
    results = measuring.recall(key).results
    taken = _taken([each for each in candidates if each.backend.name in automatic], results)
    return sorted([*(_fact(candidate, results, taken) for candidate in candidates), *facts], key=Fact.order)


def _taken(candidates: Sequence[Candidate], results: Sequence[measuring.Result]) -> Way | None:
    """The way that `auto` takes of its candidates for the precision `fast`. None if it has to measure some first."""
    ways = [candidate.way for candidate in candidates if candidate.suits("fast")]
    if len(ways) == 1:
        return ways[0]
    measured = {result.way: result for result in results if result.way in ways}
    usable = {way: result.speed.typical for way, result in measured.items() if result.speed and result.suits("fast")}
    return min(usable, key=usable.__getitem__) if usable and len(measured) == len(ways) else None


def _fact(candidate: Candidate, results: Sequence[measuring.Result], taken: Way | None) -> Fact:
    way = candidate.way
    result = next((result for result in results if result.way == way), None)
    return Fact(
        way.backend,
        way.device,
        candidate.device.name,
        way.recipe,
        way.arithmetic,
        speed=result.speed if result else None,
        psnr=candidate.psnr,
        problem=result.error if result else None,
        auto=way == taken,
    )
