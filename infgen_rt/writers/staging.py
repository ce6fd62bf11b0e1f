"""Outputs that appear under their names when they are complete, and not at all otherwise."""

import re
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from infgen_rt.errors import OutputError
from infgen_rt.writers.names import hidden_name

_HIDDEN = re.compile(r"\..*\.[0-9a-f]{8}\.part", re.DOTALL)
_LOCK, _REPLACED = "writing.lock", "replaced"
# What a lock fails with: it is held, the folder is gone, or the file system has none.
_NO_LOCK = (OSError, NotImplementedError)
_TRIES = 10


@contextmanager
def staged(outputs: Sequence[Path]) -> Iterator[Path]:
    """Give a hidden folder beside the outputs to write them in; they move to their places when the block ends.

    What exists under their names is replaced. When the block or the move fails, it is as it was before. Folders of
    this kind that processes left behind when they died are removed first.

    Args:
        outputs: paths of one folder. The first of several refers to the others: it is there only with them.

    Raises:
        OutputError: the folder of the outputs cannot be written in.
    """
    main = outputs[0]
    clean(main.parent)
    with ExitStack() as held:
        folder = _make(main, held)
        try:
            yield folder
            try:
                _publish(folder, outputs)
            except OSError as error:
                # Of moving, whoever stands in for it: nothing of the caller's is called here.
                raise error.with_traceback(None) from None
        finally:
            # Nothing is made of a failure here: the outputs are there, or the reason why not is on its way.
            shutil.rmtree(folder, ignore_errors=True)
    # Windows keeps a file that is locked.
    shutil.rmtree(folder, ignore_errors=True)


def clean(parent: Path) -> None:
    """Remove what processes that died while they wrote left in a folder.

    A folder in which a process still writes is locked. One that holds the only copy of what was to be replaced stays.
    """
    from filelock import FileLock

    with suppress(OSError):
        for folder in [each for each in parent.iterdir() if _HIDDEN.fullmatch(each.name)]:
            # One without a lock is younger than its lock, or nobody's that is known.
            if folder.is_symlink() or not (folder / _LOCK).is_file() or _is_needed(folder):
                continue
            with suppress(*_NO_LOCK), FileLock(folder / _LOCK).acquire(timeout=0):
                shutil.rmtree(folder, ignore_errors=True)
            if not (folder / _LOCK).exists():
                shutil.rmtree(folder, ignore_errors=True)


def _is_needed(folder: Path) -> bool:
    """Whether a process died while two parts changed places: then what was there before is in the folder."""
    with suppress(FileNotFoundError):
        return any(not (folder.parent / old.name).exists() for old in (folder / _REPLACED).iterdir())
    return False


def _make(main: Path, held: ExitStack) -> Path:
    """Make a hidden folder for an output, locked until the stack ends."""
    from filelock import FileLock

    for _ in range(_TRIES):
        folder = main.with_name(hidden_name(main, f"{secrets.token_hex(4)}.part"))
        try:
            folder.mkdir()
        except OSError as error:
            raise OutputError(f"cannot write in {main.parent}: {error.strerror}") from None
        with suppress(*_NO_LOCK):
            held.enter_context(FileLock(folder / _LOCK).acquire(timeout=0))
        # Another process may have taken it for a dead one's, before it was locked.
        if folder.is_dir():
            break
    return folder


def _publish(folder: Path, outputs: Sequence[Path]) -> None:
    if len(outputs) == 1:
        (folder / outputs[0].name).replace(outputs[0])
        return
    aside = folder / _REPLACED
    aside.mkdir()
    with ExitStack() as undo:

        def move(source: Path, target: Path) -> None:
            source.rename(target)
            undo.callback(target.rename, source)

        for output in outputs:
            if output.exists():
                move(output, aside / output.name)
        for output in reversed(outputs):
            move(folder / output.name, output)
        undo.pop_all()
