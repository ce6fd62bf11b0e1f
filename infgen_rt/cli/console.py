"""Prints the output of the commands: errors, warnings, progress and facts. It also defines the exit codes."""

import contextlib
import errno
import logging
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any, TextIO, cast

import click

from infgen_rt.common.progress import Progress
from infgen_rt.errors import InfGenError, joined_lines, reason

FAILED, BAD_INPUT, INTERRUPTED = 1, 2, 130
SIGNALLED = 128
"""The exit code for a signal is this plus the signal's number, as in shells."""


def complain(text: str, code: int) -> int:
    """Print an error as one line and return its exit code."""
    say(f"Error: {joined_lines(text)}", err=True)
    return code


def say(text: str, err: bool = False, needed: bool = False) -> None:
    """Print a line, if this is possible. A windowed app has no output, and a terminal may have been closed.

    Args:
        text: the text of the line.
        err: whether to print it to standard error.
        needed: whether the line is the result that the user has requested.

    Raises:
        InfGenError: the line is needed and cannot be printed, for example because the disk is full.
    """
    try:
        try:
            click.echo(text, err=err)
        except UnicodeEncodeError:  # a file name that the terminal cannot show
            click.echo(text.encode("ascii", "backslashreplace").decode(), err=err)
    except ValueError:  # closed
        pass
    except OSError as error:
        if error.errno == errno.EPIPE and needed:
            raise  # click ends the command
        if needed:
            raise InfGenError(f"cannot print: {reason(error)}; send the output elsewhere") from error


def is_terminal(stream: TextIO | None) -> bool:
    """Whether a stream is a terminal."""
    return stream is not None and not stream.closed and stream.isatty()


class _Patient:
    """A stream that ignores errors of writing.

    Args:
        stream: the stream to write to.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class Stopwatch:
    """Measures the seconds of each phase and of the whole work.

    Attributes:
        seconds: the seconds of each phase, by name, and of all phases as `total`.
    """

    def __init__(self) -> None:
        self._began = self._last = time.perf_counter()
        self.seconds: dict[str, float] = {}

    def lap(self, phase: str) -> None:
        """Add the time since the last lap to a phase."""
        now = time.perf_counter()
        self.seconds[phase] = self.seconds.get(phase, 0.0) + now - self._last
        self.seconds["total"] = now - self._began
        self._last = now


class Notes(list[str]):
    """The texts of all different warnings. If several have the same cause, only the first of them is printed.

    Args:
        quiet: whether to print none.
    """

    def __init__(self, quiet: bool) -> None:
        super().__init__()
        self._quiet = quiet
        self._causes: set[str] = set()

    def tell(self, message: Warning | str) -> None:
        """Note a warning, and print it as one line."""
        if str(message) not in self:
            self.append(str(message))
        cause = getattr(message, "cause", "") or str(message)
        if not self._quiet and cause not in self._causes:
            self._causes.add(cause)
            say(f"Warning: {message}", err=True)


_TELL: ContextVar[Callable[[Warning | str], object] | None] = ContextVar("infgen-warnings", default=None)


@contextmanager
def warnings_to_stderr(quiet: bool = False) -> Iterator[Notes]:
    """Print each warning as one line when it occurs, or where `warnings_to` sends it.

    Yields:
        The warnings so far.
    """
    notes = Notes(quiet)

    def show(message: Warning | str, *args: Any, **options: Any) -> None:
        (_TELL.get() or notes.tell)(message)

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = show
        yield notes


@contextmanager
def warnings_to(tell: Callable[[Warning | str], object]) -> Iterator[None]:
    """Send the warnings of the work in this block to a function, for example to print them later."""
    token = _TELL.set(tell)
    try:
        yield
    finally:
        _TELL.reset(token)


class _Log(logging.Handler):
    """Prints each record as a line on standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        say(self.format(record), err=True)


@contextmanager
def log_to_stderr(wanted: bool) -> Iterator[None]:
    """Print everything that this package logs, with the time and the logger's name."""
    if not wanted:
        yield
        return
    log, handler = logging.getLogger("infgen_rt"), _Log()
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s: %(message)s"))
    before = log.level
    log.addHandler(handler)
    log.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(before)


@contextmanager
def progress_bar(wanted: bool) -> Iterator[Callable[[Progress], None]]:
    """Show a progress bar on standard error, if this is a terminal.

    Yields:
        The function that updates the bar.
    """
    if not wanted or not is_terminal(sys.stderr):
        yield lambda progress: None
        return
    with click.progressbar(length=1, file=cast(TextIO, _Patient(sys.stderr)), width=40) as bar:

        def show(progress: Progress) -> None:
            bar.length = progress.total
            bar.label = f"{progress.stage:8}"
            bar.update(progress.done - bar.pos)
            bar.render_progress()  # shows the label even if no step was done

        yield show


@contextmanager
def late_progress_bar(wanted: bool) -> Iterator[Callable[[Progress], None]]:
    """Show a progress bar like `progress_bar`, but only if there is a step. The bar ends with the last step."""
    with ExitStack() as stack:
        shows: list[Callable[[Progress], None]] = []

        def show(progress: Progress) -> None:
            if not shows:
                shows.append(stack.enter_context(progress_bar(wanted)))
            shows[0](progress)
            if progress.done == progress.total:
                stack.close()
                shows.clear()

        yield show


def print_facts(facts: dict[str, Any], indent: str = "") -> None:
    """Print one line per fact, with nested facts indented."""
    for name, value in facts.items():
        if isinstance(value, dict):
            say(f"{indent}{name}:", needed=True)
            print_facts(value, indent + "  ")
        elif isinstance(value, (list, tuple)):
            items = [str(item) for item in value]
            say(f"{indent}{name}: {', '.join(items) or 'none'}", needed=True)
        else:
            say(f"{indent}{name}: {value}", needed=True)
