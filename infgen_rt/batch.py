"""Writes many pictures. The next one is begun while the one before is still written, so that no processor waits."""

from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, wait
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Event
from types import TracebackType
from typing import Any, Generic, TypeVar

from infgen_rt.common.arguments import FUNCTION, PATH, WHOLE, shown
from infgen_rt.common.callers import ask, raise_callers
from infgen_rt.common.cancellation import Cancel, Cancellation
from infgen_rt.common.pixels import Bits
from infgen_rt.common.progress import Progress
from infgen_rt.common.threads import Pool
from infgen_rt.errors import Cancelled, InfGenError, OutputError, PlanError, without_frames
from infgen_rt.picture import Picture
from infgen_rt.writers import Metadata, TileFormat
from infgen_rt.writers.names import identity, rooted

AT_ONCE = 2
"""The usual number of pictures that are decoded and written at the same time."""
# The seconds between two checks for signals on systems where waiting cannot be interrupted (Windows).
_SIGNALS = 0.1
_END = object()

Post = Callable[[Any], None]
"""Tells the thread that owns a line about an event, such as a step of progress."""
T = TypeVar("T")
Work = Callable[[Post, Event], T]
"""Work for a line. It gets a function for its events, and an event that is set to cancel the work."""


@dataclass(frozen=True)
class _Piece(Generic[T]):
    """Work that a line has begun.

    Attributes:
        group: work with the same group is dropped when one piece of it fails.
        memory: the peak memory of the work in bytes.
        output: the file that it writes.
        future: ends with the work.
        events: the events of the work, and `_END` after the last.
        stop: set to cancel the work.
    """

    group: object
    memory: int
    output: Path | None
    future: Future[T]
    events: "SimpleQueue[object]"
    stop: Event


class Line(Generic[T]):
    """Does several pieces of work at the same time, and delivers their events and errors one piece after another.

    The events of a piece are delivered in the thread that owns the line, after all events of the pieces before. To this
    thread, it looks as if the pieces were done one after another. At the end of a line's
    block, all work in progress is cancelled, and the block waits until it has stopped.

    Args:
        at_once: the number of pieces that are done at the same time.
    """

    def __init__(self, at_once: int) -> None:
        self._places = at_once
        self._pool = Pool(at_once, "infgen-work")
        self._running: deque[_Piece[T]] = deque()

    def __enter__(self) -> "Line[T]":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for piece in self._running:
            piece.stop.set()
        self._pool.shutdown(cancel_futures=True)
        self._running.clear()

    def __len__(self) -> int:
        return len(self._running)

    @property
    def oldest(self) -> object:
        """The group of the piece that `take` will wait for. The line must not be empty."""
        return self._running[0].group

    @property
    def full(self) -> bool:
        """Whether a piece has to be taken before another one can begin."""
        return len(self._running) >= self._places

    def has_room(self, memory: int, budget: int, output: Path | None) -> bool:
        """Whether a piece can begin beside those that are running. It always can if no piece is running.

        Args:
            memory: its peak memory in bytes.
            budget: the number of bytes that all pieces may use together.
            output: the file that it writes. Two pieces never write the same file at the same time.
        """
        if not self._running:
            return True
        taken = {identity(piece.output) for piece in self._running if piece.output is not None}
        fits = memory + sum(piece.memory for piece in self._running) <= budget
        return not self.full and fits and (output is None or identity(output) not in taken)

    def add(self, work: Work[T], group: object, memory: int = 0, output: Path | None = None) -> None:
        """Begin a piece of work. The line must have room for it.

        Args:
            work: the work.
            group: what the piece belongs to.
            memory: its peak memory in bytes, without what graphs keep for other pieces too.
            output: as for `has_room`.
        """
        events: SimpleQueue[object] = SimpleQueue()
        stop = Event()

        def run() -> T:
            try:
                return work(events.put, stop)
            finally:
                events.put(_END)

        future: Future[T] = self._pool.submit(copy_context().run, run)
        self._running.append(_Piece(group, memory, output, future, events, stop))

    def take(self, deliver: Callable[[Any], object]) -> T:
        """Wait for the end of the oldest piece, and return its result. Its events are delivered while it runs.

        If the piece has failed, the other pieces of its group are cancelled and dropped, and its error is raised.
        """
        piece = self._running[0]
        while (event := _next(piece.events)) is not _END:
            deliver(event)
        self._running.popleft()
        if (error := piece.future.exception()) is None:
            return piece.future.result()
        dropped = [each for each in self._running if each.group == piece.group]
        for each in dropped:
            each.stop.set()
            self._running.remove(each)
        while wait([each.future for each in dropped], timeout=_SIGNALS).not_done:
            pass
        raise error


def save_pictures(
    pictures: Iterable[tuple[Picture, str | Path]],
    *,
    at_once: int = AT_ONCE,
    bits: Bits = 8,
    tile_format: TileFormat | None = None,
    quality: int | None = None,
    lossless: bool = False,
    metadata: Metadata | None = None,
    force: bool = False,
    progress: Callable[[Path, Progress], object] | None = None,
    cancel: Cancel | None = None,
) -> dict[Path, InfGenError]:
    """Decode many pictures into files. The files are identical to those of `Picture.save`, and take less time.

    The next picture is begun while the one before is still decoded or written. For this, the memory of both must fit in
    the decoder's budget. Otherwise, and with `at_once=1`, one picture is written after another.

    Args:
        pictures: pairs of a picture and its file. A generator can plan each picture when its turn comes, so that not
            all latents are in memory.
        at_once: the largest number of pictures to work on at the same time.
        bits: as for `Picture.save`, like the following arguments.
        tile_format: the format of the tiles of a .dzi. None for `jpg`.
        quality: the quality, from 1 to 100.
        lossless: whether to keep every level exactly.
        metadata: text to store in each file.
        force: whether to replace existing files.
        progress: called in this thread with the file and a `Progress`, after each step. All steps of a picture are
            reported before those of the next.
        cancel: as for `Picture.save`.

    Returns:
        The error of each picture that could not be written, by its file. An error does not prevent the other pictures.
        A picture with the name of an earlier one is such an error.

    Raises:
        TypeError: `pictures` has something else than pairs of a picture and a path.
        Exception: any error of `pictures` itself. It is raised when the pictures before it are complete.
        PlanError: `at_once` is less than 1.
        Cancelled: the work was cancelled with `cancel`. Files that were complete before stay.

    Examples:
        >>> import infgen_rt
        >>> names = ["harbour", "osprey"]
        >>> with infgen_rt.open() as decoder:
        ...     latents = ((name, infgen_rt.load_sample(name).latent) for name in names)
        ...     pictures = ((decoder.picture(latent, "320x"), f"{name}-small.png") for name, latent in latents)
        ...     infgen_rt.save_pictures(pictures)
        {}
    """
    WHOLE.check(at_once=at_once)
    FUNCTION.or_none(progress=progress)
    if at_once < 1:
        raise PlanError(f"at_once of {at_once} is not possible: expected 1 or more")
    cancellation, failed = Cancellation(cancel), dict[Path, InfGenError]()
    options: dict[str, Any] = {"bits": bits, "tile_format": tile_format, "quality": quality, "lossless": lossless}
    options |= {"metadata": metadata, "force": force}
    line: Line[None] = Line(int(at_once))
    with line:

        def take() -> None:
            path = line.oldest
            assert isinstance(path, Path)
            try:
                line.take(partial(ask, progress, path) if progress else lambda _: None)
            except Cancelled:
                raise
            except InfGenError as error:
                raise_callers(error)
                failed[path] = without_frames(error)

        given, names = iter(pictures), set[str]()
        while True:
            try:
                picture, name = _checked(next(given))
            except StopIteration:
                break
            except Exception:
                while line:
                    take()
                raise
            cancellation.check()
            path = Path(name)
            file = rooted(path)  # the working folder may change before it is written
            if identity(path) in names:
                failed.setdefault(path, OutputError(f"{path} is the name of two pictures: give each its own"))
                continue
            names.add(identity(path))
            try:
                form = picture.check_save(path, **options)
                memory, _ = picture.memory_to_save(form, picture.size, bits)
            except InfGenError:
                memory = 0  # saving will raise the same error when it is this picture's turn
            while not line.has_room(memory, picture.plan.budget, file):
                take()
            own = max(0, memory - picture.plan.kept)
            line.add(partial(_save, picture, file, options, cancel), path, own, file)
            while line.full:
                take()
        while line:
            take()
    return failed


def _checked(pair: Any) -> tuple[Picture, str | Path]:
    """A pair of a picture and a file, as `save_pictures` takes it."""
    if isinstance(pair, (tuple, list)) and len(pair) == 2 and isinstance(pair[0], Picture) and PATH.holds(pair[1]):
        return pair[0], pair[1]
    raise TypeError(f"pictures has {shown(pair)}: expected pairs of a Picture and a path")


def _save(
    picture: Picture, path: Path, options: dict[str, Any], cancel: Cancel | None, post: Post, stop: Event
) -> None:
    """Save a picture until it is complete, the caller cancels, or the line stops it."""
    requested: Callable[[], bool] = getattr(cancel, "is_set", None) or cancel or bool  # type: ignore[assignment]
    picture.save(path, **options, progress=post, cancel=lambda: stop.is_set() or requested())


def _next(events: "SimpleQueue[object]") -> object:
    """The next event. Signals are handled while this waits."""
    while True:
        try:
            return events.get(timeout=_SIGNALS)
        except Empty:
            continue
