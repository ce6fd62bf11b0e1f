"""The size of this machine's screen in physical pixels, as the system reports it.

The system is asked directly, because the libraries that list screens give points on macOS and do not support Wayland.
"""

import ctypes
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from infgen_rt.errors import PlanError
from infgen_rt.geometry.shapes import Size

# A screen's size in its current orientation, and whether it is the system's main screen.
_Screen = tuple[Size, bool]
_CORE_GRAPHICS = "/System/Library/Frameworks/CoreGraphics.framework/CoreGraphics"
_DRM = Path("/sys/class/drm")
_NATIVE_MODE = 0x02000000  # kDisplayModeNativeFlag
_CURRENT_SETTINGS = -1  # ENUM_CURRENT_SETTINGS


def screen_size() -> Size:
    """Ask the system for the size of the main screen. If it does not say which one that is, the largest counts.

    Returns:
        Width and height in physical pixels, in the current orientation.

    Raises:
        PlanError: there is no screen, or the system does not report it.
    """
    screens = list(_screens())
    if not screens:
        raise PlanError("no screen was found on this machine: name a display (`infgen-rt displays`) or pass a size")
    return max(screens, key=lambda screen: (screen[1], screen[0].area))[0]


def _screens() -> Iterator[_Screen]:
    if sys.platform == "darwin":
        yield from ask_core_graphics(ctypes.CDLL(_CORE_GRAPHICS))
    elif sys.platform == "win32":
        yield from ask_user32(ctypes.windll.user32)
    else:
        yield from _ask_desktop() or _read_drm(_DRM)


def ask_core_graphics(library: Any) -> Iterator[_Screen]:
    """Yield the main screen of a Mac.

    Args:
        library: the loaded framework CoreGraphics.
    """
    signatures: dict[str, tuple[list[Any], Any]] = {
        "CGMainDisplayID": ([], ctypes.c_uint32),
        "CGDisplayCopyDisplayMode": ([ctypes.c_uint32], ctypes.c_void_p),
        "CGDisplayCopyAllDisplayModes": ([ctypes.c_uint32, ctypes.c_void_p], ctypes.c_void_p),
        "CGDisplayModeGetIOFlags": ([ctypes.c_void_p], ctypes.c_uint32),
        "CGDisplayModeGetPixelWidth": ([ctypes.c_void_p], ctypes.c_size_t),
        "CGDisplayModeGetPixelHeight": ([ctypes.c_void_p], ctypes.c_size_t),
        "CFArrayGetCount": ([ctypes.c_void_p], ctypes.c_long),
        "CFArrayGetValueAtIndex": ([ctypes.c_void_p, ctypes.c_long], ctypes.c_void_p),
        "CFRelease": ([ctypes.c_void_p], None),
    }
    for name, (arguments, result) in signatures.items():
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, result

    def size(mode: Any) -> Size:
        return Size(library.CGDisplayModeGetPixelWidth(mode), library.CGDisplayModeGetPixelHeight(mode))

    display = library.CGMainDisplayID()
    current = library.CGDisplayCopyDisplayMode(display)
    modes = library.CGDisplayCopyAllDisplayModes(display, None)
    # The current mode of a scaled desktop may be larger or smaller than the panel. The native mode has its real size.
    if modes:
        for index in range(library.CFArrayGetCount(modes)):
            mode = library.CFArrayGetValueAtIndex(modes, index)
            if library.CGDisplayModeGetIOFlags(mode) & _NATIVE_MODE:
                yield size(mode), True
        library.CFRelease(modes)
    if current:
        yield size(current), False
        library.CFRelease(current)


class _DevMode(ctypes.Structure):
    """The structure DEVMODEW of Windows, of which only the display's size is read."""

    _fields_ = [
        ("names", ctypes.c_byte * 68),
        ("bytes", ctypes.c_uint16),
        ("others", ctypes.c_byte * 102),
        ("width", ctypes.c_uint32),
        ("height", ctypes.c_uint32),
        ("rest", ctypes.c_byte * 40),
    ]


def ask_user32(user32: Any) -> Iterator[_Screen]:
    """Yield the main screen of Windows.

    Args:
        user32: the loaded library user32.
    """
    # Display settings are always in physical pixels. Window metrics depend on the process's DPI awareness, which only
    # the app may set.
    settings = _DevMode(bytes=ctypes.sizeof(_DevMode))
    if user32.EnumDisplaySettingsW(None, _CURRENT_SETTINGS, ctypes.byref(settings)):
        yield Size(settings.width, settings.height), True


def _read_mutter(answer: str) -> Iterator[_Screen]:
    """Parse the result of GNOME's `GetCurrentState`, in busctl's JSON."""
    monitors, layout = json.loads(answer)["data"][1:3]
    sizes = {
        names[0]: Size(mode[1], mode[2]) for names, modes, _ in monitors for mode in modes if "is-current" in mode[6]
    }
    for _, _, _, transform, main, names, _ in layout:
        yield _turned(sizes[names[0][0]], sideways=transform % 2 == 1), main


def _read_kscreen(answer: str) -> Iterator[_Screen]:
    """Parse the output of KDE's `kscreen-doctor --json`."""
    for output in json.loads(answer)["outputs"]:
        for mode in output["modes"] if output["enabled"] else ():
            if mode["id"] == output["currentModeId"]:
                size = Size(mode["size"]["width"], mode["size"]["height"])
                # These are the rotations to the left and to the right, and both of them flipped.
                sideways = output["rotation"] in (2, 8, 32, 128)
                yield _turned(size, sideways), output.get("priority") == 1 or output.get("primary", False)


def _read_wlr_randr(answer: str) -> Iterator[_Screen]:
    """Parse the output of `wlr-randr --json`, which does not name a main screen."""
    for output in json.loads(answer):
        for mode in output["modes"] if output["enabled"] else ():
            if mode["current"]:
                yield _turned(Size(mode["width"], mode["height"]), output["transform"].endswith(("90", "270"))), False


def _read_xrandr(answer: str) -> Iterator[_Screen]:
    """Parse the output of `xrandr`. The mode that is marked * has physical pixels, but the geometry may be scaled."""
    main = sideways = False
    for line in answer.splitlines():
        if output := re.match(r"\S+ connected( primary)?( \d\S* (?:left|right)\b)?", line):
            main, sideways = output[1] is not None, output[2] is not None
        elif mode := re.match(r"\s+(\d+)x(\d+)\S*\s.*\*", line):
            yield _turned(Size(int(mode[1]), int(mode[2])), sideways), main


def _read_drm(folder: Path) -> Iterator[_Screen]:
    """Read the kernel's list of connected screens, which has no orientations and does not name a main screen."""
    for connector in folder.glob("card*-*"):
        try:
            state = [(connector / name).read_text(encoding="ascii") for name in ("status", "enabled", "modes")]
        except OSError:
            continue
        preferred = re.match(r"(\d+)x(\d+)", state[2])
        if state[0].strip() == "connected" and state[1].strip() == "enabled" and preferred:
            yield Size(int(preferred[1]), int(preferred[2])), False


_MUTTER = "busctl --user --json=short call org.gnome.Mutter.DisplayConfig /org/gnome/Mutter/DisplayConfig \
org.gnome.Mutter.DisplayConfig GetCurrentState"
_Question = tuple[str, Callable[[str], Iterator[_Screen]]]
_WAYLAND: tuple[_Question, ...] = (
    (_MUTTER, _read_mutter),
    ("kscreen-doctor --json", _read_kscreen),
    ("wlr-randr --json", _read_wlr_randr),
)
_X11: tuple[_Question, ...] = (("xrandr", _read_xrandr),)


def _ask_desktop() -> list[_Screen]:
    """The screens from the first of the desktop's own tools that reports any."""
    # xrandr is not used on Wayland, because XWayland reports scaled sizes.
    questions = _WAYLAND if os.environ.get("WAYLAND_DISPLAY") else _X11 if os.environ.get("DISPLAY") else ()
    for command, read in questions:
        try:
            answer = subprocess.run(command.split(), capture_output=True, text=True, timeout=5, check=True).stdout
            if screens := list(read(answer)):
                return screens
        except (OSError, subprocess.SubprocessError, LookupError, TypeError, ValueError):
            continue  # the tool is not installed, is for another desktop, or has a version with a different output
    return []


def _turned(size: Size, sideways: bool) -> Size:
    return Size(size.height, size.width) if sideways else size
