"""The decoder of a VAE, which its copies share."""

from collections.abc import Mapping
from threading import Lock
from typing import Any

from infgen_rt.decoder import Decoder, open


class Opened:
    """A decoder that is opened at once. Copies share it, and a pickle opens its own when it is first used.

    Args:
        options: the arguments of `infgen_rt.open`.
    """

    def __init__(self, options: Mapping[str, Any], decoder: Decoder | None = None) -> None:
        self._options, self._decoder, self._lock = options, decoder, Lock()

    def get(self) -> Decoder:
        with self._lock:
            if self._decoder is None:
                self._decoder = open(**self._options)
            return self._decoder

    def close(self) -> None:
        self.get().close()

    def __deepcopy__(self, memo: object) -> "Opened":
        return self

    def __reduce__(self) -> tuple[type["Opened"], tuple[Mapping[str, Any]]]:
        return Opened, (self._options,)
