"""The name of the processor."""

import platform
from pathlib import Path

from infgen_rt.common.callers import raise_callers


def processor_name() -> str:
    """The name of the kind of processor, such as `AMD EPYC`. Python itself does not know it on Linux."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise_callers(error)
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor()) or "unknown"
