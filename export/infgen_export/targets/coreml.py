"""The Core ML target: an ML program in an ``.mlpackage``, made from ``torch.export`` and verified without macOS."""

from __future__ import annotations

import shutil
import sys
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import coremltools as ct
import coremltools.optimize.coreml as cto
import numpy as np
import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from infgen_export import mil
from infgen_export.mil.weights import arrays_in
from infgen_export.pool import Array, Pool
from infgen_export.recipes import PRECISIONS, Recipe
from infgen_export.targets import LEAST_WEIGHTS, Options
from infgen_export.targets.dims import described_bounds, dynamic_shapes, sizes
from infgen_model.graphs import Graph
from infgen_rt.bundle.assembly import PARTS, Assembly
from infgen_rt.bundle.graphs import Tensorspec

SUFFIX = ".mlpackage"
SHARED = False
POOLED = True
NAMED = False
BACKEND = None
NATIVE = False
_ATEN = torch.ops.aten
_WEIGHTS = "weight.bin"


@dataclass(frozen=True)
class Traced:
    """A graph that ``torch.export`` has traced.

    Attributes:
        program: The traced program.
        sizes: Sizes of the example that it was traced with, by the names of the dimensions.
    """

    program: ExportedProgram
    sizes: dict[str, int]


def trace(graph: Graph, example: tuple[Tensor, ...], options: Options) -> Traced:
    """Traces a graph for coremltools; see ``Target``.

    Raises:
        ValueError: The example does not fit the graph.
    """
    found = sizes(graph, example)
    exported = torch.export.export(graph.module, example, dynamic_shapes=dynamic_shapes(graph))
    program: ExportedProgram = exported.run_decompositions({})
    _rewrite(program.graph_module.graph)
    return Traced(program, found)


def convert(
    traced: Traced,
    graph: Graph,
    path: Path,
    metadata: Mapping[str, str],
    recipe: Recipe,
    options: Options,
) -> None:
    """Writes a graph as an ``.mlpackage`` folder; see ``Target``."""
    choices = graph.choices() if len(graph.shapes) > 1 else ()
    precision, system = recipe.precision, options.deployment_target
    write_package(traced, graph, path, metadata, precision=precision, deployment_target=system, enumerated=choices)


def write_package(
    traced: Traced,
    graph: Graph,
    path: Path,
    metadata: Mapping[str, str],
    *,
    precision: str = "fp32",
    deployment_target: str = "iOS18",
    enumerated: Sequence[Mapping[str, int]] = (),
) -> None:
    """Writes a graph as an ``.mlpackage`` folder. Its inputs and output are float32 at every precision.

    Values that depend only on coordinates (the implicit positional embedding, sampling matrices, rotary angles) are
    also float32 at every precision, because half precision ruins Fourier features of coordinates.

    Args:
        traced: The result of ``trace``. The sizes of its example are the package's default shapes.
        graph: The graph that was traced.
        path: The ``.mlpackage`` folder to write. An existing one is replaced.
        metadata: Model properties. ``author``, ``licence``, ``version`` and ``model`` also fill Core ML's own fields.
        precision: ``"fp32"``, ``"fp16"``, or ``"int8"`` for fp16 with large weights in 8 bits.
        deployment_target: Oldest system that can run the package, from ``DEPLOYMENT_TARGETS``.
        enumerated: The only sizes that the package accepts, two or more, each with every dimension by name. If empty,
            it accepts all sizes within the graph's bounds.

    Raises:
        ValueError: The precision is unknown, there is only one enumerated size, or a size is outside the graph's
            bounds.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, not {precision!r}")
    shapes = _shapes(graph, traced.sizes, enumerated)
    model = ct.convert(
        traced.program,
        inputs=[
            ct.TensorType(name=spec.name, shape=shape, dtype=np.float32)
            for spec, shape in zip(graph.inputs, shapes, strict=True)
        ],
        outputs=[ct.TensorType(name=graph.output.name, dtype=np.float32)],
        convert_to="mlprogram",
        minimum_deployment_target=ct.target[deployment_target],
        compute_precision=_compute_precision(graph, precision),
        compute_units=ct.ComputeUnit.CPU_ONLY,
        skip_model_load=True,
    )
    if precision == "int8":
        model = _quantize(model)
    _describe(model, graph, {**metadata, **_bounds(graph, enumerated)})
    model.save(str(path))
    # This file maps operations to lines of the torch program, for ExecuTorch. It is larger than many graphs.
    (path / "executorch_debug_handle_mapping.json").unlink(missing_ok=True)
    # coremltools makes its files readable only by the user who wrote them, but a bundle is for everyone.
    for part in (path, *path.rglob("*")):
        part.chmod(0o755 if part.is_dir() else 0o644)


def load(path: Path, graph: str, precision: str | None = None) -> Session | Compiled:
    """Loads a package into the interpreter, or into Core ML for a native precision; see ``Target``."""
    return Compiled(path) if precision else Session(path)


def weights(path: Path) -> dict[str, Array]:
    """The numbers in the package's own files of weights, by file and position; see ``Target``."""
    return {
        f"{file.name}@{start}": array
        for file in sorted(path.rglob(_WEIGHTS))
        for start, array in arrays_in(file.read_bytes()).items()
    }


def pack(path: Path, output: Path, pools: Sequence[Pool]) -> None:
    """Copies the package. Its files of weights are replaced by lists of their parts in the pool; see ``Target``."""
    shutil.copytree(path, output)
    (pool,) = pools
    for file in output.rglob(_WEIGHTS):
        content = file.read_bytes()
        places = {start: (pool.offset(array), array.nbytes) for start, array in arrays_in(content).items()}
        assembly = Assembly.of(content, places)
        assembly.make(pool.file.read_bytes() if pool.file.exists() else b"")  # checks that it is the same file
        file.with_name(f"{file.name}{PARTS}").write_text(assembly.to_json())
        file.unlink()


def native_precisions() -> tuple[str, ...]:
    """On macOS, the precision that Core ML chooses. Elsewhere, there is only the interpreter, which chooses none."""
    return ("apple",) if sys.platform == "darwin" else ()


class Session:
    """A saved package that torch interprets. This verifies the converted program, but not Apple's kernels."""

    def __init__(self, path: Path) -> None:
        self._program = mil.Program(path)

    def __call__(self, inputs: dict[str, Tensor]) -> Tensor:
        """Runs the graph on named inputs."""
        (output,) = self._program.run(inputs).values()
        return output

    @property
    def operations(self) -> Counter[str]:
        """The number of operations of every kind."""
        return self._program.operations


class Compiled:
    """A saved package in Core ML, on the devices that Core ML chooses."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._model = ct.models.MLModel(str(path), compute_units=ct.ComputeUnit.ALL)

    def __call__(self, inputs: dict[str, Tensor]) -> Tensor:
        """Runs the graph on named inputs."""
        (output,) = self._model.predict({name: value.numpy() for name, value in inputs.items()}).values()
        return torch.from_numpy(np.asarray(output, np.float32))

    @property
    def operations(self) -> Counter[str]:
        """The number of operations of every kind."""
        return mil.Program(self._path).operations


def _rewrite(graph: fx.Graph) -> None:
    """Replaces operations that coremltools 9.0 does not support by equivalent ones. torch never runs the result."""
    for node in graph.find_nodes(op="call_function", target=_ATEN.__and__.Tensor):
        node.target = _ATEN.logical_and.default
    for node in graph.find_nodes(op="call_function", target=_ATEN.where.ScalarOther):
        node.target = _ATEN.where.self
    for node in graph.find_nodes(op="call_function", target=_ATEN.reciprocal.default):
        # Core ML's own operation adds 1e-4 to its input, and coremltools does not turn this off.
        node.target, node.args = _ATEN.div.Tensor, (1.0, *node.args)
    for node in graph.find_nodes(op="call_function", target=_ATEN.alias.default):
        _replace(node, node.args[0])
    for node in graph.find_nodes(op="call_function", target=_ATEN.full_like.default):
        # coremltools silently replaces a value that is known only at run time, such as a size, by 0. A minimum
        # broadcasts its operands, so it can take the value itself.
        if all(user.target is _ATEN.minimum.default for user in node.users):
            _replace(node, node.args[1])
        elif isinstance(node.args[1], fx.Node):
            raise NotImplementedError(
                f"{node}: coremltools cannot convert full_like with a value known only at run time"
            )


def _replace(node: fx.Node, by: Any) -> None:
    node.replace_all_uses_with(by)
    node.graph.erase_node(node)


def _shapes(graph: Graph, default: Mapping[str, int], enumerated: Sequence[Mapping[str, int]]) -> list[Any]:
    """The shape of every input, in coremltools' types."""
    if not enumerated:
        return [_ranges(spec, graph, default) for spec in graph.inputs]
    if len(enumerated) < 2:
        raise ValueError("only one shape is enumerated, expected two or more: give the graph equal bounds instead")
    for choice in enumerated:
        for name, (low, high) in graph.bounds.items():
            if not low <= choice[name] <= high:
                raise ValueError(f"{name} is {choice[name]} in an enumerated shape, outside its bounds {low}..{high}")
    return [_choices(spec, enumerated) for spec in graph.inputs]


def _ranges(spec: Tensorspec, graph: Graph, default: Mapping[str, int]) -> tuple[Any, ...]:
    lows, highs = ({name: bound[i] for name, bound in graph.bounds.items()} for i in (0, 1))
    return tuple(
        ct.RangeDim(low, high, default=size) if low < high else size
        for low, high, size in zip(spec.at(lows), spec.at(highs), spec.at(default), strict=True)
    )


def _choices(spec: Tensorspec, enumerated: Sequence[Mapping[str, int]]) -> Any:
    shapes = [spec.at(choice) for choice in enumerated]
    # Core ML pairs the shapes of several inputs by their position in the lists, so repeated shapes have to stay.
    return ct.EnumeratedShapes(shapes, default=shapes[0]) if len(set(shapes)) > 1 else shapes[0]


def _bounds(graph: Graph, enumerated: Sequence[Mapping[str, int]]) -> dict[str, str]:
    """Metadata about the sizes that the package accepts."""
    bounds = dict(graph.bounds)
    listed = {}
    if enumerated:
        bounds = {name: (min(c[name] for c in enumerated), max(c[name] for c in enumerated)) for name in bounds}
        listed = {"shapes": "; ".join(" ".join(f"{name}={c[name]}" for name in bounds) for c in enumerated)}
    return described_bounds(bounds) | listed


def _compute_precision(graph: Graph, precision: str) -> Any:
    if precision == "fp32":
        return ct.precision.FLOAT32
    return ct.transform.FP16ComputePrecision(op_selector=_computed_from(graph.data))


def _computed_from(names: Collection[str]) -> Callable[[Any], bool]:
    """A function that tells whether an operation depends on the values of certain inputs, and not only on shapes."""
    known: dict[Any, bool] = {}

    def depends(value: Any) -> bool:
        if isinstance(value, (list, tuple)):
            return any(depends(part) for part in value)
        return value.name in names if value.op is None else selected(value.op)

    def selected(op: Any) -> bool:
        if op not in known:
            known[op] = op.op_type != "shape" and any(depends(value) for value in op.inputs.values())
        return known[op]

    return selected


def _quantize(model: Any) -> Any:
    config = cto.OptimizationConfig(
        global_config=cto.OpLinearQuantizerConfig(
            mode="linear_symmetric", dtype="int8", granularity="per_channel", weight_threshold=LEAST_WEIGHTS
        )
    )
    for name, weight in cto.get_weights_metadata(model, weight_threshold=LEAST_WEIGHTS).items():
        # The weights of positional operations are those that fp16 has left in float32.
        if weight.val.dtype == np.float32:
            config.set_op_name(name, None)
    return cto.linear_quantize_weights(model, config)


def _describe(model: Any, graph: Graph, metadata: Mapping[str, str]) -> None:
    model.author = metadata.get("author", "")
    model.license = metadata.get("licence", "")
    model.version = metadata.get("version", "")
    model.short_description = f"{metadata.get('model', 'InfGen')}: {graph.name}"
    # Without the date, two conversions of the same model are equal.
    model.user_defined_metadata.pop("com.github.apple.coremltools.conversion_date", None)
    model.user_defined_metadata.update(metadata)
    for spec in graph.inputs:
        model.input_description[spec.name] = spec.about
    model.output_description[graph.output.name] = graph.output.about
