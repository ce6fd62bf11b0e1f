"""OpenVINO on the CPU."""

from collections.abc import Mapping

import numpy as np
import openvino as ov

from infgen_rt.backends import Options
from infgen_rt.errors import BackendError, DecodeError
from infgen_rt.pixels import FloatArray

MODEL = "model.xml"
WEIGHTS = "model.bin"


class Backend:
    """Runs OpenVINO graphs on the CPU, in float32."""

    name = "openvino"
    device = "CPU"
    target = "openvino"

    def load(self, files: Mapping[str, bytes], options: Options) -> "Session":
        """Load a graph's `model.xml` and `model.bin`; see `infgen_rt.backends.Backend`."""
        settings = {} if options.threads is None else {"INFERENCE_NUM_THREADS": options.threads}
        try:
            core = ov.Core()
            model = core.read_model(files[MODEL], ov.Tensor(np.frombuffer(files[WEIGHTS], np.uint8)))
            return Session(core, model, "f32", settings)
        # OpenVINO raises plain RuntimeErrors; a KeyError is a bundle without one of the files.
        except Exception as error:
            raise BackendError(f"openvino {ov.__version__} cannot load the graph: {_one_line(error)}") from error


class Session:
    """A loaded graph.

    In less than float32 the graph is cut in two. What depends on coordinates alone (embedding, sampling, angles) is a
    model of its own, in float32: OpenVINO's CPU plug-in keeps single operations from being rounded to bfloat16, but not
    the reshapes between them, and a position of 1,000 cells has steps of 4 in bfloat16.

    Args:
        core: Of OpenVINO.
        model: Read, not compiled; the first of its inputs has the data, others have coordinates.
        precision: Of the arithmetic, as `INFERENCE_PRECISION_HINT` wants it.
        settings: Further properties of the CPU plug-in.
    """

    def __init__(self, core: ov.Core, model: ov.Model, precision: str, settings: Mapping[str, object]) -> None:
        parts = [(model, precision)]
        if precision != "f32" and (halves := _cut(model)):
            parts = [(halves[0], "f32"), (halves[1], precision)]
        self._outputs = [port.any_name for port in model.outputs]
        self._parts: list[ov.CompiledModel] = [
            core.compile_model(part, "CPU", {**settings, "INFERENCE_PRECISION_HINT": hint}) for part, hint in parts
        ]

    def run(self, inputs: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
        """Run the graph; see `infgen_rt.backends.Session`."""
        if not self._parts:
            raise DecodeError("the session is closed")
        values: dict[str, object] = dict(inputs)
        try:
            for part in self._parts:
                # A tensor may have several names after optimisation; one of them is the graph's.
                feed = [next(values[name] for name in port.names if name in values) for port in part.inputs]
                results = part(feed, share_inputs=True)
                values.update((name, results[port]) for port in part.outputs for name in port.names)
        except Exception as error:
            raise DecodeError(f"openvino could not run the graph: {_one_line(error)}") from error
        return {name: np.array(values[name], np.float32) for name in self._outputs}

    def close(self) -> None:
        """Free the graph."""
        self._parts = []


def _cut(model: ov.Model) -> tuple[ov.Model, ov.Model] | None:
    """What is positional, and the rest, which takes the first's outputs for inputs; None if there is nothing to cut."""
    first, second = model.clone(), model.clone()
    names = _apart(first)
    outputs = [source for source, _ in _crossing(first, names).values()]
    if not any(output.get_element_type() == ov.Type.f32 for output in outputs):
        return None
    parameters = []
    for number, (source, ports) in enumerate(_crossing(second, names).values()):
        outputs[number].get_tensor().set_names({f"positional_{number}"})
        parameter = ov.opset13.parameter(source.get_partial_shape(), source.get_element_type())
        parameter.output(0).get_tensor().set_names({f"positional_{number}"})
        for port in ports:
            port.replace_source_output(parameter.output(0))
        parameters.append(parameter)
    positional = ov.Model(outputs, first.get_parameters(), "positional")
    return positional, ov.Model(second.get_results(), [second.get_parameters()[0], *parameters], "rest")


def _apart(model: ov.Model) -> set[str]:
    """Names of the operations that depend on inputs, but of the first one on no more than its own shape."""
    data, *others = (parameter.get_friendly_name() for parameter in model.get_parameters())
    tainted, positional = {data}, set(others)
    for operation in model.get_ordered_ops():
        name, sources = operation.get_friendly_name(), set(_sources(operation))
        if operation.get_type_name() == "ShapeOf" and sources == {data}:
            positional.add(name)
        elif not tainted.isdisjoint(sources):
            tainted.add(name)
        elif not positional.isdisjoint(sources):
            positional.add(name)
    return positional - set(others)


def _crossing(model: ov.Model, names: set[str]) -> dict[str, tuple[ov.Output, list[ov.Input]]]:
    """Outputs of the named operations that others take, and the ports that take them; in topological order."""
    sources = names | {parameter.get_friendly_name() for parameter in model.get_parameters()[1:]}
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


def _sources(operation: ov.Node) -> list[str]:
    return [port.get_source_output().get_node().get_friendly_name() for port in operation.inputs()]


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
