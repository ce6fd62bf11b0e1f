"""ONNX Runtime: CPUs, and whatever its execution providers add when they are installed."""

import contextlib
import importlib
import sys
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from importlib import metadata
from pathlib import Path

import numpy as np
import onnxruntime as ort

from infgen_rt.backend.protocol import Device, Options, Values, require_version
from infgen_rt.bundle.manifest import Recipe
from infgen_rt.common.cancellation import current
from infgen_rt.common.folders import private_folder
from infgen_rt.errors import BackendError, DecodeError, InfGenWarning, one_line

from .ort_arrays import Array, Place

_ERRORS_ONLY, _FATAL_ONLY = 3, 4
_CPU = "CPUExecutionProvider"
# Others exist and are left out: Azure runs nothing here; Core ML and OpenVINO have backends of their own that do more.
_PROVIDERS = {
    "cuda": ("CUDAExecutionProvider", "NVIDIA GPU (CUDA)"),
    "tensorrt": ("TensorrtExecutionProvider", "NVIDIA GPU (TensorRT)"),
    "migraphx": ("MIGraphXExecutionProvider", "AMD GPU (MIGraphX)"),
    "directml": ("DmlExecutionProvider", "GPU (DirectML)"),
    "webgpu": ("WebGpuExecutionProvider", "GPU (WebGPU)"),
    "qnn": ("QNNExecutionProvider", "Qualcomm NPU (QNN)"),
}
_PLUGIN = "onnxruntime-ep-"
# Providers that compute in CUDA's memory, where results may stay, and the graphs' outputs that do.
_CUDA = ("cuda", "tensorrt")
_STAYING = ("features", "context", "image")
_REGION = 64 * 2**20
# What ONNX Runtime computes on the CPU on purpose even where a GPU does the rest: sizes and indices.
_SMALL = frozenset(
    {"Shape", "Gather", "Cast", "Concat", "Slice", "Unsqueeze", "Squeeze", "Range", "Reshape", "Mul", "Add"}
)


class Backend:
    """Runs ONNX graphs."""

    name = "onnxruntime"
    target = "onnx"
    version = ort.__version__
    # A tile a thread takes about 0.8 of the time, on two cores (`benchmarks.studies.parallel`).
    parallel_on = ("cpu",)

    def __init__(self) -> None:
        require_version("onnxruntime", ort.__version__)

    def devices(self) -> Sequence[Device]:
        """The CPU, providers of this build, and plug-in providers; see `infgen_rt.backend.protocol.Backend`."""
        here = ort.get_available_providers()
        found = [Device("cpu", "CPU")]
        for name, (provider, about) in _PROVIDERS.items():
            if provider in here:
                found += [Device(f"{name}:{index}", about) for index in range(_count(provider))]
            elif name == "cuda":
                found.append(Device("cuda:0", about, _without_cuda()))
        return [*found, *_plugin_devices()]

    def arithmetics(self, device: str, recipe: Recipe) -> Sequence[str]:
        """What the graph says: ONNX Runtime does not change precision by itself."""
        if recipe.shapes:
            return ()
        if device == "cpu":
            # It has no float16 arithmetic here: such a graph would run in float32 with casts around every node.
            return () if recipe.precision == "fp16" else ("fp32",)
        return ("fp16",) if recipe.precision == "fp16" else ("fp32",)

    def load(self, graph: str, files: Mapping[str, bytes], options: Options) -> "Session":
        """Load an ONNX graph, which is one file; see `infgen_rt.backend.protocol.Backend`."""
        try:
            (content,) = files.values()
            session = _session(content, options)
        except BackendError:
            raise
        # ONNX Runtime's exceptions have no common base of their own.
        except Exception as error:
            text = f"onnxruntime {ort.__version__} cannot load the graph on {options.device}: {one_line(error)}"
            raise BackendError(text) from error
        if options.device != "cpu":
            _report_fallbacks(session, graph, options.device)
        return Session(session, options, _place(options))


class Session:
    """A loaded ONNX graph.

    Args:
        session: of ONNX Runtime.
        settings: as asked for.
        place: where features, contexts and pixels stay; None for the CPU, as NumPy arrays.
    """

    def __init__(self, session: ort.InferenceSession, settings: Options, place: Place | None = None) -> None:
        self._session: ort.InferenceSession | None = session
        self._settings, self._place = settings, place
        self._outputs = [output.name for output in session.get_outputs()]

    def run(self, inputs: Mapping[str, Values]) -> dict[str, Values]:
        """Run the graph; see `infgen_rt.backend.protocol.Session`."""
        session = self._session
        if session is None:
            raise DecodeError("the session is closed")
        # Of this run alone: another thread's goes on when this one is cancelled.
        options = _run_options(self._settings)
        try:
            with current().interrupting(lambda: setattr(options, "terminate", True)):
                if self._place is None:
                    results = session.run(self._outputs, dict(inputs), options)
                else:
                    results = self._run_there(session, self._place, inputs, options)
        except Exception as error:
            raise DecodeError(f"onnxruntime could not run the graph: {one_line(error)}") from error
        return dict(zip(self._outputs, results, strict=True))

    def _run_there(
        self, session: ort.InferenceSession, place: Place, inputs: Mapping[str, Values], options: ort.RunOptions
    ) -> list[Values]:
        given = {name: value.value() if isinstance(value, Array) else value for name, value in inputs.items()}
        found = place.run(session, given, _STAYING, options)
        return [
            Array(place, value) if name in _STAYING else value.numpy()
            for name, value in zip(self._outputs, found, strict=True)
        ]

    def close(self) -> None:
        """Free the graph, and what the sessions of this process share and none of them uses."""
        session, self._session = self._session, None
        if session is None:
            return
        # The arena gives memory back at the end of a run, but for the region that the results are in: so the last run
        # is of the smallest that there is, and puts its results elsewhere.
        smallest = {
            each.name: np.ones([_least(side) for side in each.shape], np.float32) for each in session.get_inputs()
        }
        last = _run_options(replace(self._settings, keep_memory=False))
        last.log_severity_level = _FATAL_ONLY
        with contextlib.suppress(Exception):  # nothing that an app needs
            results = session.run(self._outputs, smallest, last)
            places = [ort.OrtValue.ortvalue_from_numpy(np.empty_like(result)) for result in results]
            del results
            binding = session.io_binding()
            for name, value in smallest.items():
                binding.bind_cpu_input(name, value)
            for name, place in zip(self._outputs, places, strict=True):
                binding.bind_ortvalue_output(name, place)
            session.run_with_iobinding(binding, last)


def _least(side: int | str) -> int:
    """The smallest number that a dimension may be: a fixed one, `h`, or `8*h`."""
    return side if isinstance(side, int) else int(side.partition("*")[0]) if "*" in side else 1


def _session(content: bytes, options: Options) -> ort.InferenceSession:
    settings = _session_options(options)
    kind, _, index = options.device.partition(":")
    if kind == "cpu":
        return ort.InferenceSession(content, settings, providers=[_CPU])
    settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if kind in _PROVIDERS:
        provider = _PROVIDERS[kind][0]
        chosen = [(provider, _provider_options(kind, int(index or 0), options)), _CPU]
        session = ort.InferenceSession(content, settings, providers=chosen)
        # A provider whose libraries cannot be loaded is dropped with no more than a line on the terminal.
        if provider not in session.get_providers():
            raise BackendError(
                f"onnxruntime {ort.__version__} has {provider}, but it cannot start on {options.device}: are its "
                "driver and libraries installed, in the versions that it needs?"
            )
        return session
    devices = [device for name, device in _plugins() if _plugin_id(name, device) == options.device]
    if not devices:
        raise BackendError(f"onnxruntime finds no device {options.device!r}")
    settings.add_provider_for_devices(devices, {})
    return ort.InferenceSession(content, settings)


def _place(options: Options) -> Place | None:
    kind, _, index = options.device.partition(":")
    if kind not in _CUDA:
        return None
    return _cuda(int(index or 0))


@cache
def _cuda(index: int) -> Place:
    """One for all sessions of the process, whose arrays go from one to another."""
    options = Options(f"cuda:{index}")
    return Place("cuda", index, lambda content: _session(content, options))


def _session_options(options: Options) -> ort.SessionOptions:
    settings = ort.SessionOptions()
    settings.log_severity_level = _ERRORS_ONLY
    # Zero is ONNX Runtime's own choice, one thread a physical core.
    settings.intra_op_num_threads = options.threads or 0
    # Planned reuse of memory is per shape, and tiles differ by a token: without it the peak is 40 % less.
    settings.enable_mem_pattern = False
    # Prefill, refine and decode take turns: what one works in serves the next.
    _share_arena()
    settings.add_session_config_entry("session.use_env_allocators", "1")
    # Threads that wait in a loop take a busy machine's cores from the threads that work.
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return settings


@cache
def _share_arena() -> None:
    """Make the arena on the CPU that all sessions of the process may use; an app's own, if it made one, stays."""
    where = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    # In regions of equal size, which are cut as needed and merged again: tiles of several shapes would leave gaps in
    # regions of the size of what was asked for first (4K with two tiles at a time: 240 MB at the peak instead of 370).
    # But for the first, which is never given back: it is small, and weights are in it.
    region = {"initial_chunk_size_bytes": 2**20, "max_power_of_two_extend_bytes": _REGION}
    region["initial_growth_chunk_size_bytes"] = _REGION
    settings = ort.OrtArenaCfg({"max_mem": 0, "arena_extend_strategy": 0, "max_dead_bytes_per_chunk": 2**20, **region})
    with contextlib.suppress(Exception):  # there is one
        ort.create_and_register_allocator(where, settings)


def _provider_options(kind: str, index: int, options: Options) -> dict[str, str]:
    settings = {"device_id": str(index)}
    if kind == "cuda":
        # The default tries every algorithm of a convolution for every new shape of a tile.
        settings |= {"cudnn_conv_algo_search": "HEURISTIC", "arena_extend_strategy": "kSameAsRequested"}
        # Otherwise products in float32 are rounded to 10 bits.
        settings |= {"use_tf32": "0"}
    # TensorRT's engines are written in place, whenever a shape is new.
    elif kind == "tensorrt" and options.cache is not None and (own := private_folder(options.cache)):
        settings |= {"trt_engine_cache_enable": "1", "trt_engine_cache_path": str(own)}
    return settings if kind not in {"webgpu", "qnn"} else {}


def _run_options(options: Options) -> ort.RunOptions:
    settings = ort.RunOptions()
    if not options.keep_memory:
        arena = options.device if options.device.startswith("cuda") else "cpu:0"
        settings.add_run_config_entry("memory.enable_memory_arena_shrinkage", arena.replace("cuda", "gpu"))
    return settings


def _report_fallbacks(session: ort.InferenceSession, graph: str, device: str) -> None:
    """Warn of work that ONNX Runtime put on the CPU."""
    left: Counter[str] = Counter()
    for part in session.get_provider_graph_assignment_info():
        if part.ep_name == _CPU:
            left.update(node.op_type for node in part.get_nodes() if node.op_type not in _SMALL)
    if left:
        kinds = ", ".join(f"{count} {kind}" for kind, count in left.most_common(5))
        text = f"onnxruntime runs {left.total()} operations of {graph} on the CPU instead of {device}: {kinds}"
        warnings.warn(text, InfGenWarning, stacklevel=2)


def _count(provider: str) -> int:
    """How many devices a provider sees; one where it does not tell."""
    return max(1, [device.ep_name for device in ort.get_ep_devices()].count(provider))


def _without_cuda() -> str:
    here = {name for name in ("onnxruntime", "onnxruntime-gpu") if _installed(name)}
    if here == {"onnxruntime", "onnxruntime-gpu"}:
        return (
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other: pip uninstall -y onnxruntime "
            "onnxruntime-gpu, then pip install 'infgen-rt[cuda]'"
        )
    return (
        "this onnxruntime is the build for CPUs: pip uninstall -y onnxruntime, then pip install 'infgen-rt[cuda]'"
        if "onnxruntime" in here
        else "this onnxruntime has no CUDA provider: pip install 'infgen-rt[cuda]'"
    )


def _installed(distribution: str) -> bool:
    try:
        metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True


def _plugin_devices() -> list[Device]:
    found, devices = [], _plugins()
    for name in _plugin_names():
        own = [device for owner, device in devices if owner == name]
        about = name.removeprefix(_PLUGIN)
        found += [Device(_plugin_id(name, device), f"{device.device.type.name} ({about} plug-in)") for device in own]
        if not own:
            found.append(Device(about, f"{about} plug-in", f"{name} finds no device that it can use here"))
    return found


def _plugin_id(name: str, device: "ort.OrtEpDevice") -> str:
    return f"{name.removeprefix(_PLUGIN)}-{device.device.type.name.lower()}"


def _plugin_names() -> list[str]:
    # By the names of their folders: to ask all that is installed for its name takes a tenth of a start.
    pattern = _PLUGIN.replace("-", "_") + "*.dist-info"
    found = (path.name for folder in sys.path for path in Path(folder).glob(pattern))
    return sorted({name.partition("-")[0].lower().replace("_", "-") for name in found})


@cache
def _plugins() -> "tuple[tuple[str, ort.OrtEpDevice], ...]":
    """Devices of plug-in providers, each with its distribution; a library may be registered once per process."""
    found = []
    for name in _plugin_names():
        try:
            module = importlib.import_module(name.replace("-", "_"))
            before = len(ort.get_ep_devices())
            ort.register_execution_provider_library(name, module.get_library_path())
            found += [(name, device) for device in ort.get_ep_devices()[before:]]
        # A plug-in for another machine or version must not take the CPU away.
        except Exception as error:
            warnings.warn(f"{name} cannot be used: {one_line(error)}", InfGenWarning, stacklevel=2)
    return tuple(found)
