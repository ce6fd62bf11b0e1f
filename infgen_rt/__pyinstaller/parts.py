"""The parts of this package that a frozen app needs and that no import statement names."""

from importlib.metadata import entry_points
from importlib.util import find_spec

from infgen_rt.backend.protocol import GROUP


def backends() -> dict[str, str]:
    """The modules of all backends, each with the distribution whose metadata names it.

    The backends of this project are included even if their libraries are missing. They then say what the app lacks.
    """
    return {
        entry.module: entry.dist.name
        for entry in entry_points(group=GROUP)
        if entry.dist is not None and find_spec(entry.module.partition(".")[0]) is not None
    }
