"""Photographs to training batches.

A *view* is a random crop of a photograph together with the latent of its reduced copy. Latents are made once and
cached; target pixels are resampled from the photograph for the scale that a batch asks for, so scales are dense.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageEnhance
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from infgen_export.model import Grid
from infgen_rt.schema import parse
from infgen_training.precision import mixed
from infgen_training.teacher import Teacher

PATCH = 8
_SATURATION = 2.5


@dataclass(frozen=True)
class View:
    """A crop of a photograph, and how far it was reduced before it was encoded.

    Attributes:
        photo: Index into the sorted list of photographs, which drawn pictures follow.
        x: Left edge of the crop in the photograph, pixels.
        y: Top edge.
        reduction: Photograph pixels for one pixel of the encoded picture, 1 or more; scales up to it have true detail.
        cells: Latent rows and columns.
        flip: Whether the crop is mirrored.
        saturation: How far colours lie from grey, over the photograph's.
        channels: Which of the photograph's channels red, green and blue are.
    """

    photo: int
    x: float
    y: float
    reduction: float
    cells: tuple[int, int]
    flip: bool
    saturation: float = 1.0
    channels: tuple[int, int, int] = (0, 1, 2)

    def pixels(
        self, photo: Image.Image, size: tuple[int, int], part: tuple[float, float, float, float]
    ) -> NDArray[np.uint8]:
        """Resamples a part of the view, antialiased.

        Args:
            photo: The photograph.
            size: Pixels (height, width) to make of the part.
            part: Top, left, bottom, right of the part as fractions of the view.
        """
        height, width = (PATCH * n * self.reduction for n in self.cells)
        top, left, bottom, right = part
        if self.flip:
            left, right = 1 - right, 1 - left
        box = (self.x + left * width, self.y + top * height, self.x + right * width, self.y + bottom * height)
        box = (box[0], box[1], min(box[2], photo.width), min(box[3], photo.height))
        image = photo.resize((size[1], size[0]), Image.Resampling.BICUBIC, box=box)
        array = recolour(image, self.saturation, self.channels)
        return array[:, ::-1] if self.flip else array


def recolour(image: Image.Image, saturation: float, channels: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Pixels [H, W, 3] with colours further from grey, then with channels in another order; see ``View``."""
    if saturation != 1:
        image = ImageEnhance.Color(image).enhance(saturation)
    return np.asarray(image)[..., channels]


@dataclass(frozen=True)
class Batch:
    """One step's worth: latents that share one grid of tokens, and the pixels of those tokens.

    Attributes:
        latent: [B, C, h, w] float32.
        grid: Cells of the whole latents, tokens of one tile.
        target: [B, 3, 8 ht, 8 wt] float32 in [0, 1].
    """

    latent: Tensor
    grid: Grid
    target: Tensor

    def pin(self) -> Batch:
        """The same in page-locked memory, from which a GPU copies while the program goes on."""
        return Batch(self.latent.pin_memory(), self.grid, self.target.pin_memory())

    def to(self, device: torch.device) -> Batch:
        """The same on a device, latents in the layout that convolutions like; waits for nothing."""
        # The coordinates too: each of them, copied on its own, would wait for all that the GPU still has to do.
        vectors: dict[str, Any] = {
            name: value.to(device, non_blocking=True)
            for name, value in vars(self.grid).items()
            if isinstance(value, Tensor)
        }
        latent = self.latent.to(device, non_blocking=True).contiguous(memory_format=torch.channels_last)
        return Batch(latent, replace(self.grid, **vectors), self.target.to(device, non_blocking=True))


def load_photos(folder: Path, exclude: Sequence[str] = ()) -> list[Image.Image]:
    """Decodes every photograph of a folder into memory, sorted by name, but for the excluded stems."""
    files = sorted(p for p in folder.iterdir() if p.suffix in {".webp", ".jpg", ".png"} and p.stem not in exclude)
    if not files:
        raise FileNotFoundError(f"no photographs (.webp, .jpg, .png) in {folder}")
    with ThreadPoolExecutor(2) as pool:
        return list(tqdm(pool.map(lambda p: Image.open(p).convert("RGB"), files), total=len(files), desc="photographs"))


def to_tensor(pixels: NDArray[np.uint8]) -> Tensor:
    """[H, W, 3] bytes to [3, H, W] float32 in [0, 1]."""
    return torch.from_numpy(np.array(pixels)).permute(2, 0, 1).float() / 255


def random_view(
    rng: np.random.Generator,
    photos: Sequence[Image.Image],
    cells: tuple[int, int],
    max_reduction: float,
    recoloured: float = 0.0,
) -> View:
    """Draws a view; small reductions and large ones are equally likely on a logarithmic scale.

    A share of ``recoloured`` views has channels in another order and up to ``_SATURATION`` times the saturation.
    """
    index = int(rng.integers(len(photos)))
    photo = photos[index]
    limit = min(max_reduction, photo.height / (PATCH * cells[0]), photo.width / (PATCH * cells[1]))
    reduction = math.exp(rng.uniform(0, math.log(max(limit, 1.0))))
    reduction = limit if rng.random() < 0.3 else min(reduction, limit)
    # At the limit nothing is left on one side, or by rounding less than nothing.
    y, x = (
        rng.uniform(0, max(0.0, side - PATCH * n * reduction))
        for side, n in zip((photo.height, photo.width), cells, strict=True)
    )
    view = View(index, x, y, reduction, cells, bool(rng.random() < 0.5))
    # Nothing more is drawn where none is recoloured: the views of older runs stay what they were.
    if recoloured and rng.random() < recoloured:
        red, green, blue = (int(channel) for channel in rng.permutation(3))
        saturation = math.exp(rng.uniform(0, math.log(_SATURATION)))
        view = replace(view, saturation=saturation, channels=(red, green, blue))
    return view


class LatentCache:
    """Views and their latents, made by the teacher once and kept in a safetensors file."""

    def __init__(self, views: list[View], latents: list[Tensor]) -> None:
        self.views = views
        self.latents = latents
        self.by_cells: dict[tuple[int, int], list[int]] = {}
        for index, view in enumerate(views):
            self.by_cells.setdefault(view.cells, []).append(index)

    @classmethod
    def build(
        cls,
        photos: Sequence[Image.Image],
        teacher: Teacher,
        shapes: Sequence[tuple[int, int]],
        count: int,
        max_reduction: float,
        recoloured: float,
        seed: int,
        device: torch.device,
    ) -> LatentCache:
        """Draws ``count`` views, shapes in turn, and encodes them."""
        rng = np.random.default_rng(seed)
        views = [random_view(rng, photos, shapes[i % len(shapes)], max_reduction, recoloured) for i in range(count)]
        encoder = teacher.encoder.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        latents = []
        for view in tqdm(views, desc="latents"):
            image = to_tensor(
                view.pixels(photos[view.photo], (PATCH * view.cells[0], PATCH * view.cells[1]), (0, 0, 1, 1))
            )
            with torch.inference_mode(), mixed(device):
                latent = encoder(image.unsqueeze(0).to(device, memory_format=torch.channels_last))
            latents.append(latent[0].to("cpu", torch.float16).contiguous())
        return cls(views, latents)

    def save(self, file: Path) -> None:
        """Writes the cache."""
        file.parent.mkdir(parents=True, exist_ok=True)
        tensors = {f"{i:06d}": latent for i, latent in enumerate(self.latents)}
        save_file(tensors, file, {"views": json.dumps([asdict(view) for view in self.views])})

    @classmethod
    def load(cls, file: Path) -> LatentCache:
        """Reads what ``save`` wrote."""
        with safe_open(file, "pt") as stored:
            values = json.loads(stored.metadata()["views"])
            views = [parse(View, value, "view") for value in values]
            return cls(views, [stored.get_tensor(f"{i:06d}") for i in range(len(views))])


class Sampler:
    """Batches by step number: the same step always gives the same batch, so resuming is exact.

    All of it is NumPy and Pillow: a tensor's arithmetic would start as many threads again in each thread that loads.
    """

    def __init__(
        self,
        photos: Sequence[Image.Image],
        cache: LatentCache,
        seed: int,
        scale_range: tuple[float, float],
        tile: int,
        cells: int,
        native_share: float,
        latent_noise: float,
    ) -> None:
        """Prepares to draw.

        Args:
            photos: As the cache was built from.
            cache: Views and latents.
            seed: Of every draw.
            scale_range: Smallest and largest scale.
            tile: Tokens a side of the tile that is decoded at scale 1; grows with the root of the scale.
            cells: Latent cells a batch at scale 1, which sets how many pictures it has.
            native_share: Share of batches at exactly scale 1.
            latent_noise: Largest standard deviation of noise added to latents, which in use are not encoder outputs.
        """
        self.photos, self.cache, self.seed = photos, cache, seed
        self.scale_range, self.tile, self.cells = scale_range, tile, cells
        self.native_share, self.latent_noise = native_share, latent_noise
        self._reductions = {
            cells: np.array([cache.views[i].reduction for i in views]) for cells, views in cache.by_cells.items()
        }

    def batch(self, step: int) -> Batch:
        """Draws the batch of a step."""
        rng = np.random.default_rng((self.seed, step))
        scale, stretch = 1.0, 1.0
        if rng.random() >= self.native_share:
            low, high = (math.log(s) for s in self.scale_range)
            scale, stretch = math.exp(rng.uniform(low, high)), math.exp(rng.normal(0, 0.05))
        cells = self._shape(rng)
        size = (max(8, round(PATCH * cells[0] * scale * stretch)), max(8, round(PATCH * cells[1] * scale / stretch)))
        whole = Grid.whole(cells, size)
        side = round(self.tile * math.sqrt(scale))
        starts, stops = [], []
        for tokens in (len(whole.token_y), len(whole.token_x)):
            extent = min(side, tokens)
            start = int(rng.integers(tokens - extent + 1))
            starts.append(start)
            stops.append(start + extent)
        grid = whole.tile(slice(starts[0], stops[0]), slice(starts[1], stops[1]))
        count = max(1, round(self.cells / (cells[0] * cells[1]) / max(1.0, scale**0.5)))
        indices = self._indices(rng, cells, scale * max(stretch, 1 / stretch), count)
        latent = self._latents(indices)
        latent += rng.normal(0, rng.uniform(0, self.latent_noise), latent.shape).astype(np.float32)
        return Batch(torch.from_numpy(latent), grid, self._targets(indices, size, starts, stops))

    def native(self, batch: int) -> Batch:
        """A batch at exactly scale 1, whole pictures: what the encoder learns from."""
        rng = np.random.default_rng((self.seed, batch, 1))
        cells = self._shape(rng)
        size = (PATCH * cells[0], PATCH * cells[1])
        indices = self._indices(rng, cells, 1.0, max(1, self.cells // (cells[0] * cells[1])))
        target = self._targets(indices, size, (0, 0), cells)
        return Batch(torch.from_numpy(self._latents(indices)), Grid.whole(cells, size), target)

    def _shape(self, rng: np.random.Generator) -> tuple[int, int]:
        """A latent shape, as often as the cache holds views of it."""
        shapes = list(self.cache.by_cells)
        shares = np.array([len(self.cache.by_cells[shape]) for shape in shapes], float)
        return shapes[int(rng.choice(len(shapes), p=shares / shares.sum()))]

    def _indices(self, rng: np.random.Generator, cells: tuple[int, int], scale: float, count: int) -> list[int]:
        """Views of a shape whose photographs have true detail at a scale."""
        reductions = self._reductions[cells]
        able = np.flatnonzero(reductions >= scale * 0.95)
        if not len(able):  # no photograph is large enough: take the most detailed ones
            able = np.argsort(-reductions, kind="stable")[:count]
        views = self.cache.by_cells[cells]
        return [views[able[k]] for k in rng.choice(len(able), count, replace=len(able) < count)]

    def _latents(self, indices: Sequence[int]) -> NDArray[np.float32]:
        return np.stack([self.cache.latents[i].numpy() for i in indices]).astype(np.float32)

    def _targets(
        self, indices: Sequence[int], size: tuple[int, int], starts: Sequence[int], stops: Sequence[int]
    ) -> Tensor:
        """Pixels [B, 3, H, W] of the tokens [starts, stops) of some views."""
        height, width = (PATCH * (stop - start) for start, stop in zip(starts, stops, strict=True))
        targets = np.empty((len(indices), 3, height, width), np.float32)
        for index, target in zip(indices, targets, strict=True):
            pixels = self._pixels(self.cache.views[index], size, starts, stops)
            np.divide(pixels.transpose(2, 0, 1), 255, out=target, dtype=np.float32)
        return torch.from_numpy(targets)

    def _pixels(
        self, view: View, size: tuple[int, int], starts: Sequence[int], stops: Sequence[int]
    ) -> NDArray[np.uint8]:
        """Pixels [H, W, 3] of one view, resampled with a margin so that edges are filtered like the inside."""
        slices, sides, part = [], [], []
        for axis in range(2):
            first, last = PATCH * starts[axis], min(PATCH * stops[axis], size[axis])
            low, high = max(first - PATCH, 0), min(last + PATCH, size[axis])
            part.append((low / size[axis], high / size[axis]))
            sides.append(high - low)
            slices.append(slice(first - low, last - low))
        (top, bottom), (left, right) = part
        pixels = view.pixels(self.photos[view.photo], (sides[0], sides[1]), (top, left, bottom, right))
        pixels = pixels[slices[0], slices[1]]
        missing = [PATCH * (stops[axis] - starts[axis]) - pixels.shape[axis] for axis in range(2)]
        return np.pad(pixels, ((0, missing[0]), (0, missing[1]), (0, 0)), mode="edge") if any(missing) else pixels
