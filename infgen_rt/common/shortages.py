"""Recognises errors that mean that the system gave the process no more memory, or no further thread.

Libraries report this in many ways: as a MemoryError, or as an error of their own that quotes C++ or the system.
"""

import re
from contextlib import AbstractContextManager
from types import TracebackType

from infgen_rt.common.callers import raise_callers
from infgen_rt.errors import InfGenError, one_line

MORE_MEMORY = "close other programs, or raise the limit of this process"
"""What helps if the system gives no more memory."""
_THREADS = re.compile(
    "can't start new thread|pthread_create|thread constructor failed|cannot create thread|"
    "resource temporarily unavailable",
    re.IGNORECASE,
)
_MEMORY = re.compile(
    "bad_?alloc|memoryerror|(failed to|unable to|cannot|can't|could not) alloc|out of memory|not enough memory|"
    # oneDNN, which PyTorch and OpenVINO use, says no more than this when memory is refused.
    "failed to map segment|could not create a (primitive|memory)",
    re.IGNORECASE,
)


def lacks_threads(error: BaseException) -> bool:
    """Whether an error means that the system allowed no further thread."""
    return _THREADS.search(str(error)) is not None


def remedy(message: str, memory: str = MORE_MEMORY) -> str | None:
    """What to do about an error. None if it means neither too little memory nor too few threads.

    Args:
        message: the message of the error.
        memory: what helps if there is too little memory.
    """
    if _THREADS.search(message):
        return f"the system allowed no further thread: pass threads=1 (--threads 1), {MORE_MEMORY}"
    return f"there is too little memory: {memory}" if _MEMORY.search(message) else None


class Shortages(AbstractContextManager[None]):
    """A block in which a shortage of memory or threads becomes an error of this package.

    The caller's own errors leave the block as they are. This is a class, because a context manager that is a generator
    could not pass on a StopIteration.

    Args:
        kind: the class of the error.
    """

    def __init__(self, kind: type[InfGenError]) -> None:
        self._kind = kind

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Libraries raise a RuntimeError if a thread cannot be started, or for std::bad_alloc.
        if not isinstance(error, MemoryError | RuntimeError):
            return
        less = f"pass less memory (--memory) or a smaller tile (--tile), or {MORE_MEMORY}"
        text = "MemoryError" if isinstance(error, MemoryError) else str(error)
        if advice := remedy(text, less):
            raise_callers(error)
            raise self._kind(f"{advice} ({one_line(error)})") from error
