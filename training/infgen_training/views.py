"""Makes training data for decoders: ``python -m infgen_training.views --photos DIR --teacher FILE -o SHARDS``.

A *view* is a square of a photograph that was reduced and then encoded by the teacher. Its latent has at most 32x32
cells. Besides the latent, a view holds up to three pictures to learn from:

- the reduced picture, which is the target at scale 1,
- the same square of the photograph at four times that size, if the photograph has enough pixels,
- a *sharp* picture, also at four times the size, which a strong enlarger made from the teacher's decode of the latent.

The enlarger sees nothing but the latent's decode. The latent therefore determines the detail of the sharp picture, and
a decoder can learn this detail with L1, which would average away other detail. The colours of the sharp picture are
corrected to those of the reduced picture.

With fonts, a view shows drawn letters, lines and shapes instead of a photograph. The drawing is then also the sharp
picture.

Views are packed into files called shards. Reading shards needs neither the photographs nor the teacher or the enlarger.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn
from tqdm import tqdm

from infgen_rt.common.pixels import to_bytes
from infgen_rt.errors import InputError, one_line
from infgen_training.config import FACTOR, HELD_OUT, PATCH
from infgen_training.drawn import drawing, font_files
from infgen_training.options import COUNT, FILE, FOLDER, MINUTES, SEED, device_option
from infgen_training.photos import open_photo, photo_files, photo_size
from infgen_training.precision import mixed
from infgen_training.teacher import AUTOENCODER, AUTOENCODER_HELP, Teacher, load_function

Pixels = NDArray[np.uint8]
CELLS = 32
"""Side of a view in cells, if its photograph has enough pixels."""
MEGABYTES = 56.0
"""Default for the largest size of a shard's file, in megabytes."""
_LARGEST = 1.6
"""Maximum pixels of a photograph per pixel, along one axis, of a view's larger pictures. It limits lost detail."""
_QUALITY = 92
_KERNELS = (Image.Resampling.BICUBIC, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS, Image.Resampling.BILINEAR)
"""Filters to draw from, with which a photograph is reduced to the picture to encode. Some are softer than others."""
_BLOCK = 16
"""Side, in pixels of the encoded picture, of the blocks whose colours are corrected in a sharp picture."""
_ROUNDS = 3
"""Number of corrections, each of which makes the difference of the colours smaller."""


@dataclass(frozen=True)
class View:
    """A square of a photograph.

    Attributes:
        latent: The latent, float16 [C, n, n].
        small: The picture that was encoded, uint8 [8n, 8n, 3].
        photo: The square of the photograph, uint8 [32n, 32n, 3]. None if the photograph has too few pixels.
        sharp: The teacher's decode, enlarged and corrected, uint8 [32n, 32n, 3]. None if there was no enlarger.
        guide: The latent of the same picture in the space of a finished model, float16 [G, n, n]. It is used to train
            the trunk of another space, and is not stored in shards.
    """

    latent: Tensor
    small: Pixels
    photo: Pixels | None
    sharp: Pixels | None
    guide: Tensor | None = None

    @property
    def cells(self) -> int:
        """Side of the latent in cells."""
        return self.latent.shape[-1]


@dataclass(frozen=True)
class Square:
    """The place of a view in its photograph.

    Attributes:
        cells: Side in cells.
        reduction: Number of the photograph's pixels per pixel of the encoded picture, along one axis.
        x: Left edge in pixels of the photograph.
        y: Top edge in pixels of the photograph.
        flip: Whether the view is mirrored horizontally.
        kernel: The filter that reduces the square to the picture that is encoded.
    """

    cells: int
    reduction: float
    x: float
    y: float
    flip: bool
    kernel: Image.Resampling = Image.Resampling.BICUBIC

    @classmethod
    def draw(cls, size: tuple[int, int], deep: bool, rng: np.random.Generator) -> Square:
        """Draws a random square.

        Args:
            size: Width and height of the photograph in pixels.
            deep: Whether the square must have enough pixels for a picture at four times the size of the encoded one.
            rng: The random generator.
        """
        side = min(size)
        least = float(FACTOR) if deep else 1.2
        cells = max(1, min(CELLS, int(side / (PATCH * least))))
        most = max(least, min(_LARGEST * least, side / (PATCH * cells)) if deep else min(3.2, side / (PATCH * cells)))
        reduction = min(rng.uniform(least, most), side / (PATCH * cells))
        x, y = (rng.uniform(0, max(0.0, each - PATCH * cells * reduction)) for each in size)
        return cls(cells, reduction, x, y, bool(rng.random() < 0.5), _KERNELS[rng.integers(len(_KERNELS))])

    def of(self, photo: Image.Image, factor: int = 1) -> Pixels:
        """Cuts the square from the photograph and resamples it.

        Args:
            photo: The photograph, in RGB.
            factor: Size of the result relative to the picture that is encoded.

        Returns:
            The pixels, uint8 [8 * cells * factor, 8 * cells * factor, 3].
        """
        side = PATCH * self.cells
        length = side * self.reduction
        box = (self.x, self.y, min(self.x + length, photo.width), min(self.y + length, photo.height))
        kernel = self.kernel if factor == 1 else Image.Resampling.LANCZOS
        array = np.asarray(photo.resize((factor * side, factor * side), kernel, box))
        return np.ascontiguousarray(array[:, ::-1] if self.flip else array)


def to_tensor(pixels: Pixels) -> Tensor:
    """Converts uint8 [..., H, W, 3] to float32 [..., 3, H, W] in [0, 1]."""
    return torch.from_numpy(np.array(pixels)).movedim(-1, -3).float() / 255


def to_pixels(image: Tensor) -> Pixels:
    """Converts an image [1, 3, H, W] to uint8 [H, W, 3]. Values are clamped and rounded as in the runtime."""
    return to_bytes(image[0].float().cpu().numpy())


def corrected(large: Tensor, small: Tensor) -> Tensor:
    """Corrects the colours of large pictures: blocks of 16x16 small pixels get the means that the small picture has.

    An enlarger shifts colours slightly. Smaller blocks are not corrected. The small picture has detail that the
    enlarger did not see, and an edge into which this detail is forced gets an echo.

    A small difference may remain, because the result is clamped to [0, 1].

    Args:
        large: Large pictures, [B, 3, k * H, k * W] in [0, 1].
        small: Small pictures, [B, 3, H, W] in [0, 1].
    """
    blocks = (max(1, small.shape[-2] // _BLOCK), max(1, small.shape[-1] // _BLOCK))
    wanted = F.adaptive_avg_pool2d(small, blocks)
    for _ in range(_ROUNDS):
        missing = wanted - F.adaptive_avg_pool2d(large, blocks)
        large = (large + F.interpolate(missing, size=large.shape[-2:], mode="bicubic")).clamp(0, 1)
    return large


@torch.inference_mode()
def make_view(
    photo: Image.Image,
    teacher: Teacher,
    enlarge: nn.Module | None,
    device: torch.device,
    rng: np.random.Generator,
    fonts: Sequence[Path] = (),
) -> View:
    """Draws a random view of a photograph and encodes it.

    Args:
        photo: The photograph, in RGB, with at least 32 pixels per side.
        teacher: The autoencoder, on the device.
        enlarge: A network on the device that enlarges pictures [B, 3, H, W] in [0, 1] four times. It makes the sharp
            picture from the teacher's decode. None for a view without a sharp picture.
        device: Device to compute on.
        rng: The random generator.
        fonts: Files of fonts, for a view of a drawing of the photograph's size. It needs no enlarger. None by default.
    """
    # A third of the views with a sharp picture may show a larger part of the photograph, even if this part has too few
    # pixels for a picture at four times the size.
    square = Square.draw(photo.size, enlarge is None or rng.random() < 0.67, rng)
    large = square.of(photo, FACTOR) if square.reduction >= FACTOR else None
    small, sharp = square.of(photo), None
    if fonts and large is not None:
        drawn = drawing((large.shape[1], large.shape[0]), FACTOR, fonts, rng)
        small = np.asarray(drawn.resize((small.shape[1], small.shape[0]), square.kernel))
        large = sharp = np.asarray(drawn)
    truth = to_tensor(small)[None].to(device)
    latent = teacher.encode(truth)
    if enlarge is not None:
        sharp = sharp_picture(latent, truth, teacher, enlarge, device)
    return View(latent[0].half().cpu(), small, large, sharp)


def sharp_picture(latent: Tensor, truth: Tensor, teacher: Teacher, enlarge: nn.Module, device: torch.device) -> Pixels:
    """Makes the sharp picture of a latent, uint8 [32h, 32w, 3].

    Args:
        latent: [1, C, h, w], on the device.
        truth: The picture that was encoded, [1, 3, 8h, 8w] in [0, 1], on the device. It gives the colours.
        teacher: As for ``make_view``.
        enlarge: As for ``make_view``.
        device: As for ``make_view``.
    """
    decoded = teacher.decode(latent).contiguous(memory_format=torch.channels_last)
    with mixed(device):
        enlarged = enlarge(decoded)
    return np.ascontiguousarray(to_pixels(corrected(enlarged.float().clamp(0, 1), truth)))


def make_views(
    files: Sequence[Path],
    count: int,
    teacher: Teacher,
    enlarge: nn.Module | None,
    device: torch.device,
    seed: int,
    fonts: Sequence[Path] = (),
) -> Iterator[View]:
    """Draws views of photographs in random order. No photograph is used again before all others were used as often.

    Args:
        files: Files of the photographs.
        count: Number of views.
        teacher: As for ``make_view``.
        enlarge: As for ``make_view``.
        device: As for ``make_view``.
        seed: Seed of the random generator.
        fonts: As for ``make_view``.

    Raises:
        InputError: A photograph is too small for a view of one cell.
    """
    for file in files:
        width, height = photo_size(file)
        if min(width, height) < FACTOR * PATCH:
            raise InputError(f"{file} is too small at {width}x{height} pixels: {FACTOR * PATCH} a side are needed")
    rng = np.random.default_rng(seed)
    order: list[Path] = []
    for _ in range(count):
        order = order or [files[index] for index in rng.permutation(len(files))]
        yield make_view(open_photo(order.pop()), teacher, enlarge, device, rng, fonts)


def save_shards(
    folder: Path,
    views: Iterable[View],
    prefix: str,
    again: Callable[[], bool] = lambda: True,
    megabytes: float = MEGABYTES,
) -> int:
    """Packs views into files of at most a certain size. The pictures are compressed as WebP.

    Args:
        folder: Folder for the files. It is created if it does not exist.
        views: The views to pack.
        prefix: Start of the file names, which are ``PREFIX-000.safetensors`` and so on.
        again: Function that is called after every view and returns whether to go on.
        megabytes: The largest size of a file. A single view may be larger.

    Returns:
        The number of views that were packed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Tensor] = {}
    count = shard = size = 0

    def write() -> None:
        nonlocal shard, size
        if tensors:
            (folder / f"{prefix}-{shard:03d}.safetensors").write_bytes(save(tensors))
            tensors.clear()
            shard, size = shard + 1, 0

    for view in views:
        key = f"{count:06d}"
        packed = {f"{key}/latent": view.latent}
        for name, lossless in (("small", True), ("photo", False), ("sharp", False)):
            pixels = getattr(view, name)
            if pixels is not None:
                packed[f"{key}/{name}"] = _packed(pixels, lossless)
        # A file's header has about 100 bytes for each tensor.
        more = sum(value.numel() * value.element_size() + 100 for value in packed.values())
        if size + more > 1e6 * megabytes:
            write()
        tensors |= packed
        size += more
        count += 1
        if not again():
            break
    write()
    return count


def within(minutes: float | None) -> Callable[[], bool]:
    """Makes the function ``again`` of ``save_shards`` for a time limit that begins now. None means no limit."""
    start = time.monotonic()
    return lambda: minutes is None or time.monotonic() - start < 60 * minutes


def load_shards(folder: Path) -> list[View]:
    """Reads all shards of a folder into memory.

    Raises:
        FileNotFoundError: There are no shards.
        InputError: A shard is damaged.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"no shards (*.safetensors) in {folder}: python -m infgen_training.views makes them")
    views: list[View] = []
    with ThreadPoolExecutor() as pool:
        for file in tqdm(files, desc="shards", disable=None):
            try:
                tensors = load_file(file)
                keys = sorted({name.partition("/")[0] for name in tensors})
                views += pool.map(lambda key, found=tensors: _view(found, key), keys)
            except (SafetensorError, OSError, SyntaxError, ValueError, KeyError) as error:
                raise InputError(
                    f"{file} is damaged or no shard of views ({one_line(error)}): remove it, or make the shards again "
                    "with python -m infgen_training.views"
                ) from error
    return views


def _view(tensors: dict[str, Tensor], key: str) -> View:
    small, photo, sharp = (
        None if (packed := tensors.get(f"{key}/{name}")) is None else _unpacked(packed)
        for name in ("small", "photo", "sharp")
    )
    if small is None:
        raise ValueError(f"view {key} has no picture")
    return View(tensors[f"{key}/latent"], small, photo, sharp)


def _packed(pixels: Pixels, lossless: bool) -> Tensor:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "WEBP", lossless=lossless, quality=_QUALITY if not lossless else 50, method=2)
    return torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8)


def _unpacked(packed: Tensor) -> Pixels:
    return np.asarray(Image.open(io.BytesIO(packed.numpy().tobytes())).convert("RGB"))


FILE_MEGABYTES = click.option(
    "--megabytes", default=MEGABYTES, show_default=True, help="Largest size of a shard's file, in megabytes."
)
"""The command-line option for the size of the files of shards."""


@click.command()
@click.option("--photos", type=FOLDER, required=True)
@click.option("--teacher", type=AUTOENCODER, required=True, help=AUTOENCODER_HELP)
@click.option("--enlarger", type=FILE, help="Python file that loads a network which enlarges 4 times.")
@click.option("--function", help="Name of the function in that file.  [default: load_x4plus]")
@click.option(
    "--fonts",
    type=FOLDER,
    help="Folder of fonts. Draws letters, lines and shapes in place of the photographs.",
)
@click.option("--count", type=COUNT, default=400, show_default=True, help="Number of views.")
@click.option("--minutes", type=MINUTES, help="Stops after this time, and keeps the views made so far.")
@click.option("--exclude", multiple=True, default=HELD_OUT, show_default=True, help="Photographs to leave out.")
@click.option("--seed", type=SEED, default=0, show_default=True)
@FILE_MEGABYTES
@device_option
@click.option("-o", "--output", type=click.Path(file_okay=False, path_type=Path), required=True)
def main(
    photos: Path, teacher: Path, enlarger: Path | None, function: str | None, fonts: Path | None, count: int,
    minutes: float | None, exclude: tuple[str, ...], seed: int, megabytes: float, device: str, output: Path,
) -> None:  # fmt: skip
    """Makes views of photographs and packs them into shards.

    With an enlarger, the views have sharp pictures, but each takes seconds on a CPU. Views without sharp pictures are
    made much faster, so they can show many more photographs. Views with drawn letters and shapes are fast to make too.
    Make some views of each kind.
    """
    if enlarger is not None and fonts is not None:
        raise click.UsageError("give --enlarger or --fonts, not both: a drawn picture is sharp already")
    if enlarger is None and function is not None:
        raise click.UsageError("--function is the name of a function in the file of --enlarger: give both, or neither")
    where, again = torch.device(device), within(minutes)
    try:
        files = photo_files(photos, exclude)
        enlarge = load_function(enlarger, function or "load_x4plus")() if enlarger else None
        if enlarge is not None:
            enlarge = enlarge.to(where).to(memory_format=torch.channels_last)
        found = font_files(fonts) if fonts else ()
        prefix = f"{'sharp' if enlarger else 'drawn' if fonts else 'photo'}-{seed}"
        if any(output.glob(f"{prefix}-*.safetensors")):
            raise InputError(f"{output} has shards named {prefix}-*: choose another --seed or --output, or remove them")
        made = make_views(files, count, Teacher.load(teacher).to(where), enlarge, where, seed, found)
        known = tqdm(made, total=count, desc=f"{prefix} views")
        done = save_shards(output, known, prefix, again, megabytes)
    except (InputError, FileNotFoundError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"{done} views in {output}")


if __name__ == "__main__":
    main()
