"""Opens a model and makes pictures with it."""

import logging
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

from infgen_rt.backend.candidates import AUTO, Precision
from infgen_rt.backend.choice import Choice, choose
from infgen_rt.backend.engine import Engine
from infgen_rt.bundle.folder import Bundle
from infgen_rt.bundle.manifest import Manifest
from infgen_rt.common.arguments import FUNCTION, PATH, TEXT, WHOLE
from infgen_rt.common.callers import raise_callers
from infgen_rt.common.cancellation import Cancel, Cancellation
from infgen_rt.common.memory import default_budget, format_bytes, parse_budget
from infgen_rt.common.notices import Notices
from infgen_rt.common.pixels import FloatArray, as_pixels
from infgen_rt.common.progress import Tell
from infgen_rt.common.shortages import Shortages
from infgen_rt.common.threads import checked_threads
from infgen_rt.errors import BackendError, BundleError, DecodeError, LatentError
from infgen_rt.geometry.shapes import Size
from infgen_rt.latent.arrays import Normalisation, as_latent, as_latents, native_size
from infgen_rt.latent.layout import fits
from infgen_rt.latent.numbers import as_float32
from infgen_rt.latent.spaces import LatentSpace, joined, latent_space
from infgen_rt.nodes.context import Contexts
from infgen_rt.nodes.encoding import GivenPicture, encoded_latent
from infgen_rt.nodes.latents import Given
from infgen_rt.picture import Picture
from infgen_rt.plan.encoding import plan_encoding
from infgen_rt.source import Source

_LOG = logging.getLogger(__name__)


def open(
    path: str | Path | None = None,
    backend: str = AUTO,
    *,
    space: str | None = None,
    device: str | None = None,
    precision: Precision = "fast",
    threads: int | None = None,
    memory: str | int | None = None,
    progress: Tell | None = None,
    cancel: Cancel | None = None,
) -> "Decoder":
    """Open a model.

    Args:
        path: a bundle as a folder or a zip. None for the bundle that ships in the package.
        backend: a backend's name, `cuda`, or `auto` for the fastest on this machine. For `auto`, the ways of running
            the model are measured once.
        space: the latent space, or a model that uses it (`sdxl`, `z-image`), if the bundle has several; see
            `infgen_rt.spaces`. None for the first of the bundle. In the package, this is the space of FLUX.2.
        device: the backend's device, such as `cpu`, `cuda:1`, `gpu` or `npu`. None for the fastest. A backend or a
            device that is named is never replaced by another one.
        precision: `fast` for the device's native arithmetic, with at least 45 dB against float32. `exact` for float32
            throughout.
        threads: the number of CPU threads. None for the backend's default.
        memory: the memory that a decode may use, in bytes or as text (`1GiB`). None for 4 GiB, or half of the free
            memory if that is less.
        progress: called while the ways of running the model are measured, before the first and after each. It gets a
            `Progress` whose stage is `measure`. Measuring takes seconds, and is done once, because the results are
            stored.
        cancel: an event, or a function that returns a bool, as for `Picture.save`. Measuring and loading stop once the
            event is set or the function returns True. The results of an incomplete measurement are not stored.

    Returns:
        A decoder. Close it after use, or use it as a context manager.

    Raises:
        BundleError: there is no bundle, it is damaged, or it has no model for the space.
        LatentError: the space is unknown.
        BackendError: the backend, the device, the precision or the number of threads is not possible, or the backend
            cannot run the bundle.
        PlanError: `memory` is not an amount, or less than 1 MB.
        Cancelled: the work was cancelled with `cancel`.

    Examples:
        >>> import infgen_rt
        >>> with infgen_rt.open(memory="1GiB") as decoder:
        ...     decoder.manifest.latent_space
        'flux2'
    """
    PATH.or_none(path=path)
    TEXT.check(backend=backend, precision=precision)
    TEXT.or_none(space=space, device=device)
    FUNCTION.or_none(progress=progress)
    threads = checked_threads(threads)
    budget = parse_budget(memory) if memory is not None else default_budget()
    bundle = open_bundle(path, None if space is None else latent_space(space).name)
    cancellation = Cancellation(cancel)
    with Shortages(BackendError), cancellation.watched():
        cancellation.check()
        candidate, choice = choose(bundle, backend, device, precision, threads, progress)
        try:
            engine = Engine(bundle, candidate, threads, advises=True)
        except BackendError as error:
            raise_callers(error)
            # A device may have gone since it was measured, for example an external GPU.
            candidate, choice = choose(bundle, backend, device, precision, threads, progress, again=True)
            engine = Engine(bundle, candidate, threads, advises=True)
        _LOG.info("opens %s: %s", path or "the model in the package", choice)
        return Decoder(engine, choice, budget, bundle.spaces)


def open_bundle(path: str | Path | None, space: str | None = None) -> Bundle:
    """Open a bundle as `Bundle.open` does. If there is none, but the path is a model's name, the error says so."""
    try:
        return Bundle.open(path, space)
    except BundleError as error:
        if path is None or os.path.lexists(path):
            raise
        with suppress(LatentError):
            name = latent_space(str(path)).name
            raise BundleError(f"{error}; did you mean space={name!r} (--space {name})?") from None
        raise


class Decoder:
    """An opened model, which `open` returns. Several threads may use it.

    After `close`, and in a process that was forked after `open`, the decoder and its pictures raise DecodeError when
    something has to be planned, decoded or written. As a context manager, it is closed when the first block ends.

    Attributes:
        notices: gives the warnings. By default, only the first warning of each cause is given. To get all of them, set
            `notices.repeat`.
        spaces: the latent spaces that the bundle has a model for. The decoder's own is `manifest.latent_space`.

    Examples:
        >>> import infgen_rt
        >>> latent = infgen_rt.load_sample("harbour").latent
        >>> with infgen_rt.open() as decoder:
        ...     native = decoder.native_size(latent)
        ...     picture = decoder.picture(latent, "2x")
        >>> native, picture.size
        (Size(width=960, height=544), Size(width=1920, height=1088))
    """

    def __init__(self, engine: Engine, choice: Choice, budget: int, spaces: Sequence[str] = ()) -> None:
        self._engine = engine
        self.spaces = tuple(spaces)
        self._choice = choice
        self._budget = budget
        self.notices = Notices()

    @property
    def manifest(self) -> Manifest:
        """The description of the model, with its name, licence, bounds and verification."""
        return self._engine.manifest

    @property
    def backend(self) -> Choice:
        """The backend, device and precision, with the reason for the choice. `open` takes `backend.name`."""
        return self._choice

    def native_size(self, latent: Any, *, latent_size: tuple[int, int] | None = None) -> Size:
        """The size of a latent's picture at scale 1, for example for `fit`.

        Args:
            latent: as for `picture`.
            latent_size: as for `picture`.

        Returns:
            Width and height in pixels.

        Raises:
            LatentError: the latent is not usable.
        """
        return native_size(latent, latent_space(self.manifest.latent_space), latent_size=latent_size)

    def picture(
        self,
        latent: Any,
        size: str | float | tuple[int, int] | None = None,
        *,
        stages: Sequence[float] | None = None,
        max_scale: float | None = None,
        tile: int | None = None,
        part: int | None = None,
        normalisation: Normalisation | None = None,
        latent_size: tuple[int, int] | None = None,
    ) -> Picture:
        """Plan a picture. Nothing is decoded yet.

        Args:
            latent: a NumPy array or a torch tensor of floating-point numbers: [C, h, w], patchified [4C, h/2, w/2] or
                packed [tokens, 4C], with or without a batch axis of 1. `pictures` takes larger batches.
            size: (width, height) in pixels; text such as `3840x2160`; a name, such as `4k`; one side, such as `x2160`,
                which keeps the aspect ratio; a factor of the latent's native size, such as `2x` or 2.0. None for the
                native size.
            stages: the scales for iterative extrapolation. The latent is decoded at the first scale. That picture is
                encoded, and decoded at the next scale, and so on. The product of the scales must be the whole scale.
                None for one stage, or for two, the first at scale 2, if the scale is above 5 (1.25 times the largest
                that the model was trained for). If there is too little memory for two, or the model has no encoder,
                there is one, and a warning.
            max_scale: the largest scale of a stage, for iterative extrapolation with as few equal stages as possible.
                `math.inf` gives one stage, which is the fastest. Beyond the largest scale that the model was trained
                for, a stage's picture is enlarged by Lanczos. This is not so if `stages` names its scale.
            tile: the side of the largest tile in pixels. None to let the memory budget decide.
            part: the side in cells of the largest part of the latent that is prepared at once. None for the largest
                that memory allows, which is the fastest for a whole picture. With a small part, such as 32, the first
                region of a large latent's picture is ready sooner, but the whole picture takes longer.
            normalisation: `vae` for the VAE's own latents, such as diffusers' Flux2KleinPipeline returns with
                `output_type="latent"`. `model` for the diffusion model's, such as its Flux2Pipeline returns. None means
                `model`, with a warning if the numbers contradict it or are ambiguous. See `spaces.as_latents`.
            latent_size: the width and height in pixels that were requested from the pipeline. Only for packed latents.

        Returns:
            The picture. Its `plan` says how it will be decoded.

        Raises:
            LatentError: the latent is not usable.
            PlanError: the size, the stages, the tile or the part are not possible, or the memory budget is too small.
            BackendError: a graph that this size needs cannot be loaded.
            BundleError: a file of the bundle is damaged.
            DecodeError: the decoder is closed, or there is too little memory.
        """
        # This check is the first step, because the others use NumPy's matrix products. In a forked child, these start a
        # thread for which PyTorch waits at the end.
        self._engine.check_open()
        self._check_space(latent)
        with Shortages(DecodeError):
            array = as_latent(
                latent, self._space, normalisation=normalisation, latent_size=latent_size, notices=self.notices
            )
            return Picture.of(self._source(array, tile, part), size, stages, max_scale)

    def pictures(
        self,
        latents: Any,
        size: str | float | tuple[int, int] | None = None,
        *,
        stages: Sequence[float] | None = None,
        max_scale: float | None = None,
        tile: int | None = None,
        part: int | None = None,
        normalisation: Normalisation | None = None,
        latent_size: tuple[int, int] | None = None,
    ) -> list[Picture]:
        """Plan a picture of each latent in a batch. Nothing is decoded yet. The errors are those of `picture`.

        Args:
            latents: as for `picture`, with a batch axis of any length: [N, C, h, w], [N, C, 1, h, w],
                [N, 4C, h/2, w/2] or [N, tokens, 4C].
            size: as for `picture`, for each picture.
            stages: as for `picture`.
            max_scale: as for `picture`.
            tile: as for `picture`.
            part: as for `picture`.
            normalisation: as for `picture`.
            latent_size: as for `picture`.

        Returns:
            N pictures, or one for a latent without a batch axis. Each may use the whole memory budget, and keeps a
            part of it while it exists. So decode them one after another, and let each go before the next.

        Examples:
            >>> import infgen_rt
            >>> import numpy as np
            >>> samples = [infgen_rt.load_sample(name) for name in infgen_rt.sample_names()]
            >>> batch = np.stack([sample.latent for sample in samples])
            >>> with infgen_rt.open() as decoder:
            ...     pictures = decoder.pictures(batch, (640, 360))
            ...     while pictures:
            ...         pictures.pop().save(f"{len(pictures)}.png")
        """
        self._engine.check_open()
        self._check_space(latents)
        with Shortages(DecodeError):
            arrays = as_latents(
                latents, self._space, normalisation=normalisation, latent_size=latent_size, notices=self.notices
            )
            return [Picture.of(self._source(array, tile, part), size, stages, max_scale) for array in arrays]

    def encode(self, pixels: Any) -> FloatArray:
        """Encode a picture with the model's encoder, for example to change the picture with a diffusion model.

        Args:
            pixels: a NumPy array or a Pillow image in sRGB: [H, W, 3], uint8, or float32 in [0, 1]. H and W must be
                multiples of 8.

        Returns:
            float32 [C, h, w] in the model's normalisation.

        Raises:
            InputError: these are not the pixels of a picture.
            PlanError: the model has no encoder, the size is not possible, or the memory budget is too small.
            BackendError: the encoder's graph cannot be loaded.
            DecodeError: encoding failed, or the decoder is closed.

        Examples:
            >>> import infgen_rt
            >>> import numpy as np
            >>> with infgen_rt.open() as decoder:
            ...     latent = decoder.encode(np.zeros((64, 96, 3), np.uint8))
            >>> latent.shape
            (32, 8, 12)
        """
        self._engine.check_open()
        picture = as_pixels(pixels)
        size = Size(*picture.shape[1::-1])
        tiles = plan_encoding(size, self.manifest, self._engine.recipe, self._budget)
        with Shortages(DecodeError):
            self._engine.load_encoder()
            given = GivenPicture(picture, self.manifest.patch)
            return encoded_latent(given, tiles, self._engine).read(tiles.tiling.box)

    @property
    def _space(self) -> LatentSpace:
        return latent_space(self.manifest.latent_space)

    def _check_space(self, latent: Any) -> None:
        """Raise LatentError if a latent's shape is not that of this space, but that of another space of the bundle."""
        others = [latent_space(name) for name in self.spaces if name != self.manifest.latent_space]
        if not others:
            return
        shape = list(as_float32(latent).shape)
        fitting = [space.name for space in others if fits(shape, space)]
        if fitting and not fits(shape, self._space):
            last_first = [*shape[:-3], shape[-1], *shape[-3:-1]]
            hint = f"; with its last axis first, it would be one, {last_first}" if fits(last_first, self._space) else ""
            raise LatentError(
                f"shape {shape} is not that of {self._space.name} latents, which this decoder is for, and may be of "
                f"{joined(fitting)}: open the model with space={fitting[0]!r} (--space {fitting[0]}){hint}"
            )

    def _source(self, latent: FloatArray, tile: int | None, part: int | None) -> Source:
        """The source that all pictures of a plain latent [C, h, w] share."""
        WHOLE.or_none(tile=tile, part=part)
        given, native = Given(latent, self._engine), self._space.native_size(latent)
        contexts = Contexts(given, self._engine)
        return Source(contexts, given.size, native, self._engine, self._choice, self._budget, tile, part, self.notices)

    def close(self) -> None:
        """Free the model and the memory of its pictures. The pictures can no longer be read.

        It waits for the graphs that are running. It may be called more than once, and by several threads at once.
        """
        self._engine.close()

    def __repr__(self) -> str:
        model, runs = self.manifest.model, self._choice
        return (
            f"<Decoder of {model.name} {model.version}, {self.manifest.latent_space} latents, on {runs.name} "
            f"{runs.device} in {runs.arithmetic}, {format_bytes(self._budget)}>"
        )

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Decoder cannot be copied or pickled: call infgen_rt.open in each process that needs one")

    def __enter__(self) -> "Decoder":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
