"""Draws letters, lines and shapes, for views whose edges are as sharp as edges can be.

Photographs have few letters, and a camera softens every edge. A drawing is known exactly at any size. It is therefore
the photograph and the sharp picture of its view at the same time.
"""

from __future__ import annotations

import math
import string
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from infgen_rt.errors import InputError

Point = tuple[float, float]
Colour = tuple[int, int, int]
_FINER = 2
"""Size at which a picture is drawn, relative to its final size. Reducing it smooths the edges."""


def font_files(folder: Path) -> list[Path]:
    """Lists the fonts (.ttf and .otf) in a folder and its subfolders, sorted by path.

    Raises:
        InputError: There are none, or Pillow cannot read one.
    """
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in {".ttf", ".otf"})
    if not files:
        raise InputError(f"{folder} has no fonts (.ttf or .otf)")
    for file in files:
        try:
            ImageFont.truetype(file, 20)
        except OSError as error:
            raise InputError(f"{file} cannot be used as a font ({error}): remove it from the folder") from error
    return files


def drawing(size: tuple[int, int], unit: float, fonts: Sequence[Path], rng: np.random.Generator) -> Image.Image:
    """Draws a random number of letters, lines and shapes on a plain colour or a gradient.

    They are not drawn on photographs. Most texture of a photograph is lost in the encoded picture, so a decoder that
    learnt such a view with L1 would learn to blur.

    Args:
        size: Width and height of the drawing in pixels.
        unit: Number of the drawing's pixels per pixel of the picture that will be encoded, along one axis. The sizes
            of what is drawn are relative to it, so that most letters can still be read in the encoded picture.
        fonts: Files of fonts to choose from.
        rng: The random generator.

    Returns:
        The drawing, in RGB.
    """
    width, height = size
    large = (width * _FINER, height * _FINER)
    scene = _gradient(large, rng) if rng.random() < 0.65 else Image.new("RGB", large, _colour(rng))
    pen = _Pen(scene, unit * _FINER, fonts, rng)
    shapes: tuple[Callable[[], None], ...] = (
        pen.text, pen.text, pen.text, pen.fan, pen.stripes, pen.arcs, pen.polygon, pen.curve, pen.windows,
    )  # fmt: skip
    for _ in range(int(rng.integers(6, 16))):
        shapes[int(rng.integers(len(shapes)))]()
    drawn = scene.resize(size, Image.Resampling.BOX)
    return drawn.filter(ImageFilter.GaussianBlur(rng.uniform(0, 0.12) * unit))


class _Pen:
    """Draws single shapes at random places of a scene. All sizes are in pixels of the picture that will be encoded."""

    def __init__(self, scene: Image.Image, unit: float, fonts: Sequence[Path], rng: np.random.Generator) -> None:
        self.scene, self.unit, self.fonts, self.rng = scene, unit, fonts, rng
        self.draw = ImageDraw.Draw(scene)

    def text(self) -> None:
        """Lines of words or numbers, on a panel or on what is there, sometimes turned."""
        rng = self.rng
        height = float(np.exp(rng.uniform(math.log(9), math.log(44))))
        font = ImageFont.truetype(self.fonts[int(rng.integers(len(self.fonts)))], round(height * self.unit))
        ink, paper = _contrast(rng)
        lines = "\n".join(_words(rng) for _ in range(int(rng.integers(1, 6 if height < 20 else 3))))
        box = self.draw.multiline_textbbox((0, 0), lines, font)
        edge = round(0.4 * height * self.unit)
        width, tall = (round(box[i + 2] - box[i]) + 2 * edge for i in (0, 1))
        layer = Image.new("RGBA", (width, tall), (*paper, 255 if rng.random() < 0.6 else 0))
        ImageDraw.Draw(layer).multiline_text((edge - box[0], edge - box[1]), lines, (*ink, 255), font)
        if rng.random() < 0.4:
            layer = layer.rotate(float(rng.normal(0, 12)), Image.Resampling.BICUBIC, expand=True)
        x, y = (int(rng.uniform(-0.1, 0.8) * each) for each in self.scene.size)
        self.scene.paste(layer, (x, y), layer)

    def fan(self) -> None:
        """Narrow leaves or rays that leave a point."""
        rng, (x, y) = self.rng, self._place()
        ink, length, count = _colour(rng), self._length(14, 90), int(rng.integers(5, 36))
        first, whole = rng.uniform(0, 2 * math.pi), rng.uniform(0.5, 2 * math.pi)
        for index in range(count):
            angle = first + whole * index / count + rng.normal(0, 0.03)
            far = length * rng.uniform(0.7, 1)
            half = self._length(0.4, 3)
            tip = (x + far * math.cos(angle), y + far * math.sin(angle))
            middle = (x + 0.4 * far * math.cos(angle), y + 0.4 * far * math.sin(angle))
            across = (-half * math.sin(angle), half * math.cos(angle))
            sides = [(middle[0] + sign * across[0], middle[1] + sign * across[1]) for sign in (1, -1)]
            self.draw.polygon([(x, y), sides[0], tip, sides[1]], fill=ink)

    def stripes(self) -> None:
        """Parallel bars of equal distance, such as railings, blinds and stairs."""
        rng, (x, y) = self.rng, self._place()
        ink, period = _colour(rng), self._length(3, 14)
        width = period * rng.uniform(0.2, 0.6)
        angle = rng.choice([0.0, math.pi / 2, rng.uniform(0, math.pi)])
        along = (math.cos(angle), math.sin(angle))
        length = self._length(20, 120)
        for index in range(int(rng.integers(4, 24))):
            at = (x - along[1] * period * index, y + along[0] * period * index)
            self._bar(at, along, length, width, ink)

    def arcs(self) -> None:
        """Circles, rings and arches inside each other."""
        rng, (x, y) = self.rng, self._place()
        radius, ink = self._length(6, 70), _colour(rng)
        start, whole = (180, 180) if rng.random() < 0.4 else (int(rng.integers(360)), int(rng.integers(90, 361)))
        for _ in range(int(rng.integers(1, 5))):
            width = max(1, round(self._length(0.6, 5)))
            self.draw.arc((x - radius, y - radius, x + radius, y + radius), start, start + whole, ink, width)
            radius *= rng.uniform(0.5, 0.9)

    def polygon(self) -> None:
        """A filled polygon with straight edges, or an ellipse, with or without an outline."""
        rng, (x, y) = self.rng, self._place()
        radius, ink, line = self._length(5, 80), _colour(rng), _colour(rng)
        width = round(self._length(0.6, 4)) if rng.random() < 0.4 else 0
        if rng.random() < 0.3:
            other = radius * rng.uniform(0.4, 1)
            self.draw.ellipse((x - radius, y - other, x + radius, y + other), ink, line, width)
            return
        angles = np.sort(rng.uniform(0, 2 * math.pi, int(rng.integers(3, 9))))
        corners = [(x + radius * math.cos(angle), y + radius * math.sin(angle)) for angle in angles]
        self.draw.polygon(corners, ink, line, width)

    def curve(self) -> None:
        """Thin curves side by side, such as wires, hair and rigging."""
        rng = self.rng
        ink, width, shift = _colour(rng), self._length(0.5, 2.5), self._length(2, 9)
        p, q, r = (np.array(self._place()) for _ in range(3))
        steps = np.linspace(0, 1, 60)[:, None]
        for index in range(int(rng.integers(1, 8))):
            points = (
                (1 - steps) ** 2 * p + 2 * steps * (1 - steps) * (q + index * shift) + steps**2 * (r + index * shift)
            )
            self.draw.line([tuple(point) for point in points.tolist()], ink, max(1, round(width)), "curve")

    def windows(self) -> None:
        """A lattice of equal panes."""
        rng, (x, y) = self.rng, self._place()
        ink, line = _colour(rng), _colour(rng)
        wide, tall, gap = self._length(3, 20), self._length(3, 24), self._length(0.7, 4)
        for row in range(int(rng.integers(1, 7))):
            for column in range(int(rng.integers(2, 9))):
                left, top = x + column * (wide + gap), y + row * (tall + gap)
                self.draw.rectangle((left, top, left + wide, top + tall), ink, line, round(self._length(0, 1.2)))

    def _bar(self, at: Point, along: Point, length: float, width: float, ink: Colour) -> None:
        half = (-along[1] * width / 2, along[0] * width / 2)
        end = (at[0] + along[0] * length, at[1] + along[1] * length)
        corners = [
            (p[0] + sign * half[0], p[1] + sign * half[1]) for p, sign in ((at, 1), (end, 1), (end, -1), (at, -1))
        ]
        self.draw.polygon(corners, fill=ink)

    def _place(self) -> Point:
        width, height = self.scene.size
        return float(self.rng.uniform(0, width)), float(self.rng.uniform(0, height))

    def _length(self, least: float, most: float) -> float:
        return float(self.rng.uniform(least, most)) * self.unit


def _words(rng: np.random.Generator) -> str:
    letters = (string.ascii_uppercase, string.ascii_lowercase, string.digits + "$.:-")[
        int(rng.choice(3, p=(0.4, 0.4, 0.2)))
    ]
    return " ".join(
        "".join(letters[int(rng.integers(len(letters)))] for _ in range(int(rng.integers(2, 9))))
        for _ in range(int(rng.integers(1, 4)))
    )


def _colour(rng: np.random.Generator) -> Colour:
    """A random colour. Half of them are greys and muted colours, as most things are."""
    levels = rng.uniform(0, 255, 3)
    if rng.random() < 0.5:
        levels = levels.mean() + 0.25 * (levels - levels.mean())
        levels += rng.uniform(-90, 90)
    red, green, blue = np.clip(levels, 4, 251).astype(int).tolist()
    return red, green, blue


def _contrast(rng: np.random.Generator) -> tuple[Colour, Colour]:
    """Two colours whose brightness differs by at least 60 levels."""
    while True:
        ink, paper = _colour(rng), _colour(rng)
        if abs(sum(ink) - sum(paper)) >= 180:
            return ink, paper


def _gradient(size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    """A picture whose colours change evenly between its four corners."""
    corners = np.array([[_colour(rng), _colour(rng)], [_colour(rng), _colour(rng)]], np.float32)
    corners = corners.mean((0, 1)) + rng.uniform(0.1, 0.6) * (corners - corners.mean((0, 1)))
    across, down = (np.linspace(0, 1, length, dtype=np.float32)[:, None] for length in size)
    top, bottom = ((1 - across) * row[0] + across * row[1] for row in corners)
    return Image.fromarray(((1 - down)[:, None] * top + down[:, None] * bottom).round().astype(np.uint8))
