"""The Core ML backend, for the Neural Engine, GPU and CPU of a Mac."""

import contextlib
import hashlib
import importlib
import platform
import secrets
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Protocol

import numpy as np

from infgen_rt.backend.protocol import Device, Options, require_version
from infgen_rt.bundle.graphs import Content
from infgen_rt.bundle.manifest import Recipe
from infgen_rt.common.pixels import FloatArray
from infgen_rt.errors import BackendError, DecodeError, one_line

_DEVICES = {"ane": "Apple Neural Engine", "gpu": "Apple GPU", "cpu": "Apple CPU"}
_UNITS = {"ane": "CPU_AND_NE", "gpu": "CPU_AND_GPU", "cpu": "CPU_ONLY"}


class Model(Protocol):
    """A model loaded by coremltools."""

    def predict(self, data: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
        """Returns the outputs by name, for inputs by name."""
        ...


class Backend:
    """Runs ML programs."""

    name = "coreml"
    target = "coreml"
    # Core ML decides by itself where it runs each operation.
    parallel_on = ()

    def __init__(self) -> None:
        try:
            self.version = metadata.version("coremltools")
        except metadata.PackageNotFoundError:
            # A frozen app may contain the code without the metadata. If the code is missing, this raises ImportError.
            self.version = importlib.import_module("coremltools").__version__
        require_version("coremltools", self.version)

    def devices(self) -> Sequence[Device]:
        """The three devices of a Mac; see `infgen_rt.backend.protocol.Backend`."""
        problem = None if sys.platform == "darwin" else "Core ML exists on macOS only: pass another backend (--backend)"
        return [Device(name, about, problem) for name, about in _DEVICES.items()]

    def arithmetics(self, device: str, recipe: Recipe) -> Sequence[str]:
        """The program's own arithmetic. The Neural Engine takes only fixed shapes in float16."""
        arithmetic = "fp32" if recipe.precision == "fp32" else "fp16"
        if device == "ane" and (arithmetic == "fp32" or len(recipe.shapes) != 1):
            return ()
        return (arithmetic,)

    def load(self, graph: str, files: Mapping[str, Content], options: Options) -> "Session":
        """Compile and load an `.mlpackage`; see `infgen_rt.backend.protocol.Backend`."""
        try:
            with tempfile.TemporaryDirectory() as folder:
                package = Path(folder) / f"{graph}.mlpackage"
                for name, content in files.items():
                    (package / name).parent.mkdir(parents=True, exist_ok=True)
                    (package / name).write_bytes(content)
                return Session(open_package(package, _digest(files), options))
        # coremltools raises plain RuntimeErrors and any exception of Core ML's bridge.
        except Exception as error:
            text = f"coremltools {self.version} cannot load the graph on {options.device}: {one_line(error)}"
            raise BackendError(text) from error


class Session:
    """A loaded ML program."""

    def __init__(self, model: Model) -> None:
        self._model: Model | None = model

    def run(self, inputs: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
        """Run the graph; see `infgen_rt.backend.protocol.Session`."""
        model = self._model
        if model is None:
            raise DecodeError("the session is closed: open the model again")
        try:
            results = model.predict(dict(inputs))
        except Exception as error:
            raise DecodeError(f"Core ML could not run the graph: {one_line(error)}") from error
        return {name: np.ascontiguousarray(result, np.float32) for name, result in results.items()}

    def close(self) -> None:
        """Free the graph."""
        self._model = None


def open_package(package: Path, digest: str, options: Options) -> Model:
    """Compile a package, or load the program that was compiled from it before.

    Core ML itself does not keep compiled programs after the process has ended.

    Args:
        package: an `.mlpackage`. It may be deleted afterwards.
        digest: the digest of its content.
        options: the device, and the folder in which compiled programs are kept.
    """
    from coremltools import ComputeUnit
    from coremltools.models import CompiledMLModel
    from coremltools.models.utils import compile_model

    units = ComputeUnit[_UNITS[options.device]]
    if options.cache is None:
        model: Model = CompiledMLModel(compile_model(str(package)), units)
        return model
    # A compiled program is for one version of the operating system.
    kept = options.cache / f"{digest}-{platform.mac_ver()[0]}.mlmodelc"
    own = kept.with_stem(f"{kept.stem}-{secrets.token_hex(4)}")
    if kept.exists():
        try:
            model = CompiledMLModel(str(kept), units)
            return model
        except Exception:  # it is damaged, so compile it again
            _move(kept, own)
            shutil.rmtree(own, ignore_errors=True)
    # Other processes may do the same. Each compiles into its own folder, and the first to finish moves it into place.
    compile_model(str(package), str(own))
    _move(own, kept)
    model = CompiledMLModel(str(kept if kept.exists() else own), units)
    shutil.rmtree(own, ignore_errors=True)
    return model


def _move(source: Path, target: Path) -> None:
    with contextlib.suppress(OSError):  # another process was first
        source.rename(target)


def _digest(files: Mapping[str, Content]) -> str:
    digest = hashlib.sha256()
    for name in sorted(files):
        digest.update(name.encode() + b"\0" + hashlib.sha256(files[name]).digest())
    return digest.hexdigest()[:32]
