"""The OpenVINO backend, for Intel CPUs, GPUs and NPUs, and any other x86 or Arm CPU."""

import contextlib
import hashlib
import io
import os
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from threading import Lock

import numpy as np

from infgen_rt.backend.forks import keep_in_children
from infgen_rt.backend.protocol import Device, Options, require_version
from infgen_rt.bundle.graphs import Content
from infgen_rt.bundle.manifest import Recipe
from infgen_rt.common.callers import raise_callers, suppress_but_callers
from infgen_rt.common.cancellation import current
from infgen_rt.common.folders import read_checked, write_checked
from infgen_rt.common.pixels import FloatArray
from infgen_rt.common.remedies import reinstalling
from infgen_rt.common.shortages import remedy
from infgen_rt.errors import BackendError, DecodeError, one_line
from infgen_runtimes.telemetry import without_openvino_telemetry

if os.environ.get("LD_PRELOAD"):
    # oneTBB loads a library with RTLD_DEEPBIND, which crashes the process if another malloc is preloaded, as WebUIs do.
    # With this variable, it does not.
    os.environ.setdefault("TBB_ENABLE_SANITIZERS", "1")
with without_openvino_telemetry():
    import openvino as ov

SUFFIX = ".xml"
# Version of the way in which graphs are cut in two. Compiled graphs of another version do not fit.
_CUT = 2
# The number of operations, prepared for certain shapes, that a graph keeps for later runs. With OpenVINO's default, the
# memory grows with every new size of a picture. After runs in 64 shapes, all graphs for two stages took 635 MB with 16,
# and 549 MB with this number. No number made pictures faster.
_PREPARED = 2
# `cache` alone would let two threads make a core at the same time.
_MAKING = Lock()
_HINTS = {"fp32": "f32", "fp16": "f16", "bf16": "bf16"}
_REMEDIES = {
    "gpu": ("Intel GPU", "OpenVINO finds no Intel GPU: if there is one, install its compute driver (OpenCL)"),
    "npu": ("Intel NPU", "OpenVINO finds no Intel NPU: if there is one, install its driver"),
}


class Backend:
    """Runs OpenVINO graphs."""

    name = "openvino"
    target = "openvino"
    parallel_on = ("cpu",)
    # Each run costs some milliseconds, and larger tiles have less halo. In bfloat16 and with two cores, 3840x2160
    # pixels from 64x64 cells take 0.92 s in tiles of 88 tokens a side, and 0.80 s in tiles of 128.
    largest_tile = 128
    # A forked process that uses OpenVINO again crashes when it ends (OpenVINO 2026.4).
    survives_fork = False

    def __init__(self) -> None:
        require_version("openvino", ov.__version__)

    def devices(self) -> Sequence[Device]:
        """List the devices that OpenVINO finds, and the missing kinds; see `infgen_rt.backend.protocol.Backend`."""
        core = shared_core()
        found = [Device(_id(name), core.get_property(name, "FULL_DEVICE_NAME")) for name in core.available_devices]
        kinds = {device.id.partition(":")[0] for device in found}
        if "cpu" not in kinds:
            found.append(Device("cpu", "CPU", _without_cpu(core)))
        return [*found, *(Device(kind, *about) for kind, about in _REMEDIES.items() if kind not in kinds)]

    def arithmetics(self, device: str, recipe: Recipe) -> Sequence[str]:
        """Return float32 and the device's native arithmetics. Graphs with fixed shapes are only for NPUs."""
        kind = device.partition(":")[0]
        if kind == "npu":
            return ("fp16",) if recipe.shapes else ()
        if recipe.shapes:
            return ()
        if kind == "gpu":
            return ("fp32", "fp16")
        capabilities = shared_core().get_property(_name(device), "OPTIMIZATION_CAPABILITIES")
        return ("fp32", "bf16") if "BF16" in capabilities else ("fp32",)

    def load(self, graph: str, files: Mapping[str, Content], options: Options) -> "Session":
        """Load a graph's `.xml` with the file of its weights; see `infgen_rt.backend.protocol.Backend`."""
        settings: dict[str, object] = {}
        if options.device == "cpu":
            settings["CPU_RUNTIME_CACHE_CAPACITY"] = _PREPARED
        if options.threads is not None and options.device == "cpu":
            settings["INFERENCE_NUM_THREADS"] = options.threads * options.runs
        if options.runs > 1 and options.device == "cpu":
            # OpenVINO binds several models with one thread each to the same core, but not the streams of one model.
            settings["NUM_STREAMS"] = options.runs
        try:
            core = shared_core()
            precision, device = _HINTS[options.arithmetic], _name(options.device)
            kept = None
            if options.cache is not None and "EXPORT_IMPORT" in core.get_property(device, "OPTIMIZATION_CAPABILITIES"):
                full_name = core.get_property(device, "FULL_DEVICE_NAME")
                about = [_CUT, ov.get_version(), device, full_name, precision, settings]
                digest = hashlib.sha256(repr(about).encode())
                for _, content in sorted(files.items()):
                    digest.update(hashlib.sha256(content).digest())
                kept = options.cache / digest.hexdigest()[:32]
            return Session(core, partial(read_model, core, files), precision, settings, device, kept)
        # OpenVINO raises plain RuntimeErrors. A ValueError means that the bundle lacks one of the files.
        except Exception as error:
            text = f"openvino {ov.__version__} cannot load the graph on {options.device}: {one_line(error)}"
            raise BackendError(text) from error


def read_model(core: ov.Core, files: Mapping[str, Content]) -> ov.Model:
    """Read a graph from the contents of its files, without compiling it.

    Args:
        core: the OpenVINO core.
        files: the contents of the graph's `.xml` file and of its file of weights, by name.

    Raises:
        ValueError: there is not exactly one file of each kind.
        RuntimeError: OpenVINO cannot read the graph.
    """
    (description,) = (content for name, content in files.items() if name.endswith(SUFFIX))
    # In bundles up to format 5, each graph has a second file.
    (weights,) = (content for name, content in files.items() if not name.endswith(SUFFIX))
    return core.read_model(bytes(description), ov.Tensor(np.frombuffer(weights, np.uint8)))


class Session:
    """A loaded graph.

    For arithmetics below float32, the graph is cut in two. The operations that depend only on coordinates (embedding,
    sampling, angles) become a separate model in float32. OpenVINO's CPU plug-in can exclude single operations from
    bfloat16, but not the reshapes between them. At 1,000 cells, positions in bfloat16 are rounded to multiples of 4.

    Args:
        core: the OpenVINO core.
        read: reads the model without compiling it. Inputs of four dimensions have data, and the others have
            coordinates. It is not called if the compiled graph was kept.
        precision: the precision of the arithmetic, as a value of `INFERENCE_PRECISION_HINT`.
        settings: further properties of the device's plug-in.
        device: OpenVINO's name of the device.
        kept: the prefix of the files in which the compiled graph is kept. None to keep no files.
    """

    def __init__(
        self,
        core: ov.Core,
        read: Callable[[], ov.Model],
        precision: str,
        settings: Mapping[str, object],
        device: str = "CPU",
        kept: Path | None = None,
    ) -> None:
        self._compile: Callable[[], list[ov.CompiledModel]] | None = partial(
            _compiled, core, read, precision, settings, device, kept
        )
        self._on_cpu = device == "CPU"
        self._lock = Lock()
        self._models = self._compile()
        self._outputs = [port.any_name for port in self._models[-1].outputs]

    def run(self, inputs: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
        """Run the graph; see `infgen_rt.backend.protocol.Session`."""
        values: dict[str, object] = dict(inputs)
        models: list[ov.CompiledModel] = []
        try:
            models = self._loaded()
            # The results are not copied, so each run has requests of its own, which hold its results.
            for part in [model.create_infer_request() for model in models]:
                # After optimisation, a tensor may have several names. One of them is the name in the graph.
                feed = [next(values[name] for name in port.names if name in values) for port in part.model_inputs]
                with current().interrupting(part.cancel):
                    _infer(part, feed)
                values.update((name, part.get_tensor(port).data) for port in part.model_outputs for name in port.names)
        except BaseException as error:
            # A run that is stopped midway leaves some operations with its own shapes and others with those of the
            # previous run. The next run would fail (OpenVINO 2026.4), so the models are compiled again.
            with self._lock:
                if self._models is models:
                    self._models = []
            if isinstance(error, DecodeError) or not isinstance(error, Exception):
                raise
            raise DecodeError(f"openvino could not run the graph: {one_line(error)}") from error
        return {name: np.asarray(values[name], np.float32) for name in self._outputs}

    def release(self) -> None:
        """Release the working memory, of which OpenVINO keeps as much as the largest run needed."""
        if self._on_cpu:  # on other devices, this is not tested
            with suppress_but_callers(RuntimeError):  # if it fails, memory stays allocated, but nothing else is wrong
                for model in self._models:
                    model.release_memory()

    def close(self) -> None:
        """Free the graph."""
        with self._lock:
            self._models, self._compile = [], None

    def _loaded(self) -> list[ov.CompiledModel]:
        """Return the compiled models.

        Raises:
            DecodeError: the session is closed.
        """
        with self._lock:
            if self._compile is None:
                raise DecodeError("the session is closed: open the model again")
            if not self._models:
                self._models = self._compile()
            return self._models


def _infer(request: ov.InferRequest, feed: list[object]) -> None:
    """Run a request. Unlike OpenVINO's own `infer`, this can be cancelled even if OpenVINO has only one thread."""
    try:
        request.start_async(feed, share_inputs=True)
        request.wait()
    except BaseException:
        # If a signal handler raised the error, the run goes on. Its inputs must not be freed before it ends.
        request.cancel()
        with contextlib.suppress(RuntimeError):
            request.wait()
        raise


def _compiled(
    core: ov.Core,
    read: Callable[[], ov.Model],
    precision: str,
    settings: Mapping[str, object],
    device: str,
    kept: Path | None,
) -> list[ov.CompiledModel]:
    """The compiled parts of a graph, which come from the files in which they were kept before, if there are any.

    OpenVINO's own cache is not used. It writes files in place and maps them into memory. If several processes find it
    empty at the same time, some of them crash.
    """
    if kept is not None and (restored := _restored(core, precision, settings, device, kept)):
        return restored
    model = read()
    parts = [(model, precision)]
    if precision != "f32" and (halves := _cut(model)):
        parts = [(halves[0], "f32"), (halves[1], precision)]
    compiled = [core.compile_model(part, device, _with(settings, hint)) for part, hint in parts]
    if kept is not None:
        with suppress_but_callers(OSError, RuntimeError):  # if this fails, the next process compiles the graph again
            for each, file in zip(compiled, _files(kept, len(compiled)), strict=True):
                blob = io.BytesIO()
                each.export_model(blob)
                write_checked(file, blob.getvalue())
    return compiled


def _restored(
    core: ov.Core, precision: str, settings: Mapping[str, object], device: str, kept: Path
) -> list[ov.CompiledModel] | None:
    """The compiled parts of a graph that were kept. None if one is missing or damaged."""
    for hints in ((precision,),) if precision == "f32" else (("f32", precision), (precision,)):
        contents = [content for file in _files(kept, len(hints)) if (content := read_checked(file))]
        if len(contents) == len(hints):
            with suppress_but_callers(RuntimeError):  # they are of a version that the files' names do not distinguish
                return [
                    core.import_model(content, device, _with(settings, hint))
                    for content, hint in zip(contents, hints, strict=True)
                ]
    return None


def _files(kept: Path, count: int) -> list[Path]:
    """The files of a graph that was compiled in ``count`` parts."""
    return [kept.with_name(f"{kept.name}-{number}-of-{count}.blob") for number in range(1, count + 1)]


def _with(settings: Mapping[str, object], precision: str) -> dict[str, object]:
    return {**settings, "INFERENCE_PRECISION_HINT": precision}


def _cut(model: ov.Model) -> tuple[ov.Model, ov.Model] | None:
    """Split a model into its positional part and the rest.

    Returns:
        The positional part, and the rest, which takes the outputs of the positional part as further inputs. None if
        there is no positional part.
    """
    first, second = model.clone(), model.clone()
    names = _apart(first)
    outputs = [source for source, _ in _crossing(first, names).values()]
    if not any(output.get_element_type() == ov.Type.f32 for output in outputs):
        return None
    parameters = []
    for number, (source, ports) in enumerate(_crossing(second, names).values()):
        # The tensor keeps its other names, because it may be an input of the graph, which is looked up by name.
        outputs[number].get_tensor().add_names({f"positional_{number}"})
        parameter = ov.opset13.parameter(source.get_partial_shape(), source.get_element_type())
        parameter.output(0).get_tensor().set_names({f"positional_{number}"})
        for port in ports:
            port.replace_source_output(parameter.output(0))
        parameters.append(parameter)
    positional = ov.Model(outputs, first.get_parameters(), "positional")
    return positional, ov.Model(second.get_results(), [*_data(second), *parameters], "rest")


def _apart(model: ov.Model) -> set[str]:
    """The names of the positional operations.

    They depend on inputs. If these include inputs with data, only the shapes of those matter.
    """
    data = {parameter.get_friendly_name() for parameter in _data(model)}
    others = {parameter.get_friendly_name() for parameter in model.get_parameters()} - data
    tainted, positional = set(data), set(others)
    for operation in model.get_ordered_ops():
        name, sources = operation.get_friendly_name(), set(_sources(operation))
        if operation.get_type_name() == "ShapeOf" and sources <= data:
            positional.add(name)
        elif not tainted.isdisjoint(sources):
            tainted.add(name)
        elif not positional.isdisjoint(sources):
            positional.add(name)
    return positional - others


def _crossing(model: ov.Model, names: set[str]) -> dict[str, tuple[ov.Output, list[ov.Input]]]:
    """The outputs of positional operations that the other operations use, and the ports that use them.

    Args:
        model: the model.
        names: the names of the positional operations.

    Returns:
        The outputs and ports in topological order. The keys name the outputs.
    """
    data = _data(model)
    sources = names | {each.get_friendly_name() for each in model.get_parameters() if each not in data}
    found: dict[str, tuple[ov.Output, list[ov.Input]]] = {}
    for operation in model.get_ordered_ops():
        if operation.get_friendly_name() in sources:
            continue
        for port in operation.inputs():
            source = port.get_source_output()
            name = source.get_node().get_friendly_name()
            if name in sources:
                found.setdefault(f"{name}:{source.get_index()}", (source, []))[1].append(port)
    return found


def _data(model: ov.Model) -> list[ov.Node]:
    """The inputs that have data, which are those with four dimensions."""
    return [parameter for parameter in model.get_parameters() if parameter.get_partial_shape().rank.get_length() == 4]


def _sources(operation: ov.Node) -> list[str]:
    return [port.get_source_output().get_node().get_friendly_name() for port in operation.inputs()]


def _without_cpu(core: ov.Core) -> str:
    """The reason why OpenVINO cannot use the CPU. Usually, this is too little memory, or a damaged installation."""
    try:
        core.get_property("CPU", "FULL_DEVICE_NAME")
    # OpenVINO raises plain RuntimeErrors.
    except Exception as error:
        raise_callers(error)
        text = one_line(error)
        return f"{text}; {remedy(text) or reinstalling(('openvino',))}"
    return f"OpenVINO does not list it; {reinstalling(('openvino',))}"


def shared_core() -> ov.Core:
    """Return the core of this process, which is never deleted. Nothing else may make one.

    When a core first uses the CPU, OpenVINO gives the thread a new stack for signal handlers. When the core is deleted,
    OpenVINO restores the previous stack (OpenVINO 2026.4). If that one belonged to another core that is already
    deleted, the next signal with a Python handler, such as Ctrl-C, crashes the process.
    """
    with _MAKING:
        return _core()


@cache
def _core() -> ov.Core:
    core = ov.Core()
    keep_in_children(core)
    return core


def _id(name: str) -> str:
    """Convert OpenVINO's name of a device, such as `GPU.1`, to ours, `gpu:1`."""
    return name.lower().replace(".", ":")


def _name(device: str) -> str:
    """Convert our id of a device, such as `gpu:1`, to OpenVINO's name, `GPU.1`."""
    return device.upper().replace(":", ".")
