"""Parses and formats amounts of memory, and determines the default budget and the peak of this process."""

import ctypes
import math
import re
import sys

from infgen_rt.common.callers import suppress_but_callers
from infgen_rt.common.limits import available_memory
from infgen_rt.errors import PlanError

_UNITS = {"": 1, "b": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_UNITS |= {f"{unit}b": size for unit, size in _UNITS.items() if unit not in ("", "b")}
_UNITS |= {f"{unit}ib": 1024**power for power, unit in enumerate("kmgt", start=1)}
# Less than this is taken for a mistake.
_LEAST_BUDGET = 10**6
# A number without a unit is probably of GiB up to this one, and of MiB above.
_MOST_GIB = 64
MIB = 2**20
GIB = 2**30


def parse_bytes(value: str | int) -> int:
    """Parse an amount of memory, such as `1GiB`, `512 MB` or a plain number of bytes.

    Raises:
        PlanError: the text is not understood or the amount is not above 0.
    """
    match = re.fullmatch(r"\s*(\d{1,18}(?:\.\d+)?)\s*([a-z]*)\s*", str(value).lower())
    unit = _UNITS.get(match[2]) if match else None
    if match is None or unit is None:
        raise PlanError(f"memory {value!r} is not understood: expected an amount such as 1GiB, 512MiB or 800MB")
    amount = int(float(match[1]) * unit)
    if amount < 1:
        raise PlanError(f"memory {value!r} is not usable: expected an amount above 0")
    return amount


def parse_budget(value: str | int) -> int:
    """Parse the amount of memory that decoding may use. The arguments are those of `parse_bytes`.

    Raises:
        PlanError: as for `parse_bytes`, or the amount is so small that its unit is probably missing.
    """
    amount = parse_bytes(value)
    if amount < _LEAST_BUDGET:
        unit = "GiB" if amount <= _MOST_GIB else "MiB"
        meant = f"did you mean {amount}{unit}?" if str(value).strip().isdigit() else "expected an amount such as 1GiB"
        raise PlanError(f"memory of {amount:,} bytes is less than any picture needs: {meant}")
    return amount


def format_bytes(amount: int) -> str:
    """Format an amount of memory for people, in MiB or GiB."""
    return f"{amount / GIB:.2f} GiB" if amount >= GIB else f"{amount / MIB:.1f} MiB"


def enough(amount: int) -> str:
    """Format an amount like `format_bytes`, but round it up, so that the text is an amount that is enough."""
    if amount >= GIB:
        return f"{math.ceil(amount * 100 / GIB) / 100:.2f} GiB"
    return f"{math.ceil(amount * 10 / MIB) / 10:.1f} MiB"


def default_budget() -> int:
    """The default memory budget of a decode: 4 GiB, or half of the free memory if that is less.

    The free memory is that of the machine, or of the container if it has a limit.
    """
    available = available_memory()
    return GIB if available is None else min(4 * GIB, available // 2)


def peak_memory() -> int | None:
    """The peak resident memory of this process so far, in bytes. None if the system does not report it."""
    try:
        # Unlike the figure of getrusage, this one does not include the parent process.
        with open("/proc/self/status", encoding="ascii") as lines:
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        pass
    try:
        import resource
    except ImportError:
        return _peak_on_windows()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _peak_on_windows() -> int | None:
    try:
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    except (ImportError, AttributeError, OSError):
        return None


def give_back() -> None:
    """Return freed memory to the system. glibc would otherwise keep it for later."""
    with suppress_but_callers(OSError, AttributeError, TypeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)
