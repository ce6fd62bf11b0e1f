"""Distinguishes errors of the caller's own code from those of libraries and the system, so that callers get their own.

The caller's code runs in the middle of this package's work in two ways: as a function that was passed (`progress`,
`cancel`), and as a signal handler, which Python may call at any point of the main thread. Its errors may be of any
kind. Code that handles every error of a library or of the system therefore calls `raise_callers` first.

Python itself changes one kind: a StopIteration that leaves a generator becomes a RuntimeError (PEP 479). Much of this
package's work is done in generators, so `Unwrapped` turns it back where a piece of work ends.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from inspect import CO_VARARGS
from traceback import walk_tb
from types import FrameType, TracebackType
from typing import TypeVar

T = TypeVar("T")


def ask(function: Callable[..., T], *arguments: object) -> T:
    """Call a function that the caller has passed. Errors that it raises are recognised by `raise_callers`."""
    return function(*arguments)


def raise_callers(error: BaseException) -> None:
    """Raise the caller's own error, if the given error is one or was raised `from` one. Otherwise, do nothing.

    Args:
        error: the error that is being handled.
    """
    each: BaseException | None = error
    while each is not None:
        if _is_callers(each):
            raise each from each.__cause__
        each = each.__cause__


@contextmanager
def suppress_but_callers(*kinds: type[Exception]) -> Iterator[None]:
    """Suppress errors like `contextlib.suppress`, except the caller's own."""
    try:
        yield
    except kinds as error:
        raise_callers(error)


class Unwrapped(AbstractContextManager[None]):
    """A block that raises the caller's own error where a generator has replaced it by a RuntimeError.

    This is a class, because a context manager that is a generator could not raise StopIteration either.

    Args:
        inner: the context manager of the block. It must not suppress errors.
    """

    def __init__(self, inner: AbstractContextManager[None]) -> None:
        self._inner = inner

    def __enter__(self) -> None:
        self._inner.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._inner.__exit__(kind, error, trace)
        if isinstance(error, RuntimeError):
            raise_callers(error)


def _is_callers(error: BaseException) -> bool:
    passed: list[FrameType] = []
    for frame, _ in walk_tb(error.__traceback__):
        if frame.f_code is ask.__code__ or _is_handler(frame, passed):
            return True
        passed.append(frame)
    return False


def _is_handler(frame: FrameType, passed: list[FrameType]) -> bool:
    """Whether a frame is that of a signal handler. Only signal handlers get one of the earlier frames as an argument.

    The installed handlers are not compared, because a handler may have been removed in the meantime.
    """
    code = frame.f_code
    count = code.co_argcount + code.co_kwonlyargcount + bool(code.co_flags & CO_VARARGS)
    for name in code.co_varnames[:count]:
        value = frame.f_locals.get(name)
        if any(given is each for given in (value if isinstance(value, tuple) else (value,)) for each in passed):
            return True
    return False
