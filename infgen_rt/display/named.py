"""The table of named displays, with their native sizes."""

import json
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path

from infgen_rt.common.arguments import TEXT
from infgen_rt.common.schema import parse
from infgen_rt.display.screen import screen_size
from infgen_rt.errors import PlanError
from infgen_rt.geometry.shapes import Size

_TABLE = Path(__file__).parents[1] / "data" / "displays.json"


@dataclass(frozen=True)
class Display:
    """A display in its usual orientation, which is portrait for phones and landscape for all others.

    Attributes:
        title: its name for people.
        kind: `laptop`, `phone`, `tablet`, `monitor` or `tv`.
        width: the width in physical pixels.
        height: the height in physical pixels.

    Examples:
        >>> import infgen_rt
        >>> infgen_rt.named_displays()["iphone-14"].kind
        'phone'
    """

    title: str
    kind: str
    width: int
    height: int

    @property
    def size(self) -> Size:
        """Width and height in physical pixels."""
        return Size(self.width, self.height)


@cache
def named_displays() -> dict[str, Display]:
    """All displays that have a name, by name.

    Examples:
        >>> import infgen_rt
        >>> infgen_rt.named_displays()["macbook-pro-16"].size
        Size(width=3456, height=2234)
    """
    table = json.loads(_TABLE.read_text(encoding="utf-8"))
    return {name: parse(Display, value, name) for name, value in table.items()}


def display_size(name: str) -> Size:
    """The native size of a display.

    Args:
        name: a name from `named_displays`, or `auto` for this machine's main screen. Capitals do not matter, and spaces
            may stand for dashes.

    Returns:
        Width and height in physical pixels.

    Raises:
        PlanError: the name is unknown, or for `auto`, this machine has no screen whose size is known.

    Examples:
        >>> import infgen_rt
        >>> infgen_rt.display_size("MacBook Pro 16")
        Size(width=3456, height=2234)
    """
    TEXT.check(name=name)
    key = "-".join(name.lower().split())
    if key == "auto":
        return screen_size()
    if key not in named_displays():
        near = get_close_matches(key, named_displays())
        hint = f"did you mean {', '.join(near)}? " if near else ""
        raise PlanError(f"display {name!r} is unknown: {hint}`infgen-rt displays` lists all, and auto is this screen")
    return named_displays()[key].size
