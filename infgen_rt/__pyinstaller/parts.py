"""The parts of this package that a frozen app needs and that no import statement names."""

from importlib.metadata import entry_points
from importlib.util import find_spec

from infgen_rt.backend.protocol import GROUP


def backends() -> dict[str, str]:
    """The modules of all backends, with the distribution whose metadata names each.

    This project's own are there even if their libraries are not, because they then tell what the app lacks.
    """
    return {
        entry.module: entry.dist.name
        for entry in entry_points(group=GROUP)
        if entry.dist is not None and find_spec(entry.module.partition(".")[0]) is not None
    }
