"""What makes exports in tests quick: a graph is traced for ONNX only once, and memory is not measured again.

Tracing takes most of the time of an export, and the same module, shapes and options give the same graph. Several tests
export the same tiny model, in processes of their own, so traced graphs are kept in files of pytest's cache. They are
also there the next time, such as for the slow tests after the fast ones, as long as the code stays the same. Memory is
measured by a process for each graph. Tests of other things do not need these figures.
"""

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import onnx
import pytest
from torch import Tensor

import infgen_export
import infgen_model
from infgen_export import footprint
from infgen_export.targets import Options, dims
from infgen_export.targets import onnx as target
from infgen_model.graphs import Graph
from infgen_rt.bundle.manifest import Memory

MEMORY = Memory(
    base=100_000_000,
    prefill_per_cell=20_000,
    decode_per_token=50_000,
    encode_per_cell=50_000,
    refine_per_cell=50_000,
    statistics_per_cell=20_000,
    trunk_per_cell=50_000,
)
"""About what the tiny models need."""


def digest(graph: Graph, example: tuple[Tensor, ...], options: Options) -> str:
    """Of all that a traced graph depends on."""
    shapes = [tuple(value.shape) for value in example]
    found = hashlib.sha256(repr((graph.name, graph.config, graph.bounds, graph.shapes, shapes, options)).encode())
    found.update(str(graph.module.training).encode())
    for name, value in graph.module.state_dict().items():
        found.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        found.update(value.contiguous().numpy().tobytes())
    return found.hexdigest()


def folder_of_traces(config: pytest.Config) -> Path:
    """A folder that all processes of the tests share, for the code and the libraries that trace graphs."""
    code = hashlib.sha256(repr([version(name) for name in ("torch", "onnx", "onnxscript", "onnx-ir")]).encode())
    for package in (infgen_model, infgen_export):
        for file in sorted(Path(package.__path__[0]).rglob("*.py")):
            code.update(file.read_bytes())
    folders = config.cache.mkdir("traces")
    found = folders / code.hexdigest()[:32]
    for outdated in folders.iterdir():
        if outdated != found:
            shutil.rmtree(outdated, ignore_errors=True)
    return found


@contextmanager
def traced_once(folder: Path) -> Iterator[None]:
    """Keep traced graphs in a folder, which several processes may share."""
    trace = target.trace

    def kept(graph: Graph, example: tuple[Tensor, ...], options: Options) -> onnx.ModelProto:
        if target.dynamic_shapes is not dims.dynamic_shapes:  # a test has replaced them
            return trace(graph, example, options)
        file = folder / f"{digest(graph, example, options)}.onnx"
        if not file.exists():
            partial = file.with_suffix(f".{os.getpid()}")
            partial.write_bytes(trace(graph, example, options).SerializeToString())
            partial.rename(file)
        return onnx.load_model_from_string(file.read_bytes())

    folder.mkdir(parents=True, exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(target, "trace", kept)
        yield


@contextmanager
def known_memory() -> Iterator[None]:
    """Exports do not measure memory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(footprint, "measure", lambda bundle, backend: MEMORY)
        yield
