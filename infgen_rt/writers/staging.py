"""Outputs that appear under their names only when they are complete."""

import re
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from infgen_rt.errors import OutputError, reason
from infgen_rt.writers.names import hidden_name

_HIDDEN = re.compile(r"\..*\.[0-9a-f]{8}\.part", re.DOTALL)
_LOCK, _REPLACED = "writing.lock", "replaced"
# Errors of a lock: it is held, the folder is gone, or the file system has no locks.
_NO_LOCK = (OSError, NotImplementedError)
_TRIES = 10


@contextmanager
def staged(outputs: Sequence[Path]) -> Iterator[Path]:
    """Yield a hidden folder next to the outputs to write them in. When the block ends, they move to their places.

    Existing outputs are replaced. If the block or the move fails, they stay as they were. Before that, hidden folders
    that crashed processes have left behind are removed.

    Args:
        outputs: paths in one folder. If there are several, the first refers to the others and appears only with them.

    Raises:
        OutputError: the folder of the outputs is not writable.
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
                # Without its traceback, the error counts as one of writing. No code of the caller runs here.
                raise error.with_traceback(None) from None
        finally:
            # A failure here is ignored: the outputs are in place, or another error is already being raised.
            shutil.rmtree(folder, ignore_errors=True)
    # Windows does not remove a file that is locked.
    shutil.rmtree(folder, ignore_errors=True)


def clean(parent: Path) -> None:
    """Remove the hidden folders that processes left in a folder when they crashed while writing.

    A hidden folder that is still in use is locked and stays. One that holds the only copy of a replaced output also
    stays.
    """
    from filelock import FileLock

    with suppress(OSError):
        for folder in [each for each in parent.iterdir() if _HIDDEN.fullmatch(each.name)]:
            # A folder without a lock file is either not locked yet, or was not made by this package.
            if folder.is_symlink() or not (folder / _LOCK).is_file() or _is_needed(folder):
                continue
            with suppress(*_NO_LOCK), FileLock(folder / _LOCK).acquire(timeout=0):
                shutil.rmtree(folder, ignore_errors=True)
            if not (folder / _LOCK).exists():
                shutil.rmtree(folder, ignore_errors=True)


def _is_needed(folder: Path) -> bool:
    """Whether a folder holds replaced outputs that are missing, because a process crashed while moving its parts."""
    with suppress(FileNotFoundError):
        return any(not (folder.parent / old.name).exists() for old in (folder / _REPLACED).iterdir())
    return False


def _make(main: Path, held: ExitStack) -> Path:
    """Make a hidden folder for an output, locked until the stack ends."""
    from filelock import FileLock, Timeout

    for _ in range(_TRIES):
        folder = main.with_name(hidden_name(main, f"{secrets.token_hex(4)}.part"))
        try:
            folder.mkdir()
        except OSError as error:
            raise OutputError(f"cannot write in {main.parent}: {reason(error)}") from None
        # Before it is locked, another process may take it for one of a crashed process, and lock and remove it.
        try:
            with suppress(NotImplementedError):
                held.enter_context(FileLock(folder / _LOCK).acquire(timeout=0))
        except Timeout:
            continue
        except OSError:  # a file system without locks, on which nothing is removed
            pass
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
