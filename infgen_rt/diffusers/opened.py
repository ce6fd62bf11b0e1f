"""The decoder of a VAE, which its copies share."""

from collections.abc import Mapping
from threading import Lock
from typing import Any

from infgen_rt.decoder import Decoder, open
from infgen_rt.errors import DecodeError


class Opened:
    """A decoder that is opened at once. Copies share it, and a pickle opens its own when it is first used.

    Args:
        options: the arguments of `infgen_rt.open`.
    """

    def __init__(self, options: Mapping[str, Any], decoder: Decoder | None = None) -> None:
        self._options, self._decoder, self._lock, self._closed = options, decoder, Lock(), False

    def get(self) -> Decoder:
        with self._lock:
            if self._decoder is None:
                if self._closed:
                    raise DecodeError("the decoder is closed: make another InfGenVAE")
                self._decoder = open(**self._options)
            return self._decoder

    def close(self) -> None:
        with self._lock:
            self._closed = True
            if self._decoder is not None:
                self._decoder.close()

    def __deepcopy__(self, memo: object) -> "Opened":
        return self

    def __reduce__(self) -> tuple[type["Opened"], tuple[Mapping[str, Any]]]:
        return Opened, (self._options,)
