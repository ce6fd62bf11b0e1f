"""Writes the pictures of a request, some at the same time, and reports them one after another."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from threading import Event
from types import TracebackType
from typing import Any

from infgen_rt.batch import AT_ONCE, Line, Post, Work
from infgen_rt.cli.console import Notes, Stopwatch, progress_bar, warnings_to
from infgen_rt.cli.request import Job, Request
from infgen_rt.common.progress import Progress
from infgen_rt.errors import InfGenError

_LOG = logging.getLogger(__name__)
_Written = tuple[Job, Stopwatch] | None


class Writing:
    """Writes pictures while later ones are planned. What is printed is in the order of the latents.

    When its block ends, the pictures that are not complete are cancelled.

    Args:
        request: the request.
        notes: the warnings of the latent whose pictures are reported.
        fail: called with a latent that failed and the error. It may raise the error.
    """

    def __init__(self, request: Request, notes: Notes, fail: Callable[[Any, InfGenError], object]) -> None:
        self._request, self._notes, self._fail = request, notes, fail
        self._line: Line[_Written] = Line(AT_ONCE)
        self._warnings: list[Warning | str] = []
        self._failed: set[object] = set()
        self._reported: object = None

    def __enter__(self) -> "Writing":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._line.__exit__(kind, error, trace)

    @contextmanager
    def planning(self) -> Iterator[None]:
        """A block that plans a latent's pictures. Its warnings are printed when it is the latent's turn."""
        while self._line.full:
            self._take()
        with warnings_to(self._warnings.append):
            yield

    def add(self, latent: object, jobs: list[Job], stopwatch: Stopwatch) -> None:
        """Write the pictures of a latent, each as soon as there is a place and enough memory.

        Args:
            latent: the latent. If writing one of its pictures fails, those after it are not written.
            jobs: the pictures. The list is emptied, so that pictures that are complete do not stay in memory.
            stopwatch: the stopwatch of the first picture, which has measured the planning.
        """
        if not jobs:
            self._begin(latent, lambda post, cancel: None)
        while jobs:
            job = jobs.pop(0)
            while not self._line.has_room(job.memory, job.picture.plan.budget, job.output):
                self._take()
            if latent in self._failed:
                return
            own = job.memory - job.picture.plan.kept
            self._begin(latent, partial(self._write, job, stopwatch), own, job.output)
            stopwatch = Stopwatch()

    def add_failed(self, latent: object, error: InfGenError) -> None:
        """Report the error of a latent whose pictures could not be planned, when it is its turn."""

        def work(post: Post, cancel: Event) -> None:
            raise error

        self._begin(latent, work)

    def finish(self) -> None:
        """Wait until all pictures are written and reported."""
        while self._line:
            self._take()

    def _begin(self, latent: object, work: Work[_Written], memory: int = 0, output: Path | None = None) -> None:
        early, self._warnings = self._warnings, []

        def with_warnings(post: Post, cancel: Event) -> _Written:
            for warning in early:
                post(warning)
            return work(post, cancel)

        while self._line.full:
            self._take()
        self._line.add(with_warnings, latent, memory, output)

    def _write(self, job: Job, stopwatch: Stopwatch, post: Post, cancel: Event) -> tuple[Job, Stopwatch]:
        def tell(progress: Progress) -> None:
            _LOG.debug("%s", progress)
            stopwatch.lap(progress.stage)
            post(progress)

        stopwatch.lap("open")
        with warnings_to(post):
            job.save(self._request, tell, cancel)
        return job, stopwatch

    def _take(self) -> None:
        """Wait for the oldest picture, showing its progress, and report it."""
        latent = self._line.oldest
        if latent != self._reported:
            self._reported = latent
            self._notes.clear()
        try:
            with progress_bar(not self._request.quiet) as show:
                written = self._line.take(lambda event: self._deliver(event, show))
        except InfGenError as error:
            self._failed.add(latent)
            self._fail(latent, error)
            return
        if written is not None:
            job, stopwatch = written
            job.report(self._request, stopwatch, self._notes)

    def _deliver(self, event: Progress | Warning | str, show: Callable[[Progress], None]) -> None:
        if isinstance(event, Progress):
            show(event)
        else:
            self._notes.tell(event)
