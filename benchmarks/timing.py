"""Measures the time of work in this process."""

from __future__ import annotations

import time
from collections.abc import Callable


def seconds(work: Callable[[], object]) -> float:
    """The time that work takes once, in seconds."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
