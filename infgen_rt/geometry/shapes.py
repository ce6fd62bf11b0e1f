"""Sizes and boxes. Their unit depends on the use: pixels, tokens or cells."""

import re
from collections.abc import Mapping, Sequence, Set
from math import isfinite
from numbers import Real
from typing import Any, Literal, NamedTuple

from infgen_rt.common.arguments import PAIR, TEXT
from infgen_rt.common.callers import raise_callers
from infgen_rt.errors import PlanError

MAX_SIDE = 2**18
"""The longest side that a picture may have, in pixels."""
Fit = Literal["cover", "contain", "stretch"]
"""How a picture fits a display; see `fit`."""
NAMED_SIZES = {
    "1080p": (1920, 1080),
    "1440p": (2560, 1440),
    "4k": (3840, 2160),
    "8k": (7680, 4320),
    "16k": (15360, 8640),
}


class Size(NamedTuple):
    """A width and a height. A size is equal to the plain tuple (width, height), as Pillow uses it.

    Attributes:
        width: the number of columns.
        height: the number of rows.

    Examples:
        >>> import infgen_rt
        >>> size = infgen_rt.Size(3840, 2160)
        >>> size == (3840, 2160)
        True
        >>> print(size)
        3840x2160
    """

    width: int
    height: int

    @property
    def area(self) -> int:
        """Width times height."""
        return self.width * self.height

    @property
    def box(self) -> "Box":
        """The box of this size at the origin."""
        return Box(0, 0, self.width, self.height)

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"


class Box(NamedTuple):
    """A rectangle. A box is equal to the plain tuple (x, y, width, height).

    Attributes:
        x: the first column.
        y: the first row.
        width: the number of columns.
        height: the number of rows.

    Examples:
        >>> import infgen_rt
        >>> box = infgen_rt.Box(100, 200, 640, 480)
        >>> box.right, box.bottom
        (740, 680)
        >>> box.intersect(infgen_rt.Box(0, 0, 400, 300))
        Box(x=100, y=200, width=300, height=100)
    """

    x: int
    y: int
    width: int
    height: int

    @property
    def right(self) -> int:
        """The first column to the right of the box."""
        return self.x + self.width

    @property
    def bottom(self) -> int:
        """The first row below the box."""
        return self.y + self.height

    @property
    def size(self) -> Size:
        """Width and height."""
        return Size(self.width, self.height)

    @property
    def slices(self) -> tuple[slice, slice]:
        """The box as an index of the last two axes (rows, columns) of an array."""
        return slice(self.y, self.bottom), slice(self.x, self.right)

    def intersect(self, other: "Box") -> "Box":
        """The common part of two boxes. If there is none, its width or height is 0."""
        x, y = max(self.x, other.x), max(self.y, other.y)
        right, bottom = min(self.right, other.right), min(self.bottom, other.bottom)
        return Box(x, y, max(0, right - x), max(0, bottom - y))

    def grow(self, margin: int, within: "Box") -> "Box":
        """This box with a margin on every side, clipped to another box."""
        return Box(self.x - margin, self.y - margin, self.width + 2 * margin, self.height + 2 * margin).intersect(
            within
        )

    def relative_to(self, origin: "Box") -> "Box":
        """The same box with coordinates relative to another box's top-left corner."""
        return self._replace(x=self.x - origin.x, y=self.y - origin.y)

    def placed_in(self, outer: "Box") -> "Box":
        """The inverse of `relative_to`: the same box in the coordinates of the outer box."""
        return self._replace(x=self.x + outer.x, y=self.y + outer.y)

    def __str__(self) -> str:
        return f"{self.x},{self.y},{self.width},{self.height}"


def split(length: int, longest: int) -> tuple[int, ...]:
    """Cut a length into the fewest parts that are no longer than `longest`.

    All parts except the last have even lengths, because OpenVINO takes a quarter longer for odd ones in bfloat16. The
    lengths differ by at most three, so there is never a sliver at the end.

    Returns:
        The edges of the parts, ascending from 0 to `length`.
    """
    if length <= longest:
        return 0, length
    step = min(2, longest)
    parts = -(-length // (longest - longest % step))
    # Edges are rounded up to the next even number, so that the last part is no longer than the others.
    return (*(step * -(-index * length // (parts * step)) for index in range(parts)), length)


def parse_box(value: str | Sequence[int], within: Size) -> Box:
    """Parse a region and check that it is inside the picture.

    Args:
        value: a `Box`, four integers or the text `x,y,width,height`, in pixels.
        within: the picture's size in pixels.

    Raises:
        PlanError: the region is not four integers, or it is empty or reaches outside the picture.
    """
    try:
        x, y, width, height = map(_whole, value.split(",") if isinstance(value, str) else in_order(value))
    except (TypeError, ValueError, OverflowError) as error:
        raise_callers(error)
        raise PlanError(f"region {value!r} is not understood: expected four whole numbers x,y,width,height") from None
    box = Box(x, y, width, height)
    if width < 1 or height < 1 or box.intersect(within.box) != box:
        raise PlanError(f"region {box} is empty or reaches outside the picture, which is {within}")
    return box


def parse_size(value: "str | float | tuple[int, int] | None", native: Size) -> Size:
    """Parse a picture's size.

    Args:
        value: (width, height); the text `3840x2160`; one side as `3840x` or `x2160`, which keeps the latent's
            aspect ratio; a name of `NAMED_SIZES`; a factor of the native size, as a number or as `2x`; or None
            for the native size.
        native: the picture's size at scale 1, in pixels.

    Raises:
        PlanError: the value is not understood, or a side is below 1 or above `MAX_SIDE` pixels.
    """
    if value is None:
        size = native
    elif isinstance(value, str):
        size = _parse_size_text(_plain(value), native)
    elif isinstance(value, Real) and not isinstance(value, bool):
        size = _scaled(float(value), native)
    else:
        try:
            size = Size(*map(_whole, in_order(value)))
        except (TypeError, ValueError, OverflowError) as error:
            raise_callers(error)
            raise PlanError(
                f"size {value!r} is not understood: expected (width, height) in whole pixels, as display_size(NAME) "
                "gives for a display"
            ) from None
    if min(size) < 1 or max(size) > MAX_SIDE:
        raise PlanError(f"size {size} is out of bounds: each side must be from 1 to {MAX_SIDE:,} pixels")
    return size


def in_order(values: Any) -> Any:
    """The same values. Raises TypeError for what is no sequence of numbers: sets have no order, and bytes are text."""
    if isinstance(values, (bytes, bytearray, Set, Mapping)):
        raise TypeError("not a sequence of numbers")
    return values


def _whole(value: Any) -> int:
    """A whole number. Raises ValueError for a fraction, and OverflowError for infinity."""
    number = int(value)
    if not isinstance(value, str) and number != value:
        raise ValueError("a fraction")
    return number


def fixed_size(text: str) -> Size | None:
    """The size in pixels that a text means for every latent: `3840x2160` or a name of `NAMED_SIZES`. Otherwise None."""
    text = _plain(text)
    if text in NAMED_SIZES:
        return Size(*NAMED_SIZES[text])
    sides = re.fullmatch(r"(-?\d{1,18})x(-?\d{1,18})", text)
    return Size(int(sides[1]), int(sides[2])) if sides else None


def fit(native: Size, target: tuple[int, int], how: Fit) -> tuple[Size, Box]:
    """Fit a picture to a display.

    Args:
        native: the picture's size at scale 1, in pixels, which determines its aspect ratio.
        target: the display's width and height in pixels.
        how: `cover` makes the smallest picture with this aspect ratio that fills the display. The display then shows
            the middle of it. `contain` makes the largest picture with this aspect ratio that the display shows as a
            whole. `stretch` makes a picture of the display's own size and aspect ratio.

    Returns:
        The picture's size, and the part of it that is visible, in pixels.

    Raises:
        PlanError: the display or the picture has a side below 1 or above `MAX_SIDE` pixels, or `how` is unknown.

    Examples:
        >>> import infgen_rt
        >>> native = infgen_rt.Size(1024, 1024)
        >>> infgen_rt.fit(native, (1920, 1080), "cover")
        (Size(width=1920, height=1920), Box(x=0, y=420, width=1920, height=1080))
        >>> infgen_rt.fit(native, (1920, 1080), "contain")
        (Size(width=1080, height=1080), Box(x=0, y=0, width=1080, height=1080))
    """
    PAIR.check(native=native)
    TEXT.check(how=how)
    native = Size(*native)
    display = parse_size(target, native)
    if how == "stretch":
        return display, display.box
    if how not in ("cover", "contain"):
        raise PlanError(f"fit {how!r} is unknown: expected cover, contain or stretch")
    wider = native.width * display.height > display.width * native.height
    if wider == (how == "cover"):
        size = Size(max(1, round(display.height * native.width / native.height)), display.height)
    else:
        size = Size(display.width, max(1, round(display.width * native.height / native.width)))
    size = parse_size(size, native)
    seen = Size(min(size.width, display.width), min(size.height, display.height))
    return size, Box((size.width - seen.width) // 2, (size.height - seen.height) // 2, *seen)


def _plain(text: str) -> str:
    """A size's text in lower case, with x for the multiplication sign."""
    return text.strip().lower().replace("\N{MULTIPLICATION SIGN}", "x")


def _parse_size_text(text: str, native: Size) -> Size:
    if fixed := fixed_size(text):
        return fixed
    if height := re.fullmatch(r"x(\d{1,18})", text):
        return Size(max(1, round(int(height[1]) * native.width / native.height)), int(height[1]))
    # "3x" is a factor and "3840x" a width. The limit between them is 64, because neither pictures so narrow nor factors
    # so large are useful.
    if factor := re.fullmatch(r"(-?\d{1,18}(?:\.\d+)?)x", text):
        number = float(factor[1])
        if "." in factor[1] or number < 64:
            return _scaled(number, native)
        return Size(int(number), max(1, round(number * native.height / native.width)))
    names = ", ".join(NAMED_SIZES)
    raise PlanError(
        f"size {text!r} is not understood: expected 3840x2160, {names}, x2160 or a factor such as 2x; for a display's "
        "name, pass display_size(NAME) (--display NAME)"
    )


def _scaled(factor: float, native: Size) -> Size:
    if not (isfinite(factor) and factor > 0):
        raise PlanError(f"size factor {factor:g} is not usable: expected a number above 0")
    if factor > MAX_SIDE:
        raise PlanError(f"size factor {factor:g} is out of bounds: each side must be from 1 to {MAX_SIDE:,} pixels")
    return Size(round(native.width * factor), round(native.height * factor))
