"""Finds plug-in providers of ONNX Runtime: distributions whose names start with `onnxruntime-ep-`."""

import importlib
import sys
from functools import cache
from pathlib import Path
from threading import Lock

import onnxruntime as ort

from infgen_rt.backend.protocol import Device
from infgen_rt.common.callers import raise_callers, suppress_but_callers
from infgen_rt.common.notices import warn
from infgen_rt.errors import one_line

_PLUGIN = "onnxruntime-ep-"
# `cache` alone would let two threads register at the same time.
_REGISTERING = Lock()


def devices() -> list[Device]:
    """The devices of all installed plug-in providers. A provider without a usable device is listed with the problem."""
    listed, usable = [], found()
    for name in _names():
        own = [device for owner, device in usable if owner == name]
        about = name.removeprefix(_PLUGIN)
        listed += [Device(identifier(name, device), f"{device.device.type.name} ({about} plug-in)") for device in own]
        if not own:
            listed.append(
                Device(about, f"{about} plug-in", f"{name} finds no device that it can use here: install its driver")
            )
    return listed


def identifier(name: str, device: "ort.OrtEpDevice") -> str:
    """The id of a plug-in's device: `openvino-gpu` for a GPU of the distribution `onnxruntime-ep-openvino`."""
    return f"{name.removeprefix(_PLUGIN)}-{device.device.type.name.lower()}"


def _names() -> list[str]:
    """The names of the installed distributions that are plug-in providers.

    Only the names of folders are read. To ask every distribution for its name would take a tenth of the start-up time.
    """
    pattern, names = _PLUGIN.replace("-", "_") + "*.dist-info", set[str]()
    for folder in sys.path:
        with suppress_but_callers(OSError):  # this user may not read every folder in which Python looks for modules
            names.update(path.name for path in Path(folder).glob(pattern))
    return sorted({name.partition("-")[0].lower().replace("_", "-") for name in names})


def found() -> "tuple[tuple[str, ort.OrtEpDevice], ...]":
    """The devices of plug-in providers, each with the name of its distribution.

    The result is kept, because a library may be registered only once per process.
    """
    with _REGISTERING:
        return _found()


@cache
def _found() -> "tuple[tuple[str, ort.OrtEpDevice], ...]":
    usable = []
    for name in _names():
        try:
            module = importlib.import_module(name.replace("-", "_"))
            before = len(ort.get_ep_devices())
            ort.register_execution_provider_library(name, module.get_library_path())
            usable += [(name, device) for device in ort.get_ep_devices()[before:]]
        # A plug-in that is for another machine or version must not stop the other devices from working.
        except Exception as error:
            raise_callers(error)
            warn(f"{name} cannot be used: {one_line(error)}; update or uninstall it")
    return tuple(usable)
