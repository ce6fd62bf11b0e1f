"""Pictures drawn at random: shapes, lines, letters and pieces of photographs that hide one another.

A few hundred photographs have few colours, and fewer large areas of one colour, sharp edges or letters. Shapes of all
sizes over one another ("dead leaves": Lee, Mumford and Huang, IJCV 2001) have the statistics of edges in photographs,
and restoration networks learn from them nearly what they learn from photographs (Achddou, Gousseau and Ladjal, SSVM
2021).
"""

from __future__ import annotations

import math
import string
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw, ImageFont
from tqdm import tqdm

SIZE = (1280, 1280)
_OVERSAMPLING = 2
"""Drawn so much larger and then reduced, for soft edges."""
_SMALLEST = 4.0
"""Radius of the smallest shape, pixels of what is drawn."""
_JITTER = 12.0
"""Standard deviation of a shape's colour around the one of its picture's palette."""


def draw_pictures(count: int, seed: int, photos: Sequence[Image.Image]) -> list[Image.Image]:
    """``count`` pictures of ``SIZE``, always the same for a seed and the same photographs."""
    with ThreadPoolExecutor(2) as pool:
        drawn = pool.map(lambda index: draw_picture(np.random.default_rng((seed, index)), photos), range(count))
        return list(tqdm(drawn, total=count, desc="drawn"))


def draw_picture(rng: np.random.Generator, photos: Sequence[Image.Image], size: tuple[int, int] = SIZE) -> Image.Image:
    """One picture.

    Args:
        rng: Every draw is from it.
        photos: A part of the shapes is filled with pieces of them; none if empty.
        size: Width and height, pixels.
    """
    width, height = (_OVERSAMPLING * side for side in size)
    palette = rng.uniform(0, 255, (int(rng.integers(3, 13)), 3))
    picture = _fill(rng, (width, height), palette, ())
    octaves = max(0.0, math.log(max(width, height) / 2 / _SMALLEST))
    radii = max(width, height) / 2 * np.exp(-rng.uniform(0, octaves, int(rng.integers(40, 400))))
    # Larger ones first, but not strictly: nearly all of them are seen then.
    order = np.argsort(-radii * np.exp(rng.normal(0, 0.5, len(radii))))
    for radius in radii[order]:
        mask = _shape(rng, math.ceil(2 * radius))
        at = (int(rng.uniform(-radius, width - radius)), int(rng.uniform(-radius, height - radius)))
        picture.paste(_fill(rng, mask.size, palette, photos), at, mask)
    picture = picture.reduce(_OVERSAMPLING)
    return _shade(rng, picture) if rng.random() < 0.5 else picture


def _fill(
    rng: np.random.Generator, size: tuple[int, int], palette: NDArray[np.float64], photos: Sequence[Image.Image]
) -> Image.Image:
    """One colour of the palette, a gradient of colours, or a piece of a photograph."""
    kind = rng.random()
    if photos and kind < 0.2:
        photo = photos[int(rng.integers(len(photos)))]
        box = [min(a, b) for a, b in zip(size, photo.size, strict=True)]
        left, top = (int(rng.integers(whole - part + 1)) for whole, part in zip(photo.size, box, strict=True))
        return photo.resize(size, Image.Resampling.BILINEAR, box=(left, top, left + box[0], top + box[1]))
    corners = 2 if kind < 0.5 else 1
    colours = palette[rng.integers(len(palette), size=(corners, corners))]
    colours = (colours + rng.normal(0, _JITTER, colours.shape)).clip(0, 255).round()
    return Image.fromarray(colours.astype(np.uint8)).resize(size, Image.Resampling.BILINEAR)


def _shape(rng: np.random.Generator, side: int) -> Image.Image:
    """Mask of an ellipse, a rectangle, a polygon, a bent line or letters, in a square of ``side`` pixels."""
    mask = Image.new("1", (side, side))
    draw = ImageDraw.Draw(mask)
    kind = ("ellipse", "rectangle", "polygon", "line", "letters")[rng.integers(5)]
    centre = side / 2
    if kind == "ellipse":
        across, along = centre * rng.uniform(0.3, 1, 2)
        draw.ellipse((centre - across, centre - along, centre + across, centre + along), fill=1)
    elif kind == "letters" and side >= 8:
        letters = rng.choice(list(string.ascii_letters + string.digits + ".,:;!?&%"), int(rng.integers(1, 9)))
        draw.text((centre, centre), "".join(letters), 1, ImageFont.load_default(1.6 * side / len(letters)), anchor="mm")
    else:
        turn, half = rng.uniform(0, 2 * math.pi), rng.uniform(0.1, math.pi / 2) / 2
        if kind == "rectangle":
            angles, radii = np.array([-half, half, math.pi - half, math.pi + half]) + turn, np.full(4, centre)
        else:
            angles = np.sort(rng.uniform(0, 2 * math.pi, int(rng.integers(3, 9))))
            radii = centre * rng.uniform(0.3, 1, len(angles))
        corners = [(centre + r * math.cos(a), centre + r * math.sin(a)) for r, a in zip(radii, angles, strict=True)]
        if kind == "line":
            draw.line(corners, 1, max(1, round(side * rng.uniform(0.01, 0.15))), joint="curve")
        else:
            draw.polygon(corners, fill=1)
    return mask


def _shade(rng: np.random.Generator, picture: Image.Image) -> Image.Image:
    """The picture in uneven light."""
    light = rng.uniform(rng.uniform(0.3, 1), 1, (4, 4))
    field = Image.fromarray((255 * light).round().astype(np.uint8)).resize(picture.size, Image.Resampling.BICUBIC)
    return ImageChops.multiply(picture, Image.merge("RGB", (field, field, field)))
