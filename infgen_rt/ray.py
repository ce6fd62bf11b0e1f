"""A class that decodes data sets of latents in Ray Data, with one decoder for each actor.

import ray
import infgen_rt.ray

latents = ray.data.read_parquet("latents")  # columns `key` and `latent`
options = {"size": "2x", "backend": "onnxruntime"}
pictures = latents.map_batches(
    infgen_rt.ray.Decode,
    fn_constructor_kwargs=options,
    compute=ray.data.ActorPoolStrategy(size=2),
    num_cpus=1,
    batch_size=4,
)
pictures.write_parquet("pictures")

It needs Ray: `pip install "infgen-rt[ray]"`, with a backend's extra.
"""

import tempfile
from collections.abc import Sequence
from os import PathLike, fspath
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from infgen_rt.backend.candidates import AUTO, Precision
from infgen_rt.common.arguments import PATH, TEXT
from infgen_rt.common.pixels import Bits
from infgen_rt.decoder import open as open_model
from infgen_rt.errors import InfGenError, LatentError, OutputError, reason
from infgen_rt.latent.arrays import Normalisation
from infgen_rt.latent.files import parse_array
from infgen_rt.latent.spaces import latent_space
from infgen_rt.picture import Picture
from infgen_rt.writers.names import check_name

try:
    import ray
except ImportError as error:
    raise ImportError(f'infgen_rt.ray needs Ray ({error}): pip install "infgen-rt[ray]"') from error

__all__ = ["Decode"]

Batch = dict[str, npt.NDArray[Any]]
FILE = "file"
"""The column with the paths of pictures that were written."""


class Decode:
    """A callable class for `Dataset.map_batches`. Each actor opens the model once.

    The result has a column of complete picture files, which Ray's writers put into shards. With `folder`, the class
    writes the files itself, and names them after the rows' keys. A file appears there only when it is complete, and is
    not decoded again if it exists. If an actor or the whole program is killed and started again, no file is lost.

    If Ray has assigned a GPU to an actor, the actor decodes with CUDA. Otherwise, it decodes on the CPU, with as many
    threads as Ray has assigned CPUs to it. Arguments override this.

    Args:
        latent: the column with the latents, which is not in the result. A latent is an array as for `Decoder.picture`,
            nested lists of numbers, or the content of a .npy, .npz, .safetensors or .latent file.
        key: the column with a text that is different in each row of the data set.
        folder: the folder to write to, as an absolute path that every machine has. None for a column of files.
        root: the start of keys that are paths, which is left out in the names of files. For example, with `/latents`,
            the picture of `/latents/a/1.npy` is the file `a/1.npy.png`.
        column: the column for the files, or with `folder` for the files' paths. No other column of the data set may
            have this name. None for a column with the name `ending`, or `file` with `folder`.
        ending: the ending of the files, which determines the format, without a dot.
        bits: as for `Picture.save`.
        quality: as for `Picture.save`.
        lossless: as for `Picture.save`.
        size: as for `Decoder.picture`.
        stages: as for `Decoder.picture`.
        max_scale: as for `Decoder.picture`.
        tile: as for `Decoder.picture`.
        normalisation: as for `Decoder.picture`. With None, the normalisation of ComfyUI's files is recognised.
        path: as for `infgen_rt.open`. Every machine must have the bundle there.
        space: as for `infgen_rt.open`.
        backend: as for `infgen_rt.open`. With `auto`, each machine measures, and machines may choose different ones.
        device: as for `infgen_rt.open`.
        precision: as for `infgen_rt.open`.
        threads: the number of CPU threads. None for the number of the actor's processors.
        memory: as for `infgen_rt.open`. None for the memory that Ray has assigned to the actor. If it has assigned
            none, None means the same as for `infgen_rt.open`.

    Raises:
        OutputError: the folder is not an absolute path, or the format is several files and there is no folder.
        InfGenError: the errors of `infgen_rt.open`.
    """

    def __init__(
        self,
        *,
        latent: str = "latent",
        key: str = "key",
        folder: str | PathLike[str] | None = None,
        root: str | PathLike[str] | None = None,
        column: str | None = None,
        ending: str = "png",
        bits: Bits = 8,
        quality: int | None = None,
        lossless: bool = False,
        size: str | float | tuple[int, int] | None = None,
        stages: Sequence[float] | None = None,
        max_scale: float | None = None,
        tile: int | None = None,
        normalisation: Normalisation | None = None,
        path: str | PathLike[str] | None = None,
        space: str | None = None,
        backend: str = AUTO,
        device: str | None = None,
        precision: Precision = "fast",
        threads: int | None = None,
        memory: str | int | None = None,
    ) -> None:
        TEXT.check(latent=latent, key=key, ending=ending)
        TEXT.or_none(column=column)
        PATH.or_none(folder=folder, root=root, path=path)
        self._latent, self._key, self._ending = latent, key, ending
        self._folder, self._root = None if folder is None else Path(folder), None if root is None else fspath(root)
        if self._folder is not None and not self._folder.is_absolute():
            raise OutputError(f"the folder {folder} depends on where a worker runs: pass an absolute path")
        if self._folder is None and ending == "dzi":
            raise OutputError("a .dzi is many files, and a row has one: pass a folder, or another ending")
        self._column = column or (ending if folder is None else FILE)
        self._saving: dict[str, Any] = {"bits": bits, "quality": quality, "lossless": lossless}
        self._planning: dict[str, Any] = {"size": size, "stages": stages, "max_scale": max_scale, "tile": tile}
        self._normalisation = normalisation
        assigned = _assigned()
        if assigned and backend == AUTO and device is None:
            backend, device = ("cuda", None) if assigned.get("GPU") else (AUTO, "cpu")
        if assigned and threads is None:
            threads = max(1, int(assigned.get("CPU", 1)))
        if assigned and memory is None:
            memory = int(assigned.get("memory", 0)) or None
        self._decoder = open_model(
            None if path is None else fspath(path),
            backend,
            space=space,
            device=device,
            precision=precision,
            threads=threads,
            memory=memory,
        )
        self._space = latent_space(self._decoder.manifest.latent_space)

    def __call__(self, batch: Batch) -> Batch:
        """Decode a batch, one latent after another.

        Args:
            batch: the columns, as `map_batches` gives them in its format `numpy`.

        Returns:
            The columns without the latents, and with a column of results.

        Raises:
            LatentError: a column is missing or would be replaced, or a latent is not usable.
            OutputError: a picture cannot be written.
            InfGenError: the other errors of `Decoder.picture` and `Picture.save`. The message of an error about a row
                begins with the row's key.
        """
        if missing := next((name for name in (self._latent, self._key) if name not in batch), None):
            raise LatentError(
                f"the data set has no column {missing!r}, but {', '.join(batch)}: name the column of the latents and "
                "that of their keys (latent=..., key=...)"
            )
        if self._column in batch and self._column != self._latent:
            raise LatentError(
                f"the data set has a column {self._column!r} already, which the results would replace: name another "
                "one for them (column=...)"
            )
        results = np.empty(len(batch[self._key]), object)
        for row, (key, latent) in enumerate(zip(batch[self._key], batch[self._latent], strict=True)):
            try:
                results[row] = self._encoded(latent) if self._folder is None else self._written(key, latent)
            except InfGenError as error:
                raise type(error)(f"{str(key)!r}: {error}") from error
        return {name: column for name, column in batch.items() if name != self._latent} | {self._column: results}

    def _encoded(self, latent: Any) -> bytes:
        """The content of a picture's file."""
        with tempfile.TemporaryDirectory(prefix="infgen-rt-") as folder:
            file = Path(folder) / f"picture.{self._ending}"
            self._picture(latent).save(file, **self._saving)
            return file.read_bytes()

    def _written(self, key: str, latent: Any) -> str:
        """The path of a picture's file, which is written if it does not exist."""
        assert self._folder is not None
        file = self._folder / f"{_name(str(key), self._root)}.{self._ending}"
        check_name(file)
        if not file.exists():
            picture = self._picture(latent)
            try:
                file.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise OutputError(
                    f"{file.parent} cannot be a folder of pictures: {reason(error)}; use other keys or another folder"
                ) from error
            try:
                picture.save(file, **self._saving)
            except OutputError:
                # If Ray has lost an actor, it starts the batch again elsewhere. The lost actor may still run, and may
                # have written the file first.
                if not file.exists():
                    raise
        return str(file)

    def _picture(self, latent: Any) -> Picture:
        """The picture of a row's latent. Nothing is decoded yet."""
        normalisation = self._normalisation
        if isinstance(latent, bytes):
            stored = parse_array(latent, "its latent")
            latent, normalisation = stored.array, normalisation or stored.normalisation(self._space)
        return self._decoder.picture(_plain(latent), normalisation=normalisation, **self._planning)


def _name(key: str, root: str | None) -> PurePosixPath:
    """The name of a row's file in the folder, without the ending of the picture.

    Raises:
        OutputError: the key is not a path inside the folder.
    """
    name = PurePosixPath(key)
    if root is not None and name.is_relative_to(root):
        name = name.relative_to(root)
    if name.is_absolute() or ".." in name.parts or not name.parts:
        raise OutputError(
            "the key is not a name inside the folder: pass the start of the keys that is to be left out (root=...), or "
            "another column (key=...)"
        )
    return name


def _plain(latent: Any) -> Any:
    """A latent as one array. Ray gives nested lists as arrays of arrays."""
    if isinstance(latent, np.ndarray) and latent.dtype == object:
        parts = [_plain(part) for part in latent]
        shapes = {part.shape for part in parts}
        if len(shapes) != 1:
            found = ", ".join(str(list(shape)) for shape in sorted(shapes)) or "none"
            raise LatentError(f"its parts are not of one shape ({found}): store each latent as one array")
        return np.stack(parts)
    return np.asarray(latent)


def _assigned() -> dict[str, float]:
    """The resources that Ray has assigned to this actor. Empty outside of an actor."""
    if not ray.is_initialized():
        return {}
    context = ray.get_runtime_context()
    return dict(context.get_assigned_resources()) if context.get_actor_id() else {}
