"""The ONNX Runtime backend, for CPUs and for the devices of all installed execution providers."""

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import onnxruntime as ort

from infgen_rt.backend.protocol import KNOWN, Device, Options, Values, require_version
from infgen_rt.bundle.graphs import Content, apart
from infgen_rt.bundle.manifest import Recipe
from infgen_rt.common.callers import suppress_but_callers
from infgen_rt.common.cancellation import current
from infgen_rt.common.folders import private_folder
from infgen_rt.common.limits import available_memory
from infgen_rt.common.memory import MIB
from infgen_rt.common.notices import warn
from infgen_rt.common.remedies import installed, installing, is_frozen
from infgen_rt.errors import BackendError, DecodeError, one_line

from . import ort_plugins
from .ort_arrays import Array, Place

_ERRORS_ONLY, _FATAL_ONLY = 3, 4
_CPU = "CPUExecutionProvider"
# Other providers are left out: Azure's runs nothing locally, and the backends for Core ML and OpenVINO can do more.
_PROVIDERS = {
    "cuda": ("CUDAExecutionProvider", "NVIDIA GPU (CUDA)"),
    "tensorrt": ("TensorrtExecutionProvider", "NVIDIA GPU (TensorRT)"),
    "migraphx": ("MIGraphXExecutionProvider", "AMD GPU (MIGraphX)"),
    "directml": ("DmlExecutionProvider", "GPU (DirectML)"),
    "webgpu": ("WebGpuExecutionProvider", "GPU (WebGPU)"),
    "qnn": ("QNNExecutionProvider", "Qualcomm NPU (QNN)"),
}
# Providers whose arrays are in CUDA's memory, and the names of the outputs that stay there.
_CUDA = ("cuda", "tensorrt")
_STAYING = ("features", "fine", "context", "image")
# The smallest and largest size in bytes of the regions in which the arena takes memory; see `_share_arena`.
_REGIONS = (64 * MIB, 1024 * MIB)
# Operations that ONNX Runtime deliberately runs on the CPU even with a GPU, because they compute sizes and indices.
_SMALL = frozenset(
    {"Shape", "Gather", "Cast", "Concat", "Slice", "Unsqueeze", "Squeeze", "Range", "Reshape", "Mul", "Add"}
)


class Backend:
    """Runs ONNX graphs."""

    name = "onnxruntime"
    target = "onnx"
    # On two cores, tiles in parallel with one thread each take 0.8 of the time (`benchmarks.studies.parallel`).
    parallel_on = ("cpu",)

    def __init__(self) -> None:
        require_version("onnxruntime", ort.__version__)

    def devices(self) -> Sequence[Device]:
        """List the CPU and the devices of built-in and plug-in providers; see `infgen_rt.backend.protocol.Backend`."""
        here = ort.get_available_providers()
        found = [Device("cpu", "CPU")]
        for name, (provider, about) in _PROVIDERS.items():
            if provider in here:
                found += [Device(f"{name}:{index}", about) for index in range(_count(provider))]
            elif name == "cuda":
                found.append(Device("cuda:0", about, _without_cuda()))
        return [*found, *ort_plugins.devices()]

    def arithmetics(self, device: str, recipe: Recipe) -> Sequence[str]:
        """Return the graph's own arithmetic, because ONNX Runtime does not change the precision by itself."""
        if recipe.shapes:
            return ()
        if device == "cpu":
            # ONNX Runtime has no float16 arithmetic on CPUs. It would run in float32, with casts around every node.
            return () if recipe.precision == "fp16" else ("fp32",)
        return ("fp16",) if recipe.precision == "fp16" else ("fp32",)

    def load(self, graph: str, files: Mapping[str, Content], options: Options) -> "Session":
        """Load an ONNX graph and the weights that it refers to; see `infgen_rt.backend.protocol.Backend`."""
        try:
            own, weights = apart(files)
            (content,) = own.values()
            session = _session(content, options, weights)
        except BackendError:
            raise
        # ONNX Runtime's exceptions have no common base class.
        except Exception as error:
            text = f"onnxruntime {ort.__version__} cannot load the graph on {options.device}: {one_line(error)}"
            raise BackendError(text) from error
        if options.device != "cpu":
            _report_fallbacks(session, graph, options.device)
        return Session(session, options, _place(options))


class Session:
    """A loaded ONNX graph.

    Args:
        session: the ONNX Runtime session.
        settings: the options with which it was loaded.
        place: the device on which features, contexts and pixels stay. None if all results are NumPy arrays.
    """

    def __init__(self, session: ort.InferenceSession, settings: Options, place: Place | None = None) -> None:
        self._session: ort.InferenceSession | None = session
        self._settings, self._place = settings, place
        self._outputs = [output.name for output in session.get_outputs()]

    def run(self, inputs: Mapping[str, Values]) -> dict[str, Values]:
        """Run the graph; see `infgen_rt.backend.protocol.Session`."""
        session = self._session
        if session is None:
            raise DecodeError("the session is closed: open the model again")
        # Each run has its own options. Otherwise, cancelling this run would also stop the runs of other threads.
        options = ort.RunOptions()
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
        """Run the graph on a device. The outputs in `_STAYING` stay there, and the others become NumPy arrays."""
        given = {name: value.value() if isinstance(value, Array) else value for name, value in inputs.items()}
        found = place.run(session, given, _STAYING, options)
        return [
            Array(place, value) if name in _STAYING else value.numpy()
            for name, value in zip(self._outputs, found, strict=True)
        ]

    def release(self) -> None:
        """Free unused memory of the arena that the sessions of this process share."""
        # It takes runs with other shapes, for which some providers would compile the graph again.
        if (session := self._session) is not None and self._settings.device.partition(":")[0] in ("cpu", "cuda"):
            _shrink_arena(session, self._settings)

    def close(self) -> None:
        """Free the graph, and unused memory of the arena that the sessions of this process share."""
        session, self._session = self._session, None
        if session is not None:
            _shrink_arena(session, self._settings)


def _shrink_arena(session: ort.InferenceSession, settings: Options) -> None:
    """Free the unused memory of the arena that a session uses.

    The arena does so only at the end of a run, except for the region that holds the results. So the session is run with
    the smallest possible shapes, and again with results outside of the arena.
    """
    smallest = {each.name: np.ones([_least(side) for side in each.shape], np.float32) for each in session.get_inputs()}
    options = ort.RunOptions()
    options.log_severity_level = _FATAL_ONLY
    arena = settings.device if settings.device.startswith("cuda") else "cpu:0"
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", arena.replace("cuda", "gpu"))
    names = [output.name for output in session.get_outputs()]
    with suppress_but_callers(Exception):  # if it fails, memory stays allocated, but nothing else is wrong
        results = session.run(names, smallest, options)
        places = [ort.OrtValue.ortvalue_from_numpy(np.empty_like(result)) for result in results]
        del results
        binding = session.io_binding()
        for name, value in smallest.items():
            binding.bind_cpu_input(name, value)
        for name, place in zip(names, places, strict=True):
            binding.bind_ortvalue_output(name, place)
        session.run_with_iobinding(binding, options)


def _least(side: int | str) -> int:
    """The smallest size of a dimension, which is a fixed number, or a name with or without a factor: `h` or `8*h`."""
    return side if isinstance(side, int) else int(side.partition("*")[0]) if "*" in side else 1


def _session(content: Content, options: Options, weights: Mapping[str, Content]) -> ort.InferenceSession:
    """Make a session of a graph on the device that the options name.

    Raises:
        BackendError: the device does not exist, or its provider cannot start.
    """
    settings = _session_options(options)
    add_weights(settings, weights)
    kind, _, index = options.device.partition(":")
    if kind == "cpu":
        return _inference(content, settings, [_CPU])
    settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if kind in _PROVIDERS:
        provider = _PROVIDERS[kind][0]
        chosen = [(provider, _provider_options(kind, int(index or 0), options)), _CPU]
        session = _inference(content, settings, chosen)
        # If a provider's libraries cannot be loaded, ONNX Runtime drops the provider and only prints a line.
        if provider not in session.get_providers():
            raise BackendError(
                f"onnxruntime {ort.__version__} has {provider}, but it cannot start on {options.device}: install its "
                "driver and libraries in the versions that this onnxruntime needs (see its documentation), or pass "
                "device='cpu' (--device cpu)"
            )
        return session
    devices = [device for name, device in ort_plugins.found() if ort_plugins.identifier(name, device) == options.device]
    if not devices:
        raise BackendError(f"onnxruntime finds no device {options.device!r}: `infgen-rt devices` lists all")
    settings.add_provider_for_devices(devices, {})
    return _inference(content, settings)


def add_weights(settings: ort.SessionOptions, weights: Mapping[str, Content]) -> None:
    """Give a session that is to be made the files of weights that its graph refers to, by name. They stay in memory."""
    if weights:
        contents = list(weights.values())
        settings.add_external_initializers_from_files_in_memory([*weights], contents, [len(each) for each in contents])


def _inference(content: Content, settings: ort.SessionOptions, providers: Sequence[Any] = ()) -> ort.InferenceSession:
    """Make a session that does not fall back to the CPU after an error.

    ONNX Runtime would do so by default, even after an error that the app's own signal handler has raised.
    """
    return ort.InferenceSession(content, settings, providers=[*providers] or None, enable_fallback=0)


def _place(options: Options) -> Place | None:
    """The place for results that stay on the device. None if the device is not one of CUDA's."""
    kind, _, index = options.device.partition(":")
    if kind not in _CUDA:
        return None
    return _cuda(int(index or 0))


@cache
def _cuda(index: int) -> Place:
    """The place that all sessions of the process share, so that they can exchange arrays."""
    options = Options(f"cuda:{index}")
    return Place("cuda", index, lambda content: _session(content, options, {}))


def _session_options(options: Options) -> ort.SessionOptions:
    settings = ort.SessionOptions()
    # On the CPU, every error that ONNX Runtime prints is raised too. A GPU's provider only prints why it cannot start.
    settings.log_severity_level = _FATAL_ONLY if options.device == "cpu" else _ERRORS_ONLY
    # Zero is ONNX Runtime's default, one thread per physical core.
    settings.intra_op_num_threads = options.threads or 0
    # With this setting, ONNX Runtime would plan and keep memory for each shape. Tiles have many shapes, which differ by
    # a token. Without it, the peak is 40 % lower.
    settings.enable_mem_pattern = False
    # The graphs run in turns, so all sessions can use the same working memory.
    _share_arena()
    settings.add_session_config_entry("session.use_env_allocators", "1")
    # On a busy machine, threads that spin while waiting take cores from the threads that work.
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return settings


@cache
def _share_arena() -> None:
    """Create the CPU arena that all sessions of the process use, unless the app has created one already."""
    where = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    # All regions but the first have the same size, and are split and merged as needed. If a region had the size of the
    # request that created it, tiles of several shapes would leave gaps. Features of a large latent have 64 MB and more,
    # and in small regions leave gaps too: with regions of 64 MB, refining 64x64 cells takes 862 MB, and with 1 GB
    # 597 MB. Pages of a region that were never used take no memory, but a limit of the address space counts them. The
    # first region is small, because it holds weights and is never freed.
    least, most = _REGIONS
    fitting = (available_memory() or 4 * most) // 4
    size = min(most, max(least, 1 << max(0, fitting.bit_length() - 1)))
    region = {"initial_chunk_size_bytes": 2**20, "max_power_of_two_extend_bytes": size}
    region["initial_growth_chunk_size_bytes"] = size
    settings = ort.OrtArenaCfg({"max_mem": 0, "arena_extend_strategy": 0, "max_dead_bytes_per_chunk": 2**20, **region})
    with suppress_but_callers(Exception):  # there is an arena already
        ort.create_and_register_allocator(where, settings)


def _provider_options(kind: str, index: int, options: Options) -> dict[str, str]:
    settings = {"device_id": str(index)}
    if kind == "cuda":
        # By default, CUDA's provider measures all algorithms of a convolution for every new shape of a tile.
        settings |= {"cudnn_conv_algo_search": "HEURISTIC", "arena_extend_strategy": "kSameAsRequested"}
        # With TF32, the operands of float32 products would be rounded to 10 bits.
        settings |= {"use_tf32": "0"}
    # Each process has a folder of its own, because TensorRT writes its engines in place when it sees a new shape.
    elif kind == "tensorrt" and options.cache is not None and (own := private_folder(options.cache)):
        settings |= {"trt_engine_cache_enable": "1", "trt_engine_cache_path": str(own)}
    return settings if kind not in {"webgpu", "qnn"} else {}


def _report_fallbacks(session: ort.InferenceSession, graph: str, device: str) -> None:
    """Warn about operations that ONNX Runtime has assigned to the CPU."""
    left: Counter[str] = Counter()
    for part in session.get_provider_graph_assignment_info():
        if part.ep_name == _CPU:
            left.update(node.op_type for node in part.get_nodes() if node.op_type not in _SMALL)
    if left:
        kinds = ", ".join(f"{count} {kind}" for kind, count in left.most_common(5))
        count = f"onnxruntime runs {left.total()} operations of {graph} on the CPU"
        text = f"{count} instead of {device}, which is slower: {kinds}"
        warn(text)


def _count(provider: str) -> int:
    """The number of a provider's devices. It is 1 if the provider does not report them."""
    return max(1, [device.ep_name for device in ort.get_ep_devices()].count(provider))


def _without_cuda() -> str:
    """The reason why ONNX Runtime has no CUDA here, and the commands that install it."""
    if is_frozen():
        return f"this app's onnxruntime has no CUDA provider: {installing('cuda')}"
    here = installed(KNOWN["onnxruntime"].distributions)
    # These distributions write the same files, so all others have to be removed before one is installed.
    remedy = f"pip uninstall -y {' '.join(here)}, then {installing('cuda')}" if here else installing("cuda")
    if len(here) > 1:
        return f"{' and '.join(here)} are both installed and overwrite each other: {remedy}"
    if here == ["onnxruntime"]:
        return f"this onnxruntime is the build for CPUs: {remedy}"
    return f"this onnxruntime has no CUDA provider: {remedy}"
