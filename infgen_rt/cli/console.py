"""What the commands say: errors, warnings, progress and facts; and the exit codes."""

import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click

from infgen_rt.saving import Progress

FAILED, BAD_INPUT, INTERRUPTED, TERMINATED = 1, 2, 130, 143


def complain(text: str, code: int) -> int:
    """Print an error as one line and return its exit code."""
    click.echo(f"Error: {' '.join(text.split())}", err=True)
    return code


class Stopwatch:
    """Seconds a phase, and in all."""

    def __init__(self) -> None:
        self._began = self._last = time.perf_counter()
        self.seconds: dict[str, float] = {}

    def lap(self, phase: str) -> None:
        """Book the time since the last lap on a phase."""
        now = time.perf_counter()
        self.seconds[phase] = self.seconds.get(phase, 0.0) + now - self._last
        self.seconds["total"] = now - self._began
        self._last = now


@contextmanager
def warnings_to_stderr(quiet: bool = False) -> Iterator[list[str]]:
    """Print warnings as one line each, as they come, and gather them."""
    notes: list[str] = []

    def show(message: Warning | str, *args: Any, **options: Any) -> None:
        notes.append(str(message))
        if not quiet:
            click.echo(f"Warning: {message}", err=True)

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = show
        yield notes


@contextmanager
def progress_bar(wanted: bool) -> Iterator[Callable[[Progress], None]]:
    """Show a bar on standard error; what it yields moves it."""
    if not wanted:
        yield lambda progress: None
        return
    with click.progressbar(length=1, file=sys.stderr, width=40) as bar:

        def show(progress: Progress) -> None:
            bar.length = progress.total
            bar.label = f"{progress.stage:8}"
            bar.update(progress.done - bar.pos)

        yield show


def print_facts(facts: dict[str, Any], indent: str = "") -> None:
    """Print a line a fact, those inside others indented."""
    for name, value in facts.items():
        if isinstance(value, dict):
            click.echo(f"{indent}{name}:")
            print_facts(value, indent + "  ")
        elif isinstance(value, (list, tuple)):
            items = [str(item) for item in value]
            click.echo(f"{indent}{name}: {', '.join(items) or 'none'}")
        else:
            click.echo(f"{indent}{name}: {value}")
