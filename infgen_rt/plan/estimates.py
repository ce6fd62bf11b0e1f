"""Estimates times that were not measured, from the multiply-adds of a decode and the rate of this processor."""

import time
from functools import cache

import numpy as np

# The side of the matrices, and the number of products that are timed. All of them take a few hundredths of a second.
_SIDE, _RUNS = 768, 3
# The rate of the graphs, relative to that of matrix products. Convolutions reach 0.75 to 0.9, other operations less.
_SHARE = 0.7


def estimated_seconds(work: float) -> float:
    """The estimated seconds for a number of multiply-adds on this machine's CPU, in float32 and with all its cores."""
    return work / (_SHARE * rate())


@cache
def rate() -> float:
    """Multiply-adds per second in NumPy's products of large float32 matrices. It is measured once per process."""
    matrix = np.full((_SIDE, _SIDE), 0.5, np.float32)
    times = []
    for _ in range(1 + _RUNS):  # the first one starts NumPy's threads
        began = time.perf_counter()
        np.matmul(matrix, matrix)
        times.append(time.perf_counter() - began)
    return float(_SIDE**3) / max(min(times), 1e-9)
