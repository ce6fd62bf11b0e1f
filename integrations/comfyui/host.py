"""ComfyUI's progress bar and its cancel button, in the form that infgen_rt takes."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import comfy.model_management
import comfy.utils

from infgen_rt import Cancelled, Progress


class Bar:
    """ComfyUI's progress bar for several pictures of one size.

    Args:
        pictures: the number of pictures.
    """

    def __init__(self, pictures: int = 1) -> None:
        self._pictures = pictures
        self._bar = comfy.utils.ProgressBar(pictures)

    def of(self, number: int) -> Callable[[Progress], None]:
        """Return the function that takes the progress of one of the pictures.

        Args:
            number: the number of the picture, counted from 0.
        """

        def told(progress: Progress) -> None:
            total = progress.total
            self._bar.update_absolute(number * total + progress.done, self._pictures * total)

        return told


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Yield a function that returns whether the user has pressed ComfyUI's cancel button.

    Raises:
        InterruptProcessingException: the work in the block was cancelled. ComfyUI shows no error for this exception.
    """
    try:
        yield comfy.model_management.processing_interrupted
    except Cancelled:
        comfy.model_management.throw_exception_if_processing_interrupted()
        raise
