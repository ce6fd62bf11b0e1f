"""The PyTorch backend: the reference, which runs the checkpoint itself on CPUs, NVIDIA GPUs and Apple's GPUs."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load
from torch.overrides import TorchFunctionMode

from infgen_model import DecoderConfig, InfGen
from infgen_model.checkpoint import CONFIG
from infgen_model.graphs import graphs_of
from infgen_rt.backend.protocol import EXACT, Device, Options, Values, require_version
from infgen_rt.bundle.graphs import Content, apart, kind_of
from infgen_rt.bundle.manifest import Recipe
from infgen_rt.common.cancellation import current
from infgen_rt.common.pixels import LARGEST, Number
from infgen_rt.errors import BackendError, DecodeError, one_line

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_LEVELS: dict[Number, torch.dtype] = {np.uint8: torch.uint8, np.uint16: torch.uint16}


class Backend:
    """Runs the model's own code."""

    name = "torch"
    target = "torch"
    # PyTorch's number of threads is a setting of the whole process.
    parallel_on = ()
    # A forked process that computes would wait for threads that only its parent has.
    survives_fork = False

    def __init__(self) -> None:
        require_version("torch", torch.__version__)

    def devices(self) -> Sequence[Device]:
        """List the devices, GPUs first; see `infgen_rt.backend.protocol.Backend`."""
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        found = [Device(f"cuda:{index}", torch.cuda.get_device_name(index)) for index in range(count)]
        if torch.backends.mps.is_available():
            found.append(Device("mps", "Apple GPU"))
        found.append(Device("cpu", "CPU"))
        if not count:
            why = "this PyTorch is built without CUDA" if torch.version.cuda is None else "it finds no NVIDIA GPU"
            found.append(Device("cuda:0", "NVIDIA GPU", f"{why}: see pytorch.org/get-started"))
        return found

    def arithmetics(self, device: str, recipe: Recipe) -> Sequence[str]:
        """Return float32 and the device's native arithmetics."""
        if device.startswith("cuda"):
            return ("fp32", "fp16", "bf16") if torch.cuda.is_bf16_supported() else ("fp32", "fp16")
        if device == "mps":
            return ("fp32", "fp16")
        return ("fp32", "bf16") if torch.backends.mkldnn.is_available() and _has_bf16() else ("fp32",)

    def load(self, graph: str, files: Mapping[str, Content], options: Options) -> "Session":
        """Make the graph's part of the model, and load its weights; see `infgen_rt.backend.protocol.Backend`."""
        try:
            config, weights = _model(files)
            model = InfGen(config)
            part = f"{kind_of(graph).part}."
            own = {name.removeprefix(part): value for name, value in weights.items() if name.startswith(part)}
            module = model.get_submodule(part.rstrip("."))
            expected = module.state_dict()
            module.load_state_dict({name: value.float().reshape(expected[name].shape) for name, value in own.items()})
            entry = next(entry for entry in graphs_of(model.eval()) if entry.name == graph)
            device = torch.device(options.device)
            moved = entry.module.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            moved.requires_grad_(False)
        # For example a missing file, a config of another version, tensors that do not fit, or too little memory.
        except Exception as error:
            text = f"torch {torch.__version__} cannot load the graph on {options.device}: {one_line(error)}"
            raise BackendError(text) from error
        return Session(moved, [spec.name for spec in entry.inputs], entry.output.name, device, options)


class Session:
    """A part of the model on a device.

    Args:
        module: the module, which takes the inputs in order.
        inputs: the names of the inputs.
        output: the name of the output.
        device: the module's device.
        options: the threads and the arithmetic.
    """

    def __init__(
        self, module: torch.nn.Module, inputs: Sequence[str], output: str, device: torch.device, options: Options
    ) -> None:
        self._module: torch.nn.Module | None = module
        self._inputs, self._output, self._device, self._options = inputs, output, device, options

    def run(self, inputs: Mapping[str, Values]) -> dict[str, Values]:
        """Run the graph. Features, contexts and pixels stay on the device; see `infgen_rt.backend.protocol.Session`."""
        module = self._module
        if module is None:
            raise DecodeError("the session is closed: open the model again")
        try:
            arguments = [torch.as_tensor(inputs[name], device=self._device) for name in self._inputs]
            with torch.inference_mode(), self._arithmetic(), _threads(self._options.threads), _Stopping():
                result = module(*arguments).float()
                values: Values = result
                if self._output == "image":
                    values = Pixels(result)
                elif self._output in ("latent", "moments", "encoded"):
                    values = result.cpu().contiguous().numpy()
        # For example torch.cuda.OutOfMemoryError and any error of a driver.
        except Exception as error:
            raise DecodeError(f"torch could not run the graph: {one_line(error)}") from error
        return {self._output: values}

    def close(self) -> None:
        """Free the weights, and the GPU memory that PyTorch has cached."""
        self._module = None
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    @contextmanager
    def _arithmetic(self) -> Iterator[None]:
        """A context in which PyTorch computes in the session's arithmetic."""
        if self._options.arithmetic == EXACT:
            with _FLOAT32 if self._device.type == "cuda" else nullcontext():
                yield
        else:
            with torch.autocast(self._device.type, _DTYPES[self._options.arithmetic]):
                yield


class _Float32:
    """A block in which GPUs compute float32 throughout. Several threads may be in it at the same time.

    By default, cuDNN rounds the operands of float32 convolutions to 10 bits, and an app may have allowed this for
    matrix products too. These settings are the process's own, so the first thread saves them and the last restores
    them.
    """

    def __init__(self) -> None:
        self._lock, self._inside = Lock(), 0
        self._before: list[str] = []

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._before = [setting.fp32_precision for setting in self._settings()]
                self._set(["ieee"] * len(self._before))
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._set(self._before)

    def _set(self, values: Sequence[str]) -> None:
        for setting, value in zip(self._settings(), values, strict=True):
            setting.fp32_precision = value

    @staticmethod
    def _settings() -> tuple[Any, Any]:
        return torch.backends.cudnn.conv, torch.backends.cuda.matmul  # type: ignore[attr-defined]


_FLOAT32 = _Float32()


class Pixels:
    """Pixels as planes on the device; see `infgen_rt.common.pixels.DevicePixels`."""

    def __init__(self, planes: torch.Tensor) -> None:
        self._planes = planes

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape."""
        return tuple(self._planes.shape)

    def __getitem__(self, index: Any) -> "Pixels":
        """A part of the pixels."""
        return Pixels(self._planes[index])

    def isfinite(self) -> torch.Tensor:
        """Whether each value is finite."""
        return self._planes.isfinite()

    def fetch(self, number: Number) -> npt.NDArray[Any]:
        """Return a NumPy array, unchanged or rounded to levels on the device; see `infgen_rt.common.pixels.fetch`."""
        planes = self._planes
        with torch.inference_mode():
            if number is not np.float32:
                planes = planes.clamp(0, 1).mul_(LARGEST[number]).add_(0.5).to(_LEVELS[number])
            return planes.cpu().contiguous().numpy()


class _Stopping(TorchFunctionMode):
    """A context in which every operation of PyTorch first checks for cancellation. PyTorch itself cannot stop a run."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        current().check()
        return func(*args, **(kwargs or {}))


def _model(files: Mapping[str, Content]) -> tuple[DecoderConfig, dict[str, torch.Tensor]]:
    """Read the config of a model, and its weights by their names in a checkpoint.

    Raises:
        BackendError: the files are those of an older bundle.
    """
    if CONFIG in files:
        raise BackendError("its files for PyTorch are of a bundle of format 5 or before: export the checkpoint again")
    own, weights = apart(files)
    (described,) = (json.loads(bytes(content)) for content in own.values())
    # The only name that two files have in common is that of the small constants, which PyTorch does not need.
    tensors = {name: value for content in weights.values() for name, value in load(bytes(content)).items()}
    return DecoderConfig.from_json(described["config"]), {
        name: tensors[stored] for name, stored in described["weights"].items()
    }


class _Threads:
    """Contexts with another number of PyTorch's threads. The number is a setting of the whole process.

    When the last of several contexts in different threads ends, the number is restored for the app's own work.
    """

    def __init__(self) -> None:
        self._lock, self._inside, self._before = Lock(), 0, 0

    @contextmanager
    def __call__(self, count: int | None) -> Iterator[None]:
        """A context with this number of threads. None to leave the number as it is."""
        if count is None:
            yield
            return
        with self._lock:
            if not self._inside:
                self._before = torch.get_num_threads()
            self._inside += 1
            torch.set_num_threads(count)
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                # A thread has its own copy of the number, which is restored even if other contexts are still open.
                torch.set_num_threads(self._before)


_threads = _Threads()


def _has_bf16() -> bool:
    """Whether the CPU computes in bfloat16. PyTorch has no public function for this, so oneDNN is asked."""
    check = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return bool(check()) if check is not None else False
