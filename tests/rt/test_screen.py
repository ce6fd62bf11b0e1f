"""Each system's answer, in the words of its own tools, gives the size in physical pixels of the screen as it stands."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from infgen_rt.display.screen import ask_core_graphics, ask_user32, screen_size
from infgen_rt.errors import PlanError

# A laptop whose desktop is drawn twice as large, and a main screen turned upright.
XRANDR = """\
Screen 0: minimum 320 x 200, current 9280 x 3840, maximum 16384 x 16384
eDP-1 connected 5120x3200+0+0 (normal left inverted right x axis y axis) 302mm x 189mm
   2560x1600     60.00*+  48.00
   1920x1200     59.95
DP-1 disconnected (normal left inverted right x axis y axis)
DP-2 connected primary 2160x3840+5120+0 left (normal left inverted right x axis y axis) 600mm x 340mm
   3840x2160     60.00*+  30.00    29.97
   1920x1080     60.00    59.94
"""
XRANDR_CUSTOM_MODE = """\
Screen 0: minimum 8 x 8, current 1920 x 1080, maximum 32767 x 32767
HDMI-1 connected (normal left inverted right x axis y axis)
   4096x2160     60.00 +
DP-0 connected 1920x1080+0+0 (normal left inverted right x axis y axis) 527mm x 296mm
   1920x1080_144.0 144.00*+
   1280x720      60.00
"""
MUTTER = (
    '{"type":"ua((ssss)a(siiddada{sv})a{sv})a(iiduba(ssss)a{sv})a{sv}","data":[3,[[["eDP-1","SDC","0x4154",'
    '"0x00000000"],[["2880x1800@120.001",2880,1800,1.200010000000000047748e+02,2.000000000000000000000e+00,'
    '[1.000000000000000000000e+00,2.000000000000000000000e+00],{"is-current":{"type":"b","data":true},'
    '"is-preferred":{"type":"b","data":true}}]],{"is-builtin":{"type":"b","data":true}}],[["DP-2","DEL",'
    '"DELL U2723QE","ABC"],[["2560x1440@59.951",2560,1440,5.995100000000000051159e+01,1.000000000000000000000e+00,'
    '[1.000000000000000000000e+00],{}],["3840x2160@59.997",3840,2160,5.999699999999999988631e+01,'
    '2.000000000000000000000e+00,[2.000000000000000000000e+00],{"is-current":{"type":"b","data":true}}]],'
    '{"display-name":{"type":"s","data":"Dell Inc. 27\\""}}]],[[0,0,2.000000000000000000000e+00,1,false,[["DP-2",'
    '"DEL","DELL U2723QE","ABC"]],{}],[1080,0,2.000000000000000000000e+00,0,true,[["eDP-1","SDC","0x4154",'
    '"0x00000000"]],{}]],{"layout-mode":{"type":"u","data":1}}]}'
)
MUTTER_TURNED = MUTTER.replace("e+00,0,true,", "e+00,0,false,").replace("e+00,1,false,", "e+00,1,true,")
KSCREEN = """{"outputs": [
  {"connected": true, "currentModeId": "2", "enabled": true, "name": "eDP-1", "priority": 2, "rotation": 1, "scale": 2,
   "modes": [{"id": "1", "refreshRate": 60.0, "size": {"height": 1200, "width": 1920}},
             {"id": "2", "refreshRate": 120.0, "size": {"height": 2400, "width": 3840}}]},
  {"connected": true, "currentModeId": "7", "enabled": true, "name": "DP-1", "priority": 1, "rotation": 8, "scale": 1,
   "modes": [{"id": "7", "refreshRate": 59.95, "size": {"height": 1440, "width": 2560}}]},
  {"connected": true, "currentModeId": "9", "enabled": false, "name": "HDMI-A-1", "priority": 0, "rotation": 1,
   "modes": [{"id": "9", "refreshRate": 60.0, "size": {"height": 4320, "width": 7680}}]}]}"""
WLR_RANDR = """[
  {"name": "eDP-1", "enabled": true, "transform": "normal", "scale": 1.5,
   "modes": [{"width": 2256, "height": 1504, "refresh": 59.999, "preferred": true, "current": true}]},
  {"name": "DP-2", "enabled": true, "transform": "flipped-270", "scale": 1.0,
   "modes": [{"width": 1920, "height": 1080, "refresh": 60.0, "preferred": false, "current": false},
             {"width": 3440, "height": 1440, "refresh": 99.982, "preferred": true, "current": true}]},
  {"name": "HDMI-A-1", "enabled": false, "transform": "normal",
   "modes": [{"width": 7680, "height": 4320, "refresh": 60.0, "preferred": true, "current": false}]}]"""
WAYLAND, X11 = "WAYLAND_DISPLAY", "DISPLAY"

Desktop = Callable[[dict[str, str | None], str | None], None]


@pytest.fixture
def desktop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desktop:
    """A Linux desktop with only the given tools; one without an answer fails."""
    if os.name == "nt":
        pytest.skip("the tools are shell scripts")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr("infgen_rt.display.screen._DRM", tmp_path / "drm")
    monkeypatch.delenv(WAYLAND, raising=False)
    monkeypatch.delenv(X11, raising=False)
    tools = tmp_path / "tools"
    tools.mkdir()
    monkeypatch.setenv("PATH", str(tools))

    def make(answers: dict[str, str | None], session: str | None) -> None:
        for name, answer in answers.items():
            (tools / f"{name}.answer").write_text(answer or "")
            (tools / name).write_text(f"#!/bin/sh\n/bin/cat {tools / name}.answer; exit {0 if answer else 1}\n")
            (tools / name).chmod(0o755)
        if session is not None:
            monkeypatch.setenv(session, "0")

    return make


@pytest.mark.parametrize(
    ("session", "tool", "answer", "size"),
    [
        (X11, "xrandr", XRANDR, (2160, 3840)),
        (X11, "xrandr", XRANDR_CUSTOM_MODE, (1920, 1080)),
        (WAYLAND, "busctl", MUTTER, (2880, 1800)),
        (WAYLAND, "busctl", MUTTER_TURNED, (2160, 3840)),
        (WAYLAND, "kscreen-doctor", KSCREEN, (1440, 2560)),
        (WAYLAND, "wlr-randr", WLR_RANDR, (1440, 3440)),
    ],
)
def test_linux_desktops(desktop: Desktop, session: str, tool: str, answer: str, size: tuple[int, int]) -> None:
    desktop({tool: answer}, session)
    assert screen_size() == size


def test_a_desktop_whose_first_tools_fail_is_asked_with_the_next(desktop: Desktop) -> None:
    desktop({"busctl": None, "kscreen-doctor": '{"changed": "format"}', "wlr-randr": WLR_RANDR}, WAYLAND)
    assert screen_size() == (1440, 3440)


def plug(folder: Path, name: str, status: str, enabled: str, modes: str) -> None:
    connector = folder / "drm" / name
    connector.mkdir(parents=True)
    for file, text in {"status": status, "enabled": enabled, "modes": modes}.items():
        (connector / file).write_text(text + "\n")


@pytest.mark.parametrize("session", [WAYLAND, X11, None])
def test_without_tools_the_kernels_largest_screen_that_is_on_is_taken(
    desktop: Desktop, tmp_path: Path, session: str | None
) -> None:
    plug(tmp_path, "card1-DP-1", "disconnected", "disabled", "")
    plug(tmp_path, "card1-DP-2", "connected", "disabled", "7680x4320\n3840x2160")
    plug(tmp_path, "card1-HDMI-A-1", "connected", "enabled", "1920x1080i\n1280x720")
    plug(tmp_path, "card1-eDP-1", "connected", "enabled", "2560x1600\n1920x1200")
    plug(tmp_path, "card1-Writeback-1", "unknown", "disabled", "")
    desktop({}, session)
    assert screen_size() == (2560, 1600)


def test_a_machine_without_a_screen_says_what_to_do(desktop: Desktop) -> None:
    desktop({}, None)
    with pytest.raises(PlanError, match="no screen was found on this machine: name a display"):
        screen_size()


def core_graphics(modes: list[tuple[int, int, int]] | None, current: int | None) -> Any:
    """CoreGraphics on a Mac: modes of pixels and flags; handles are their numbers and one."""
    modes = modes or []
    return SimpleNamespace(
        CGMainDisplayID=lambda: 1,
        CGDisplayCopyDisplayMode=lambda display: None if current is None else current + 1,
        CGDisplayCopyAllDisplayModes=lambda display, options: 99 if modes else None,
        CGDisplayModeGetPixelWidth=lambda mode: modes[mode - 1][0],
        CGDisplayModeGetPixelHeight=lambda mode: modes[mode - 1][1],
        CGDisplayModeGetIOFlags=lambda mode: modes[mode - 1][2],
        CFArrayGetCount=lambda array: len(modes),
        CFArrayGetValueAtIndex=lambda array, index: index + 1,
        CFRelease=lambda handle: None,
    )


def mac_size(library: Any, monkeypatch: pytest.MonkeyPatch) -> tuple[int, int]:
    monkeypatch.setattr("infgen_rt.display.screen._screens", lambda: ask_core_graphics(library))
    return screen_size()


def test_a_mac_gives_its_panel_and_not_the_scaled_desktop(monkeypatch: pytest.MonkeyPatch) -> None:
    # A MacBook Air 13 that "looks like" 1470x956: drawn at 2940x1912, with a native mode below the camera too.
    modes = [(2940, 1912, 0x7), (2560, 1600, 0x2000007), (2560, 1664, 0x2000003), (1280, 832, 0x3)]
    assert mac_size(core_graphics(modes, current=0), monkeypatch) == (2560, 1664)


def test_a_mac_without_a_native_mode_gives_the_current_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert mac_size(core_graphics([(1920, 1080, 0x3), (5120, 2880, 0x7)], current=1), monkeypatch) == (5120, 2880)


def test_a_mac_without_a_screen_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PlanError, match="no screen was found"):
        mac_size(core_graphics(None, current=None), monkeypatch)


def test_windows_gives_display_settings_of_the_documented_layout() -> None:
    def enumerate_settings(device: None, number: int, settings: Any) -> int:
        structure = settings._obj
        assert device is None and number == -1
        # As in wingdi.h: 220 bytes, the size as a word at 68, the picture's sides as double words at 172 and 176.
        assert (type(structure).bytes.offset, structure.bytes) == (68, 220)
        assert (type(structure).width.offset, type(structure).height.offset) == (172, 176)
        structure.width, structure.height = 3840, 2400
        return 1

    assert list(ask_user32(SimpleNamespace(EnumDisplaySettingsW=enumerate_settings))) == [((3840, 2400), True)]


def test_windows_without_a_screen_gives_none() -> None:
    assert list(ask_user32(SimpleNamespace(EnumDisplaySettingsW=lambda *arguments: 0))) == []
