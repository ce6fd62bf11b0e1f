"""Opens latents for a viewer: reads a file, opens the model of its latent space, and plans its pictures."""

from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

from infgen_rt.backend.candidates import AUTO, Precision
from infgen_rt.common.arguments import PATH, TEXT
from infgen_rt.common.cancellation import Cancel
from infgen_rt.common.notices import Notices
from infgen_rt.common.progress import Tell
from infgen_rt.decoder import Decoder, open_bundle
from infgen_rt.decoder import open as open_decoder
from infgen_rt.errors import LatentError
from infgen_rt.geometry.shapes import fit, fixed_size, parse_size
from infgen_rt.latent.arrays import Normalisation
from infgen_rt.latent.choosing import space_among
from infgen_rt.latent.files import read_array
from infgen_rt.latent.samples import load_sample
from infgen_rt.latent.spaces import latent_space
from infgen_rt.picture import Picture

PART = 32
"""Side, in cells, of the parts in which a latent is prepared. Small parts make the first tiles available sooner."""


@dataclass(frozen=True)
class Opened:
    """The pictures of a file or of a sample.

    Attributes:
        title: the name of the file or of the sample.
        decoder: the decoder of the pictures. The `Opener` owns it and closes it.
        pictures: one picture for each latent in the file.
    """

    title: str
    decoder: Decoder
    pictures: tuple[Picture, ...]


class Opener:
    """Opens latents, one after another. The model of each latent space is opened once.

    Attributes:
        size: the size of the pictures. It may be changed between calls of `open`.
        notices: receives the warnings of the models that are opened after it was set. With None, they go to Python's
            `warnings`.

    Args:
        size: as for `Decoder.picture`. A width and height, or a name such as `8k`, is a maximum: the picture is as
            large as fits within it, and keeps the aspect ratio of its latent.
        model: as `path` for `open`.
        space: as for `open`.
        backend: as for `open`.
        device: as for `open`.
        precision: as for `open`.
        threads: as for `open`.
        memory: as for `open`.
        normalisation: as for `Decoder.picture`.
        latent_size: as for `Decoder.picture`.
        key: the name of the array to read from a file that holds several.
    """

    def __init__(
        self,
        size: str = "4x",
        *,
        model: Path | None = None,
        space: str | None = None,
        backend: str = AUTO,
        device: str | None = None,
        precision: Precision = "fast",
        threads: int | None = None,
        memory: str | int | None = None,
        normalisation: Normalisation | None = None,
        latent_size: tuple[int, int] | None = None,
        key: str | None = None,
    ) -> None:
        self.size = size
        self.notices: Notices | None = None
        self._model, self._space, self._key = model, space, key
        self._opening: dict[str, Any] = {
            "backend": backend,
            "device": device,
            "precision": precision,
            "threads": threads,
            "memory": memory,
        }
        self._reading: dict[str, Any] = {"normalisation": normalisation, "latent_size": latent_size}
        self._decoders: dict[str, Decoder] = {}

    def open(
        self, path: str | Path | None, sample: str | None = None, *, progress: Tell | None = None, cancel: Cancel | None
    ) -> Opened:
        """Open a file of latents, or a sample. Nothing is decoded yet.

        Args:
            path: the file. None to open the sample.
            sample: the name of a sample. It is ignored if there is a path.
            progress: as for the function `open`. It is called only when the backends are measured for the first time.
            cancel: as for the function `open`.

        Raises:
            InputError: the file, the model, the backend or the size cannot be used.
            Cancelled: the work was cancelled with `cancel`.
        """
        TEXT.check(size=self.size)
        PATH.or_none(path=path)
        TEXT.or_none(sample=sample)
        if str(path) == "-":
            raise LatentError("standard input cannot be viewed: pass a file")
        array = load_sample(sample or "").latent if path is None else read_array(path, self._key)
        decoder = self._decoder(self._space_of(array), progress, cancel)
        native = decoder.native_size(array, latent_size=self._reading["latent_size"])
        limit = fixed_size(self.size)
        size = parse_size(self.size, native) if limit is None else fit(native, limit, "contain")[0]
        # In one stage, because the first tile of two takes too long.
        pictures = decoder.pictures(array, size, max_scale=inf, part=PART, **self._reading)
        return Opened(sample or "" if path is None else Path(path).name, decoder, tuple(pictures))

    def close(self) -> None:
        """Close all decoders."""
        while self._decoders:
            self._decoders.popitem()[1].close()

    def _space_of(self, array: Any) -> str:
        if self._space is not None:
            return latent_space(self._space).name
        return space_among(array, open_bundle(self._model).spaces, latent_size=self._reading["latent_size"])

    def _decoder(self, space: str, progress: Tell | None, cancel: Cancel | None) -> Decoder:
        if space not in self._decoders:
            decoder = open_decoder(self._model, space=space, progress=progress, cancel=cancel, **self._opening)
            if self.notices is not None:
                decoder.notices = self.notices
            self._decoders[space] = decoder
        return self._decoders[space]
