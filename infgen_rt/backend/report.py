"""What `infgen-rt devices` tells: every backend's every device, how fast it is, or what it lacks."""

from collections.abc import Sequence
from dataclasses import dataclass

from infgen_rt.backend import measuring
from infgen_rt.backend.candidates import AUTO, Candidate, Survey, unsuited
from infgen_rt.backend.measuring import Speed
from infgen_rt.backend.protocol import KNOWN, installed_backends, load_backend
from infgen_rt.bundle.folder import Bundle
from infgen_rt.errors import BackendError


@dataclass(frozen=True)
class Fact:
    """One way of running a model, or why there is none.

    Attributes:
        backend: its name.
        device: id of the device; None if the backend itself is the problem.
        device_name: the same for people.
        recipe: name of the graphs; None if it is not usable.
        arithmetic: what they are computed in.
        speed: if it was measured.
        psnr: against float32 in decibels, if it was measured.
        problem: why it is not usable and what to do, or None.
    """

    backend: str
    device: str | None = None
    device_name: str | None = None
    recipe: str | None = None
    arithmetic: str | None = None
    speed: Speed | None = None
    psnr: float | None = None
    problem: str | None = None

    def order(self) -> tuple[bool, float]:
        """Sorts what is usable first, the fastest of it first, in an order that is otherwise kept."""
        return self.problem is not None, float("inf") if self.speed is None else self.speed.typical

    def __str__(self) -> str:
        where = self.backend if self.device is None else f"{self.backend} {self.device} ({self.device_name})"
        if self.problem:
            return f"- {where}: {self.problem}"
        speed = "not measured" if self.speed is None else f"{self.speed.decode:.3f} s per megapixel"
        quality = "" if self.psnr is None else f", {self.psnr:.0f} dB against float32"
        return f"+ {where}: {self.recipe} in {self.arithmetic}, {speed}{quality}"


def describe_devices(bundle: Bundle, threads: int | None = None, fresh: bool = False) -> list[Fact]:
    """All that is known of this machine.

    Args:
        bundle: whose graphs are to run.
        threads: CPU threads that they would have.
        fresh: measure what is usable now; otherwise only what was measured before is told.

    Returns:
        What is usable, fastest first, then what is not.
    """
    facts: list[Fact] = []
    candidates: list[Candidate] = []
    key = measuring.key(bundle, threads)
    names = [*KNOWN, *sorted(installed_backends().keys() - KNOWN.keys())]
    for name in names:
        try:
            found = load_backend(name).devices()
            facts += [Fact(name, device.id, device.name, problem=device.problem) for device in found if device.problem]
            if usable := [device for device in found if device.problem is None]:
                those = Survey.of(bundle.manifest, name).candidates
                candidates += those
                for device in usable:
                    if all(candidate.device.id != device.id for candidate in those):
                        problem = unsuited(those[0].backend, device, bundle.manifest)
                        facts.append(Fact(name, device.id, device.name, problem=problem))
        except BackendError as error:
            facts.append(Fact(name, problem=str(error)))
    if fresh and candidates:
        with measuring.turn():
            measuring.remember(key, measuring.measure(bundle, candidates, threads), AUTO, *names)
    results = measuring.recall(key).results
    return sorted([*(_fact(candidate, results) for candidate in candidates), *facts], key=Fact.order)


def _fact(candidate: Candidate, results: Sequence[measuring.Result]) -> Fact:
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
    )
