"""Converts a trained checkpoint into a verified bundle of graphs that ``infgen_rt`` runs.

Examples:
    >>> import infgen_export
    >>> report = infgen_export.export("checkpoint", "bundle", targets=["onnx", "openvino"])  # doctest: +SKIP
    >>> print(report)  # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from infgen_runtimes.telemetry import silence_onnxruntime

if TYPE_CHECKING:
    from infgen_export.description import Card
    from infgen_export.pipeline import export
    from infgen_export.report import Report
    from infgen_export.targets import Options

__all__ = ["Card", "Options", "Report", "export"]
# This must happen before a module of this package imports ONNX Runtime.
silence_onnxruntime()

_HOMES = {"Card": "description", "export": "pipeline", "Report": "report", "Options": "targets"}


def __getattr__(name: str) -> Any:
    """Imports the public names when they are first used. They need torch, which would make ``--help`` slow."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
