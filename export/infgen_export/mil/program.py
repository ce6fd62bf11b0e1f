"""Reads a saved package with its program and constants, and runs it step by step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import coremltools as ct
import numpy as np
import torch
from coremltools.converters.mil.frontend.milproto.load import load as load_program
from torch import Tensor

from infgen_export.mil.operations import KINDS
from infgen_export.mil.parameters import DTYPES

Value = Tensor | str

# torch lacks kernels for these types, or has slow ones. Operations get the wider type, and their results are rounded.
_WIDER = {
    torch.float16: torch.float32,
    torch.int8: torch.int32,
    torch.uint8: torch.int32,
    torch.int16: torch.int32,
    torch.uint16: torch.int32,
}


@dataclass(frozen=True)
class _Step:
    """One operation, which refers to its values by name."""

    kind: str
    name: str
    inputs: Mapping[str, str | list[str]]
    outputs: tuple[_Result, ...]


@dataclass(frozen=True)
class _Result:
    """A result of an operation. The program specifies its type and may specify some of its dimensions."""

    name: str
    dtype: torch.dtype
    shape: tuple[int | None, ...]


class Program:
    """The program of a saved package, which has a single function."""

    def __init__(self, package: Path) -> None:
        """Reads a package.

        Raises:
            NotImplementedError: The program has operations that this interpreter does not know.
        """
        model = ct.models.MLModel(str(package), skip_model_load=True)
        spec = model.get_spec()
        program = load_program(spec, spec.specificationVersion, model.weights_dir)
        (function,) = program.functions.values()
        constants = [op for op in function.operations if op.op_type == "const"]
        steps = [op for op in function.operations if op.op_type != "const"]
        if unknown := sorted({op.op_type for op in steps} - set(KINDS)):
            raise NotImplementedError(f"{package.name}: cannot interpret {', '.join(unknown)}")
        self._inputs = tuple(_result(value) for value in function.inputs.values())
        self._outputs = tuple(value.name for value in function.outputs)
        self._constants = {op.outputs[0].name: _constant(op.val.val) for op in constants}
        self._steps = [_step(op) for op in steps]
        self._last = _last_uses(self._steps, keep={*self._constants, *self._outputs})

    @property
    def operations(self) -> Counter[str]:
        """The number of operations of every kind, without constants."""
        return Counter(step.kind for step in self._steps)

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Runs the program.

        Args:
            inputs: Inputs by name. They are converted to the types that the package declares.

        Returns:
            The outputs by name.

        Raises:
            ValueError: An input is missing, unknown or of a shape that the package does not take, or an operation's
                result does not have the shape that the program specifies.
        """
        if set(inputs) != {value.name for value in self._inputs}:
            raise ValueError(f"inputs must be {[value.name for value in self._inputs]}, not {list(inputs)}")
        values: dict[str, Value] = {}
        for value in self._inputs:
            values[value.name] = _checked(inputs[value.name].to(value.dtype), value, "input")
        with torch.inference_mode():
            for step, finished in zip(self._steps, self._last, strict=True):
                values |= self._results(step, values)
                for name in finished:
                    del values[name]
        known = self._constants | values
        return {name: output for name in self._outputs if isinstance(output := known[name], Tensor)}

    def _results(self, step: _Step, values: Mapping[str, Value]) -> dict[str, Value]:
        def wide(name: str) -> Value:
            value = values[name] if name in values else self._constants[name]
            return value if isinstance(value, str) else value.to(_WIDER.get(value.dtype, value.dtype))

        arguments = {
            parameter: [wide(name) for name in names] if isinstance(names, list) else wide(names)
            for parameter, names in step.inputs.items()
        }
        results = KINDS[step.kind](**arguments)
        several = results if isinstance(results, tuple) else (results,)
        pairs = zip(step.outputs, several, strict=True)
        return {to.name: _checked(value.to(to.dtype), to, f"{step.kind} {step.name}") for to, value in pairs}


def _step(op: Any) -> _Step:
    inputs = {
        parameter: [part.name for part in value] if isinstance(value, (list, tuple)) else value.name
        for parameter, value in op.inputs.items()
        if value is not None
    }
    return _Step(op.op_type, op.name, inputs, tuple(_result(value) for value in op.outputs))


def _result(value: Any) -> _Result:
    shape = tuple(int(side) if isinstance(side, (int, np.integer)) else None for side in value.shape)
    return _Result(value.name, DTYPES[value.dtype], shape)


def _constant(value: Any) -> Value:
    if isinstance(value, str):
        return value
    array = np.asarray(value)
    # NumPy's default integers are int64, which Core ML does not have.
    return torch.from_numpy(np.array(array, dtype=np.int32) if array.dtype == np.int64 else array.copy())


def _last_uses(steps: list[_Step], keep: set[str]) -> list[list[str]]:
    """For every step, the values that no later step needs."""
    last: dict[str, int] = {}
    for index, step in enumerate(steps):
        last |= dict.fromkeys((result.name for result in step.outputs), index)
        for names in step.inputs.values():
            last |= dict.fromkeys(names if isinstance(names, list) else [names], index)
    finished: list[list[str]] = [[] for _ in steps]
    for name, index in last.items():
        if name not in keep:
            finished[index].append(name)
    return finished


def _checked(value: Tensor, to: _Result, what: str) -> Tensor:
    # Otherwise, a dimension that the tracer took for a constant would only be noticed in a later operation, or never.
    if len(value.shape) != len(to.shape) or any(
        side not in (None, actual) for side, actual in zip(to.shape, value.shape, strict=True)
    ):
        shape = ["?" if side is None else side for side in to.shape]
        raise ValueError(f"{what}: {to.name} has shape {list(value.shape)}, the program says {shape}")
    return value
