"""Describes the environment of benchmarks: the machine, the versions, and the size of installed packages."""

from __future__ import annotations

import importlib.util
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.methods import PROJECT
from infgen_rt.common.processor import processor_name

PACKAGES = ("infgen_rt", "infgen_model", "infgen_runtimes", "infgen_export", "infgen_training")
LIBRARIES = (PROJECT, "numpy", "pillow", "onnxruntime", "openvino", "torch", "diffusers")


def machine(threads: int) -> dict[str, Any]:
    """The description of the machine for a report."""
    versions = {}
    for name in LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "processor": processor_name(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "threads": threads,
        "versions": versions,
    }


def installed(name: str) -> int:
    """Size in bytes of a distribution's files. It is 0 if the distribution is not installed.

    This project's files are found by its packages, because an editable installation does not list them.
    """
    if name == PROJECT:
        found = (importlib.util.find_spec(package) for package in PACKAGES)
        folders = [Path(spec.origin).parent for spec in found if spec is not None and spec.origin]
        paths = [path for folder in folders for path in folder.rglob("*") if "__pycache__" not in path.parts]
    else:
        try:
            paths = [Path(str(file.locate())) for file in metadata.files(name) or []]
        except metadata.PackageNotFoundError:
            return 0
    return sum(path.stat().st_size for path in paths if path.is_file())
