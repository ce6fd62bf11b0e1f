"""Telemetry of the libraries behind the backends: off, unless the user has turned it on.

It must be off before a library is imported, which is when it starts.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ONNXRUNTIME = "ORT_DISABLE_TELEMETRY"
"""ONNX Runtime's own environment variable; one that the user has set stays as it is."""

_OPENVINO = "openvino_telemetry"


def silence_onnxruntime() -> None:
    """Set ONNX Runtime's variable for this process and its children."""
    os.environ.setdefault(ONNXRUNTIME, "1")


@contextmanager
def without_openvino_telemetry() -> Iterator[None]:
    """While inside, OpenVINO is imported as if its telemetry package, which it can do without, were not installed.

    It has no variable for it, and no other way that leaves its settings in the user's home as they are.
    """
    if _OPENVINO in sys.modules or _is_wanted():
        yield
        return
    # None is how Python notes that a module cannot be imported.
    sys.modules[_OPENVINO] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        sys.modules.pop(_OPENVINO, None)


def _is_wanted() -> bool:
    """Whether the user has accepted it, which OpenVINO's `opt_in_out` writes down."""
    windows = sys.platform == "win32"
    home = os.path.expandvars("$LOCALAPPDATA") if windows else os.path.expanduser("~")
    answer = Path(home) / ("Intel Corporation" if windows else "intel") / _OPENVINO
    try:
        return answer.read_text(encoding="ascii", errors="replace").strip() == "1"
    except OSError:
        return False
