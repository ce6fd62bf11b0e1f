"""The Core ML backend, for the Neural Engine, GPU and CPU of a Mac."""

import hashlib
import importlib
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from importlib import metadata
from pathlib import Path
from typing import Protocol

import numpy as np

from infgen_rt.backend.protocol import Device, Options, require_version
from infgen_rt.bundle.graphs import Content, apart
from infgen_rt.bundle.manifest import Recipe
from infgen_rt.common.callers import raise_callers, suppress_but_callers
from infgen_rt.common.claims import claim, remove_leftovers
from infgen_rt.common.pixels import FloatArray
from infgen_rt.errors import BackendError, DecodeError, one_line

_DEVICES = {"ane": "Apple Neural Engine", "gpu": "Apple GPU", "cpu": "Apple CPU"}
_WORKING = re.compile(r"\.infgen-coreml\.[0-9a-f]{8}\.part")
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
            self._version = metadata.version("coremltools")
        except metadata.PackageNotFoundError:
            # A frozen app may contain the code without the metadata. If the code is missing, this raises ImportError.
            self._version = importlib.import_module("coremltools").__version__
        require_version("coremltools", self._version)

    def devices(self) -> Sequence[Device]:
        """List the three devices of a Mac; see `infgen_rt.backend.protocol.Backend`."""
        problem = None if sys.platform == "darwin" else "Core ML exists on macOS only"
        return [Device(name, about, problem) for name, about in _DEVICES.items()]

    def arithmetics(self, device: str, recipe: Recipe) -> Sequence[str]:
        """Return the program's own arithmetic. The Neural Engine runs only float16 with one fixed shape."""
        arithmetic = "fp32" if recipe.precision == "fp32" else "fp16"
        if device == "ane" and (arithmetic == "fp32" or len(recipe.shapes) != 1):
            return ()
        return (arithmetic,)

    def load(self, graph: str, files: Mapping[str, Content], options: Options) -> "Session":
        """Compile and load an `.mlpackage`; see `infgen_rt.backend.protocol.Backend`."""
        files, _ = apart(files)  # the package's own file of weights was made from the bundle's
        try:
            with ExitStack() as held:
                folder = _working_folder(options.cache, held)
                package = folder / f"{graph}.mlpackage"
                for name, content in files.items():
                    (package / name).parent.mkdir(parents=True, exist_ok=True)
                    (package / name).write_bytes(content)
                model = open_package(package, _digest(files), options)
                shutil.rmtree(package)
                # If the program was moved to the cache, its folder is no longer needed.
                in_use = _program(package).exists()
                return Session(model, held.pop_all() if in_use else ExitStack())
        # coremltools raises plain RuntimeErrors and any exception of Core ML's bridge.
        except Exception as error:
            text = f"coremltools {self._version} cannot load the graph on {options.device}: {one_line(error)}"
            raise BackendError(text) from error


class Session:
    """A loaded ML program.

    Args:
        model: the program.
        held: removes the files of the program when it is closed. The program needs them while it is loaded.
    """

    def __init__(self, model: Model, held: ExitStack) -> None:
        self._model: Model | None = model
        self._held = held

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
        self._held.close()


def open_package(package: Path, digest: str, options: Options) -> Model:
    """Compile a package, or load the program that was compiled from it before.

    Core ML itself does not keep compiled programs after the process has ended.

    Args:
        package: an `.mlpackage`. It may be deleted afterwards, but the other files in its folder may not.
        digest: the digest of its content.
        options: the device, and the folder in which compiled programs are kept.

    Raises:
        Exception: Core ML cannot compile or load the package. coremltools raises errors of various classes.
    """
    from coremltools import ComputeUnit
    from coremltools.models import CompiledMLModel
    from coremltools.models.utils import compile_model

    units, own = ComputeUnit[_UNITS[options.device]], _program(package)
    # A compiled program works only with the version of the operating system that compiled it.
    kept = options.cache and options.cache / f"{digest}-{platform.mac_ver()[0]}.mlmodelc"
    if kept is not None and kept.exists():
        try:
            model: Model = CompiledMLModel(str(kept), units)
            return model
        except Exception as error:  # it is damaged, so compile it again
            raise_callers(error)
            _move(kept, own.with_stem("damaged"))
    # Other processes may do the same. Each compiles into its own folder, and the first to finish moves it into place.
    compile_model(str(package), str(own))
    if kept is not None:
        _move(own, kept)
    model = CompiledMLModel(str(own if kept is None or own.exists() else kept), units)
    return model


def _program(package: Path) -> Path:
    """The path of the program that is compiled from a package."""
    return package.with_suffix(".mlmodelc")


def _working_folder(cache: Path | None, held: ExitStack) -> Path:
    """Make a folder for this process. Folders that dead processes have left behind are removed.

    Args:
        cache: the folder in which compiled programs are kept. The new folder is inside it, so that programs can be
            moved by renaming. None to use the system's folder for temporary files.
        held: removes the new folder when it is closed.
    """
    parent = cache or Path(tempfile.gettempdir())
    remove_leftovers(parent, _WORKING)
    folder = claim(lambda mark: parent / f".infgen-coreml.{mark}.part", held, 0o700)
    held.callback(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _move(source: Path, target: Path) -> None:
    """Rename a folder, unless the target exists already."""
    with suppress_but_callers(OSError):  # another process has moved its own there
        source.rename(target)


def _digest(files: Mapping[str, Content]) -> str:
    """A digest of the names and the contents of files, as 32 hexadecimal digits."""
    digest = hashlib.sha256()
    for name in sorted(files):
        digest.update(name.encode() + b"\0" + hashlib.sha256(files[name]).digest())
    return digest.hexdigest()[:32]
