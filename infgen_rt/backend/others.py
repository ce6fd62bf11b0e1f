"""What a user can pass or install instead of a backend that failed."""

import platform
import sys
from typing import TYPE_CHECKING

from infgen_rt.backend.protocol import KNOWN, installed_backends
from infgen_rt.bundle.manifest import Manifest
from infgen_rt.common.callers import raise_callers
from infgen_rt.common.remedies import installing

if TYPE_CHECKING:
    from infgen_rt.backend.candidates import Candidate


def instead_of(candidate: "Candidate", manifest: Manifest) -> str:
    """What may run a bundle here instead of a way that failed: other devices and backends, as the end of a message.

    Args:
        candidate: the way that failed.
        manifest: the bundle's manifest.
    """
    backend = candidate.backend
    devices = _other_devices(candidate, manifest)
    ways = [f"another device (--device): {', '.join(devices)}"] if devices else []
    if others := _others({backend.name}, manifest):
        ways.append(f"another backend (--backend): {', '.join(others)}")
    return f"pass {'; or '.join(ways)}" if ways else or_install({backend.name}, manifest)


def _other_devices(candidate: "Candidate", manifest: Manifest) -> list[str]:
    """The ids of the other devices of a candidate's backend that can run the bundle."""
    backend, failed = candidate.backend, candidate.device.id
    recipes = [recipe for recipe in manifest.recipes if recipe.target == backend.target]
    try:
        usable = [device.id for device in backend.devices() if device.problem is None and device.id != failed]
        return [device for device in usable if any(backend.arithmetics(device, recipe) for recipe in recipes)]
    # A driver that has failed may fail here too, with any error. The message then has no advice about devices.
    except Exception as error:
        raise_callers(error)
        return []


def other_backends(tried: set[str], manifest: Manifest) -> str:
    """What to do about backends that do not run a bundle: pass or install another one, or pass another bundle.

    Args:
        tried: the names of the backends.
        manifest: the bundle's manifest.
    """
    if others := _others(tried, manifest):
        return f"pass another backend (--backend): {', '.join(others)}"
    return or_install(tried, manifest)


def _others(tried: set[str], manifest: Manifest) -> list[str]:
    """Names of the installed backends that the bundle has graphs for, without those that were tried."""
    return [
        name
        for name in installed_backends()
        if name not in tried and (name not in KNOWN or (fits(name, manifest) and KNOWN[name].is_here))
    ]


def or_install(tried: set[str], manifest: Manifest) -> str:
    """How to install another backend that the bundle has graphs for, or how to make such graphs, for a message."""
    for name, known in KNOWN.items():
        if name not in tried and fits(name, manifest):
            return f"another backend can be tried: {installing(known.extra)}"
    return "pass a bundle with graphs for another backend, which infgen-export CHECKPOINT --target all -o BUNDLE makes"


def fits(name: str, manifest: Manifest) -> bool:
    """Whether a backend of this project could run the bundle on this system."""
    system = name != "coreml" or sys.platform == "darwin"
    system &= name != "openvino" or (sys.platform, platform.machine()) != ("win32", "ARM64")
    return system and any(recipe.target == KNOWN[name].target for recipe in manifest.recipes)
