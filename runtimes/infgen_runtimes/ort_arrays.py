"""Arrays on the device on which ONNX Runtime computes.

They are cut, joined and rounded on that device, so only finished pixels leave a GPU. ONNX Runtime has no functions for
this. Small graphs do it instead, which `runtimes/make_graphs.py` makes.
"""

from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from math import prod
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from infgen_rt.common.pixels import Number

_OUT = "out"


class Place:
    """A device, and the small graphs that work on its arrays.

    Args:
        kind: ONNX Runtime's name of the kind of device, `cuda` or `cpu`.
        index: the index of the device among those of its kind.
        load: makes a session on the device from an ONNX file.
    """

    def __init__(self, kind: str, index: int, load: Callable[[bytes], ort.InferenceSession]) -> None:
        self.kind, self.index = kind, index
        self._load = load
        self._sessions: dict[str, ort.InferenceSession] = {}
        self._lock = Lock()

    def run(
        self,
        session: ort.InferenceSession,
        inputs: Mapping[str, "npt.NDArray[Any] | ort.OrtValue"],
        here: Sequence[str],
        options: ort.RunOptions | None = None,
    ) -> list[ort.OrtValue]:
        """Run a session on arrays of this device and NumPy arrays.

        Args:
            session: a session on this device.
            inputs: the inputs by name.
            here: the names of the outputs that stay on the device. The others go to the CPU.
            options: the options of the run.

        Returns:
            The session's outputs in order.
        """
        binding = session.io_binding()
        for name, value in inputs.items():
            if isinstance(value, ort.OrtValue):
                binding.bind_ortvalue_input(name, value)
            else:
                binding.bind_cpu_input(name, np.ascontiguousarray(value))
        for output in session.get_outputs():
            if output.name in here:
                binding.bind_output(output.name, self.kind, self.index)
            else:
                binding.bind_output(output.name)
        session.run_with_iobinding(binding, options)
        found: list[ort.OrtValue] = binding.get_outputs()
        return found

    def apply(self, graph: str, keep: bool = True, **inputs: "npt.NDArray[Any] | ort.OrtValue") -> ort.OrtValue:
        """Run one of the small graphs.

        Args:
            graph: the name of the graph's file, without its ending.
            keep: whether the result stays on the device. Otherwise, it goes to the CPU.
            **inputs: the inputs by name.
        """
        with self._lock:
            if graph not in self._sessions:
                file = resources.files("infgen_runtimes") / "graphs" / f"{graph}.onnx"
                self._sessions[graph] = self._load(file.read_bytes())
            session = self._sessions[graph]
        return self.run(session, inputs, (_OUT,) if keep else ())[0]


class _View(NamedTuple):
    """A box of an array, and whether its first axis, which has length 1, is dropped."""

    starts: tuple[int, ...]
    sides: tuple[int, ...]
    dropped: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        return self.sides[self.dropped :]

    def part(self, index: Any) -> "_View":
        """Return the view of a part of this view.

        Args:
            index: slices without steps, as for a NumPy array, or 0 for a first axis of length 1.

        Raises:
            TypeError: it is another index.
        """
        given = index if isinstance(index, tuple) else (index,)
        if given == (0,) and not self.dropped and self.sides[0] == 1:
            return self._replace(dropped=True)
        if len(given) > len(self.shape) or not all(isinstance(each, slice) and each.step is None for each in given):
            raise TypeError(f"{index!r} cannot index an array of shape {self.shape}: expected slices without steps")
        starts, sides = list(self.starts), list(self.sides)
        for axis, each in enumerate(given, start=int(self.dropped)):
            first, last, _ = each.indices(sides[axis])
            starts[axis], sides[axis] = starts[axis] + first, max(0, last - first)
        return _View(tuple(starts), tuple(sides), self.dropped)


class Array:
    """A float32 array on a device. A part is cut out when its values are needed, and keeps the whole alive until then.

    It implements `infgen_rt.backend.protocol.Values` and `infgen_rt.common.pixels.DevicePixels`, and works with
    `numpy.concatenate`.

    Args:
        place: the device.
        value: the whole array, with four axes.
        view: the part that this array is. None for the whole.
    """

    def __init__(self, place: Place, value: ort.OrtValue, view: _View | None = None) -> None:
        self._place, self._value = place, value
        shape = tuple(value.shape())
        self._view = view or _View((0,) * len(shape), shape)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape."""
        return self._view.shape

    def __getitem__(self, index: Any) -> "Array":
        """A part of the array."""
        return Array(self._place, self._value, self._view.part(index))

    def value(self) -> ort.OrtValue:
        """Return the values of this part alone, with all four axes."""
        view = self._view
        if prod(view.sides) != prod(self._value.shape()):
            starts, ends = (np.array(side, np.int64) for side in (view.starts, np.add(view.starts, view.sides)))
            self._value = self._place.apply("cut", data=self._value, starts=starts, ends=ends)
            self._view = _View((0,) * len(view.sides), view.sides, view.dropped)
        return self._value

    def isfinite(self) -> npt.NDArray[np.bool_]:
        """Whether all values are finite, as a single truth value."""
        zero: npt.NDArray[np.float32] = self._place.apply("finite", keep=False, data=self.value()).numpy()
        return np.isfinite(zero)

    def fetch(self, number: Number) -> npt.NDArray[Any]:
        """Return a NumPy array, unchanged or rounded to levels on the device; see `infgen_rt.common.pixels.fetch`."""
        value = self.value()
        if number is not np.float32:
            value = self._place.apply(np.dtype(number).name, keep=False, data=value)
        numbers: npt.NDArray[Any] = value.numpy()
        return numbers.reshape(self.shape)

    def __array_function__(self, function: Any, types: Any, arguments: Any, options: Any) -> Any:
        """Implement NumPy's `concatenate` along rows or columns. No other function of NumPy is supported."""
        if function is not np.concatenate:
            return NotImplemented
        parts, axis = arguments[0], options["axis"]
        joined = parts[0].value()
        for part in parts[1:]:
            joined = self._place.apply(f"join_{axis}", data=joined, more=part.value())
        return Array(self._place, joined)
