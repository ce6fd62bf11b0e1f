"""Turns off the telemetry of the backends' libraries, unless the user has turned it on.

This must happen before a library is imported, because importing it starts the telemetry.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ONNXRUNTIME = "ORT_DISABLE_TELEMETRY"
"""ONNX Runtime's environment variable for this. If the user has set it, it is not changed."""

_OPENVINO = "openvino_telemetry"


def silence_onnxruntime() -> None:
    """Set ONNX Runtime's environment variable for this process and its children, unless it is set already."""
    os.environ.setdefault(ONNXRUNTIME, "1")


@contextmanager
def without_openvino_telemetry() -> Iterator[None]:
    """A context in which OpenVINO is imported as if its optional telemetry package were not installed.

    OpenVINO has no environment variable for this. Other ways would change the settings in the user's home folder.
    """
    if _OPENVINO in sys.modules or _is_wanted():
        yield
        return
    # None tells Python that the module cannot be imported.
    sys.modules[_OPENVINO] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        sys.modules.pop(_OPENVINO, None)


def _is_wanted() -> bool:
    """Whether the user has turned OpenVINO's telemetry on with its command `opt_in_out`."""
    windows = sys.platform == "win32"
    home = os.path.expandvars("$LOCALAPPDATA") if windows else os.path.expanduser("~")
    answer = Path(home) / ("Intel Corporation" if windows else "intel") / _OPENVINO
    try:
        return answer.read_text(encoding="ascii", errors="replace").strip() == "1"
    except OSError:
        return False
