"""ONNX Runtime on the CPU."""

from collections.abc import Mapping

import onnxruntime as ort

from infgen_rt.backends import Options
from infgen_rt.errors import BackendError, DecodeError
from infgen_rt.pixels import FloatArray

_ERRORS_ONLY = 3


class Backend:
    """Runs ONNX graphs on the CPU."""

    name = "onnxruntime"
    device = "CPU"
    target = "onnx"

    def load(self, files: Mapping[str, bytes], options: Options) -> "Session":
        """Load an ONNX graph, which is one file; see `infgen_rt.backends.Backend`."""
        try:
            (graph,) = files.values()
            session = ort.InferenceSession(graph, _session_options(options), providers=["CPUExecutionProvider"])
        # ONNX Runtime's exceptions have no common base of their own.
        except Exception as error:
            text = f"onnxruntime {ort.__version__} cannot load the graph: {_one_line(error)}"
            raise BackendError(text) from error
        return Session(session, _run_options(options))


class Session:
    """A loaded ONNX graph."""

    def __init__(self, session: ort.InferenceSession, options: ort.RunOptions) -> None:
        self._session: ort.InferenceSession | None = session
        self._options = options
        self._outputs = [output.name for output in session.get_outputs()]

    def run(self, inputs: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
        """Run the graph; see `infgen_rt.backends.Session`."""
        if self._session is None:
            raise DecodeError("the session is closed")
        try:
            results = self._session.run(self._outputs, dict(inputs), self._options)
        except Exception as error:
            raise DecodeError(f"onnxruntime could not run the graph: {_one_line(error)}") from error
        return dict(zip(self._outputs, results, strict=True))

    def close(self) -> None:
        """Free the graph."""
        self._session = None


def _session_options(options: Options) -> ort.SessionOptions:
    settings = ort.SessionOptions()
    settings.log_severity_level = _ERRORS_ONLY
    # Zero is ONNX Runtime's own choice, one thread a physical core.
    settings.intra_op_num_threads = options.threads or 0
    # Planned reuse of memory is per shape, and tiles differ by a token: without it the peak is 40 % less.
    settings.enable_mem_pattern = False
    # Threads that wait in a loop take a busy machine's cores from the threads that work.
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return settings


def _run_options(options: Options) -> ort.RunOptions:
    settings = ort.RunOptions()
    if not options.keep_memory:
        settings.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    return settings


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
