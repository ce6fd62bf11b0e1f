"""A picture: the pixels of a latent at one size. They are decoded where and when they are needed."""

import logging
from collections.abc import Iterator, Sequence
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, overload

import numpy as np
import numpy.typing as npt

from infgen_rt.common.arguments import FUNCTION, NUMBER, PATH, PLACE, WHOLE
from infgen_rt.common.cancellation import Cancel, Cancellation
from infgen_rt.common.pixels import Bits, ByteArray, FloatArray
from infgen_rt.common.progress import Tell
from infgen_rt.common.shortages import Shortages
from infgen_rt.errors import DecodeError
from infgen_rt.geometry.levels import Level, levels_of
from infgen_rt.geometry.shapes import Box, Size, parse_box
from infgen_rt.plan.plan import Plan
from infgen_rt.reading import pixel_type, preview_sizes, read_into, read_tiles, reduced
from infgen_rt.saving import layers_of, memory_to_save, plan_to_save
from infgen_rt.source import Source, Stage
from infgen_rt.writers import Format, Metadata, TileFormat, appearing, check_output

if TYPE_CHECKING:
    from PIL.Image import Image

_LOG = logging.getLogger(__name__)


class Picture:
    """A picture, which `Decoder.picture` returns. Nothing is decoded until it is requested. Several threads may use it.

    NumPy accepts it directly: `np.asarray(picture)` is uint8 [H, W, 3]. `image()` is a Pillow image.

    Examples:
        >>> import infgen_rt
        >>> latent = infgen_rt.load_sample("harbour").latent
        >>> with infgen_rt.open() as decoder:
        ...     picture = decoder.picture(latent, (640, 360))
        ...     region = picture.read((0, 0, 64, 32))
        ...     picture.save("harbour.jpg", quality=90, metadata={"Author": "A. Painter"})
        >>> region.shape, picture.size
        ((32, 64, 3), Size(width=640, height=360))
    """

    def __init__(self, source: Source, plan: Plan, stage: Stage) -> None:
        self._source, self._plan, self._stage = source, plan, stage

    @classmethod
    def of(
        cls,
        source: Source,
        size: str | float | tuple[int, int] | None,
        stages: Sequence[float] | None = None,
        max_scale: float | None = None,
        warns: bool = True,
    ) -> "Picture":
        """Plan a picture of a latent. The arguments and the errors are those of `Source.picture`."""
        NUMBER.or_none(max_scale=max_scale)
        plan, stage = source.picture(size, stages, max_scale, warns)
        _LOG.info("planned: %s", plan)
        return cls(source, plan, stage)

    @property
    def size(self) -> Size:
        """Width and height in pixels."""
        return self._stage.tiles.size

    @property
    def levels(self) -> tuple[Level, ...]:
        """The sizes for a viewer, from a single tile up to the picture's own. `viewing.Pyramid` reads their tiles."""
        return levels_of(self.size)

    @property
    def plan(self) -> Plan:
        """The plan for decoding it: stages, tiles, memory, backend."""
        return self._plan

    @overload
    def read(
        self,
        region: tuple[int, int, int, int] | None = None,
        dtype: type[np.uint8] = np.uint8,
        *,
        out: ByteArray | None = None,
        progress: Tell | None = None,
        cancel: Cancel | None = None,
    ) -> ByteArray: ...

    @overload
    def read(
        self,
        region: tuple[int, int, int, int] | None = None,
        *,
        dtype: type[np.float32],
        out: FloatArray | None = None,
        progress: Tell | None = None,
        cancel: Cancel | None = None,
    ) -> FloatArray: ...

    def read(
        self,
        region: tuple[int, int, int, int] | None = None,
        dtype: type[np.uint8] | type[np.float32] = np.uint8,
        *,
        out: ByteArray | FloatArray | None = None,
        progress: Tell | None = None,
        cancel: Cancel | None = None,
    ) -> ByteArray | FloatArray:
        """Decode a region. Its pixels do not depend on the tiles in which it is decoded.

        Args:
            region: (x, y, width, height) in pixels. None for the whole picture.
            dtype: `numpy.uint8`, or `numpy.float32` for values in [0, 1] that are not rounded.
            out: an array [height, width, 3] of this type to write to, with any strides. For example, if `frame` is a
                BGRA picture, uint8 [height, width, 4], `out=frame[:, :, 2::-1]` writes its first three channels.
            progress: called after each step, as for `save`.
            cancel: as for `save`.

        Returns:
            The pixels in sRGB, `dtype` [height, width, 3]. This is `out` if it is given.

        Raises:
            TypeError: `dtype` is another type.
            PlanError: the region is not inside the picture, or `out` has another shape or type.
            BackendError: a graph, which is loaded when it is first needed, cannot be loaded.
            DecodeError: decoding failed, or the decoder is closed.
            Cancelled: the work was cancelled with `cancel`.
        """
        FUNCTION.or_none(progress=progress)
        kind = pixel_type(dtype)
        return read_into(out, self._stage, self._plan, self._box(region), kind, progress, Cancellation(cancel))

    @overload
    def tiles(
        self,
        start: tuple[int, int] | None = None,
        *,
        region: tuple[int, int, int, int] | None = None,
        dtype: type[np.uint8] = np.uint8,
        cancel: Cancel | None = None,
    ) -> Iterator[tuple[Box, ByteArray]]: ...

    @overload
    def tiles(
        self,
        start: tuple[int, int] | None = None,
        *,
        region: tuple[int, int, int, int] | None = None,
        dtype: type[np.float32],
        cancel: Cancel | None = None,
    ) -> Iterator[tuple[Box, FloatArray]]: ...

    def tiles(
        self,
        start: tuple[int, int] | None = None,
        *,
        region: tuple[int, int, int, int] | None = None,
        dtype: type[np.uint8] | type[np.float32] = np.uint8,
        cancel: Cancel | None = None,
    ) -> Iterator[tuple[Box, ByteArray]] | Iterator[tuple[Box, FloatArray]]:
        """Decode tile by tile, for a window that shows each tile as soon as it is ready.

        Args:
            start: the pixel (x, y) around which decoding starts. The nearest tiles come first. None for the middle of
                the region.
            region: as for `read`.
            dtype: as for `read`.
            cancel: as for `save`.

        Returns:
            An iterator over pairs: the box of a tile in pixels, and its pixels, `dtype` [height, width, 3]. One thread
            at a time may use it. After its end, or an error, it has no further tiles.

        Raises:
            TypeError: `dtype` is another type.
            PlanError: the region is not inside the picture.
            BackendError: a graph, which is loaded when it is first needed, cannot be loaded.
            DecodeError: decoding failed, or the decoder is closed. The iterator raises this and the next one.
            Cancelled: the work was cancelled with `cancel`.
        """
        PLACE.or_none(start=start)
        return read_tiles(self._stage, start, self._box(region), pixel_type(dtype), Cancellation(cancel))

    def at(self, size: str | float | tuple[int, int]) -> "Picture":
        """The picture of the same latent at another size, in one stage (`max_scale=math.inf`).

        Both pictures share the work on the latent.

        Args:
            size: as for `Decoder.picture`.

        Raises:
            PlanError: the size is not possible, or the memory budget is too small.
            BackendError: the graph that this size needs cannot be loaded.
            DecodeError: the decoder is closed.
        """
        return Picture.of(self._source, size, max_scale=inf)

    def resized(self, size: Size) -> "Picture":
        """As `at`, without warnings. For a size that the caller did not choose."""
        return Picture.of(self._source, size, max_scale=inf, warns=False)

    def without_tiles(self) -> "Picture":
        """The same picture as another object, which keeps no tiles. It shares all work before the tiles."""
        stage = self._stage
        stage = Stage.of(stage.contexts, stage.plan, stage.engine, workers=self._plan.workers)
        return Picture(self._source, self._plan, stage)

    def keep(self, capacity: int) -> None:
        """Change how many bytes of decoded tiles are kept, for example to 0 in a program that keeps pixels itself.

        Args:
            capacity: the maximum number of bytes. It is `plan.cache` at first, and again after `save`.
        """
        WHOLE.check(capacity=capacity)
        self._stage.tiles.keep(capacity)

    def preview(self, longest: int = 512, *, cancel: Cancel | None = None) -> ByteArray:
        """A small version of the whole picture, which a window can show first.

        It is reduced from the smallest picture that the model can decode, which is the latent's own size for the models
        in the package. Only a band of that picture is in memory at a time.

        Args:
            longest: the maximum length of its longer side in pixels.
            cancel: as for `read`.

        Returns:
            uint8 [height, width, 3], with this picture's aspect ratio.

        Raises:
            PlanError: `longest` is below 1.
            BackendError: a graph, which is loaded when it is first needed, cannot be loaded.
            DecodeError: decoding failed, or the decoder is closed.
            Cancelled: the work was cancelled with `cancel`.
        """
        WHOLE.check(longest=longest)
        size, decoded = preview_sizes(longest, self.size, self._plan.stages[0].grid, self._stage.least_scale)
        picture = self.resized(decoded)
        if decoded == size:
            return picture.read(cancel=cancel)
        return reduced(lambda box: picture.read(box, cancel=cancel), decoded, size)

    def image(self) -> "Image":
        """The whole picture as a Pillow image. The errors are those of `read`."""
        from PIL import Image

        return Image.fromarray(self.read())

    def __repr__(self) -> str:
        native, runs = self._source.native, self._source.runs
        return (
            f"<Picture {self.size} of a latent of {self._source.cells} cells ({native}), on {runs.name} {runs.device}>"
        )

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a Picture cannot be copied or pickled: pass its latent and size and make it there, or pass read()"
        )

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[Any]:
        """The whole picture, uint8 [H, W, 3], converted to `dtype` if it is given."""
        if copy is False:
            raise ValueError("a picture is decoded into a new array: it cannot be an array without a copy")
        return self.read().astype(dtype or np.uint8, copy=False)

    def save(
        self,
        path: str | Path,
        *,
        region: tuple[int, int, int, int] | None = None,
        bits: Bits = 8,
        tile_format: TileFormat | None = None,
        quality: int | None = None,
        lossless: bool = False,
        metadata: Metadata | None = None,
        force: bool = False,
        progress: Tell | None = None,
        cancel: Cancel | None = None,
    ) -> None:
        """Decode into a file. It is tagged as sRGB, and appears under its name only when it is complete.

        .png, .tif and .dzi are written while the picture is decoded, so memory does not grow with the picture. A .tif
        is tiled, and a BigTIFF if it may be larger than 4 GiB. A .dzi is a Deep Zoom pyramid, with its tiles in the
        folder NAME_files next to it. Its levels at scales that the model was trained for are decoded separately.
        Smaller levels, and all levels of a region, are reduced from a larger one.

        Args:
            path: the file. Its ending determines the format: .png, .jpg, .webp, .avif, .tif or .dzi.
            region: (x, y, width, height) in pixels, to write only this part of the picture.
            bits: the bits per channel. 16 is only for .png and .tif.
            tile_format: the format of the tiles of a .dzi, `jpg` or `png`. None for `jpg`.
            quality: the quality of .jpg, .webp, .avif and jpg tiles, from 1 to 100. None for 95, or 90 for .avif.
            lossless: whether to keep every level exactly. .png and .tif are always lossless. It is an error for .jpg
                and .avif.
            metadata: text to store in the file, such as {"prompt": "..."}, where ComfyUI reads it. Keys have 1 to 79
                Latin-1 characters and no colon. All text together has at most 4 MiB, or 64 kB for .jpg.
            force: whether to replace an existing file. The new file has the same mode. If anything fails, the old file
                is unchanged.
            progress: called with a `Progress` after each step.
            cancel: an event, or a function that returns a bool and is called from several threads. The work stops once
                the event is set or the function returns True. A running graph is interrupted if its backend supports
                that.

        Raises:
            OutputError: the file cannot be written. In most cases, this is raised before anything is decoded.
            PlanError: the region is not inside the picture.
            BackendError: a graph, which is loaded when it is first needed, cannot be loaded.
            DecodeError: decoding failed, or the decoder is closed.
            WriteError: writing failed.
            Cancelled: the work was cancelled with `cancel`. As after any error, no new file is left.
        """
        PATH.check(path=path)
        FUNCTION.or_none(progress=progress)
        box, path = self._box(region), Path(path)
        form = self.check_save(
            path,
            region=box,
            bits=bits,
            tile_format=tile_format,
            quality=quality,
            lossless=lossless,
            metadata=metadata,
            force=force,
        )
        _LOG.info("writes %s as %s, %s", path, form.name, box.size)
        cancellation = Cancellation(cancel)
        picture = self.for_saving(form, box.size, bits)
        if picture is not self:
            self._stage.tiles.keep(0)
        layers, counter = layers_of(picture._stage, picture._plan, form, box, bits, progress, cancellation)
        picture._stage.tiles.keep(picture.memory_to_save(form, box.size, bits)[1])
        try:
            writing = appearing(path, form, force, confirm=cancellation.check)
            with Shortages(DecodeError), cancellation.watched(), writing as partial:
                cancellation.check()
                form.write(partial, layers)
            counter.step("encode")
            _LOG.info("wrote %s", path)
        finally:
            self._stage.tiles.keep(self._plan.cache)

    def check_save(
        self,
        path: str | Path,
        *,
        region: tuple[int, int, int, int] | None = None,
        bits: Bits = 8,
        tile_format: TileFormat | None = None,
        quality: int | None = None,
        lossless: bool = False,
        metadata: Metadata | None = None,
        force: bool = False,
    ) -> Format:
        """Check whether `save` could start. The arguments are those of `save`.

        Returns:
            The format that would be written.

        Raises:
            OutputError: the file cannot be written.
            PlanError: the region is not inside the picture.
        """
        PATH.check(path=path)
        size = self._box(region).size
        form = check_output(Path(path), size, force, bits, tile_format, quality, lossless, metadata)
        plan_to_save(self._source, self._plan, form, size, bits)
        return form

    def _box(self, region: tuple[int, int, int, int] | None) -> Box:
        return self.size.box if region is None else parse_box(region, self.size)

    def parts(self, box: Box) -> Iterator[Box]:
        """The parts in which a box of pixels is decoded; see `geometry.pictures.PictureTiles.parts`."""
        return self._stage.plan.parts(box)

    def memory_to_save(self, form: Format, size: Size, bits: Bits) -> tuple[int, int]:
        """The peak memory of decoding and writing a part of the picture; see `saving.memory_to_save`."""
        return memory_to_save(self._plan, form, size, bits)

    def for_saving(self, form: Format, size: Size, bits: Bits) -> "Picture":
        """This picture, or the same one with smaller tiles. OutputError if the budget is too small even for those."""
        plan = plan_to_save(self._source, self._plan, form, size, bits)
        return self if plan is self._plan else Picture(self._source, plan, self._source.linked(plan))
