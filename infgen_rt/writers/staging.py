"""Makes outputs appear under their names only when they are complete."""

import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from infgen_rt.common.callers import raise_callers
from infgen_rt.common.claims import claim, remove_leftovers
from infgen_rt.errors import OutputError, reason
from infgen_rt.writers.names import hidden_name
from infgen_rt.writers.replacing import WINDOWS

_HIDDEN = re.compile(r"\..*\.[0-9a-f]{8}\.part", re.DOTALL)
_REPLACED = "replaced"
_PATIENCE = 2.0
# Windows allows 259 characters in a path, or 247 in that of a folder, unless the user has enabled long paths.
_LONG = 200


@contextmanager
def staged(outputs: Sequence[Path]) -> Iterator[Path]:
    """Yield a hidden folder next to the outputs. When the block ends, the outputs are moved from it to their places.

    Existing outputs are replaced. If the block or the move fails, they stay as they were. At the start, the hidden
    folders of crashed processes are removed.

    Args:
        outputs: paths in one folder. If there are several, the first refers to the others, and is moved last.

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
                raise_callers(error)
                # Without its traceback, `writers.appearing` counts the error as one of writing.
                raise error.with_traceback(None) from None
        finally:
            # A failure here is ignored: the outputs are in place, or another error is already being raised.
            shutil.rmtree(folder, ignore_errors=True)
    # Windows does not remove a file that is locked.
    shutil.rmtree(folder, ignore_errors=True)


def clean(parent: Path) -> None:
    """Remove the hidden folders that crashed processes have left in a folder.

    A hidden folder that is in use is locked, and stays. One that holds the only copy of a replaced output also stays.
    """
    remove_leftovers(parent, _HIDDEN, _is_needed)


def _is_needed(folder: Path) -> bool:
    """Whether a folder has the only copy of a replaced output, because a process crashed while it moved the outputs."""
    with suppress(FileNotFoundError):
        return any(not (folder.parent / old.name).exists() for old in (folder / _REPLACED).iterdir())
    return False


def _make(main: Path, held: ExitStack) -> Path:
    """Make a hidden folder for an output. It is locked until the stack ends."""
    try:
        return claim(lambda mark: main.with_name(hidden_name(main, f"{mark}.part")), held)
    except OSError as error:
        raise_callers(error)
        why = reason(error)
        if WINDOWS and len(str(main.absolute())) > _LONG:
            why += f", which may be for the length of the path, {len(str(main.absolute()))} characters"
        raise OutputError(f"cannot write in {main.parent}: {why}") from None


def _patiently(move: Callable[[Path], object], target: Path) -> None:
    """Move a file. On Windows, a virus scanner may have a new file open for a moment, and then it cannot be moved."""
    until = time.monotonic() + _PATIENCE
    while True:
        try:
            move(target)
            return
        except PermissionError:
            if not WINDOWS or time.monotonic() > until:
                raise
            time.sleep(_PATIENCE / 40)


def _publish(folder: Path, outputs: Sequence[Path]) -> None:
    if len(outputs) == 1:
        _patiently((folder / outputs[0].name).replace, outputs[0])
        return
    aside = folder / _REPLACED
    aside.mkdir()
    with ExitStack() as undo:

        def move(source: Path, target: Path) -> None:
            _patiently(source.rename, target)
            undo.callback(target.rename, source)

        for output in outputs:
            if output.exists():
                move(output, aside / output.name)
        for output in reversed(outputs):
            move(folder / output.name, output)
        undo.pop_all()
