"""Stand-ins for the parts of ComfyUI that the nodes use, written from its documentation and published interfaces."""

import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

FOLDER = Path(__file__).parents[2] / "integrations/comfyui"
_NAMES = [
    "comfy",
    "comfy.cli_args",
    "comfy.model_management",
    "comfy.patcher_extension",
    "comfy.utils",
    "comfy_api",
    "comfy_api.latest",
    "folder_paths",
]


class InterruptProcessingException(Exception):
    """What ComfyUI raises to stop a run. It is no error for the user."""


@dataclass
class Host:
    """A ComfyUI that exists for one test.

    Attributes:
        folder: it has the folders `output` and `temp`.
        steps: what the progress bars have shown: (done, total, preview).
        interrupt_at: the step at which the user presses the cancel button. None for never.
        args: ComfyUI's command line.
    """

    folder: Path
    steps: list[tuple[int, int, Any]] = field(default_factory=list)
    interrupt_at: int | None = None
    args: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(disable_metadata=False))

    @property
    def output(self) -> Path:
        return self.folder / "output"

    def processing_interrupted(self) -> bool:
        return self.interrupt_at is not None and len(self.steps) >= self.interrupt_at

    def throw_exception_if_processing_interrupted(self) -> None:
        if self.processing_interrupted():
            self.interrupt_at = None
            raise InterruptProcessingException

    def get_save_image_path(
        self, prefix: str, root: str, width: int = 0, height: int = 0
    ) -> tuple[str, str, int, str, str]:
        """The folder, the name, the next number, the subfolder and the prefix without its words.

        As in ComfyUI, the names of files are compared by the length of what follows the last slash, which may be empty.
        """
        prefix = prefix.replace("%width%", str(width)).replace("%height%", str(height))
        subfolder, name = os.path.split(os.path.normpath(prefix))
        folder = Path(root) / subfolder
        folder.mkdir(parents=True, exist_ok=True)
        length = len(os.path.basename(prefix))
        files = (path.name for path in folder.iterdir())
        numbers = [file[length + 1 :].split("_")[0] for file in files if file[: length + 1] == f"{name}_"]
        first = max((int(number) for number in numbers if number.isdigit()), default=0) + 1
        return str(folder), name, first, subfolder, prefix


class Sampled:
    """A MODEL that samples in steps."""

    def __init__(self, latent_format: str) -> None:
        self._format = type(latent_format, (), {})()
        self.wrappers: list[tuple[str, Any]] = []

    def get_model_object(self, name: str) -> Any:
        assert name == "latent_format"
        return self._format

    def clone(self) -> "Sampled":
        copy = Sampled(type(self._format).__name__)
        copy.wrappers = list(self.wrappers)
        return copy

    def add_wrapper_with_key(self, kind: str, key: str, wrapper: Any) -> None:
        self.wrappers.append((kind, wrapper))

    def sample(self, latents: list[Any], callback: Any) -> Any:
        """Call the function with each step's latent, and return the last one."""

        def sample(noise: Any, latent: Any, sampler: Any, sigmas: Any, mask: Any, told: Any, *rest: Any) -> Any:
            for step, x0 in enumerate(latents):
                told(step, x0, noise, len(latents))
            return latents[-1]

        for _, wrapper in self.wrappers:
            inner = sample
            return wrapper(inner, None, None, None, None, None, callback, True, 5)
        return sample(None, None, None, None, None, callback or (lambda *told: None))


class _Input:
    def __init__(self, identity: str, **options: Any) -> None:
        self.id, self.options = identity, options


class _Output:
    def __init__(self, **options: Any) -> None:
        self.options = options


def _kind(name: str) -> Any:
    return type(name, (), {"Input": _Input, "Output": _Output, "io_type": name})


class _Schema(SimpleNamespace):
    hidden: list[Any]


class _NodeOutput:
    def __init__(self, *args: Any, ui: Any = None) -> None:
        self.args, self.ui = args, ui


class _ComfyNode:
    hidden = SimpleNamespace(prompt=None, extra_pnginfo=None)


class _ComfyExtension:
    pass


def _io() -> SimpleNamespace:
    kinds = {name: _kind(name) for name in ("Float", "Int", "String", "Combo", "Latent", "Image", "Model")}
    hidden = SimpleNamespace(prompt="PROMPT", extra_pnginfo="EXTRA_PNGINFO")
    own = {"Custom": _kind, "Schema": _Schema, "NodeOutput": _NodeOutput, "ComfyNode": _ComfyNode, "Hidden": hidden}
    return SimpleNamespace(**kinds, **own)


@contextmanager
def installed(host: Host) -> Iterator[ModuleType]:
    """Load the folder of nodes as ComfyUI does: by its path, under a name that is no identifier.

    Yields:
        The module, with its submodules `nodes`, `decoders` and so on.
    """

    class ProgressBar:
        def __init__(self, total: int, node_id: str | None = None) -> None:
            self.total = total

        def update_absolute(self, value: int, total: int | None = None, preview: Any = None) -> None:
            host.steps.append((value, total or self.total, preview))

    modules = {name: ModuleType(name) for name in _NAMES}
    modules["comfy.cli_args"].args = host.args  # type: ignore[attr-defined]
    modules["comfy.utils"].ProgressBar = ProgressBar  # type: ignore[attr-defined]
    management: Any = modules["comfy.model_management"]
    management.processing_interrupted = host.processing_interrupted
    management.throw_exception_if_processing_interrupted = host.throw_exception_if_processing_interrupted
    modules["comfy.patcher_extension"].WrappersMP = SimpleNamespace(OUTER_SAMPLE="outer_sample")  # type: ignore[attr-defined]
    paths: Any = modules["folder_paths"]
    paths.get_output_directory = lambda: str(host.output)
    paths.get_temp_directory = lambda: str(host.folder / "temp")
    paths.get_save_image_path = host.get_save_image_path
    latest: Any = modules["comfy_api.latest"]
    latest.io, latest.ComfyExtension = _io(), _ComfyExtension
    for name in _NAMES:
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(modules[parent], child, modules[name])
    own = str(FOLDER).replace(".", "_x_")
    before = {name: sys.modules.get(name) for name in modules}
    sys.modules |= modules
    try:
        spec = importlib.util.spec_from_file_location(own, FOLDER / "__init__.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[own] = module
        spec.loader.exec_module(module)
        yield module
    finally:
        for name in [name for name in sys.modules if name == own or name.startswith(f"{own}.")]:
            del sys.modules[name]
        for name, old in before.items():
            if old is None:
                del sys.modules[name]
            else:
                sys.modules[name] = old
