"""Outputs that appear under their names when they are complete, and not at all otherwise."""

import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from infgen_rt.errors import OutputError
from infgen_rt.writers.names import hidden_name


@contextmanager
def staged(outputs: Sequence[Path]) -> Iterator[Path]:
    """Give a hidden folder beside the outputs to write them in; they move to their places when the block ends.

    What exists under their names is replaced. When the block or the move fails, it is as it was before.

    Args:
        outputs: paths of one folder. The first of several refers to the others: it is there only with them.

    Raises:
        OutputError: the folder of the outputs cannot be written in.
    """
    main = outputs[0]
    folder = main.with_name(hidden_name(main, f"{secrets.token_hex(4)}.part"))
    try:
        folder.mkdir()
    except OSError as error:
        raise OutputError(f"cannot write in {main.parent}: {error.strerror}") from None
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


def _publish(folder: Path, outputs: Sequence[Path]) -> None:
    if len(outputs) == 1:
        (folder / outputs[0].name).replace(outputs[0])
        return
    aside = folder / "replaced"
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
