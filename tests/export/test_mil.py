"""The interpreter of Core ML programs gives what Core ML's documentation says an operation gives."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

ct = pytest.importorskip("coremltools")

from coremltools.converters.mil import Builder as mb  # noqa: E402, N813
from coremltools.converters.mil.mil import types  # noqa: E402

from infgen_export import mil  # noqa: E402

IMAGE = torch.randn(1, 8, 5, 7, generator=torch.Generator().manual_seed(0))
KERNEL = torch.randn(4, 8, 3, 3, generator=torch.Generator().manual_seed(1))
MATRIX = torch.randn(5, 7, generator=torch.Generator().manual_seed(2))


def package(folder: Path, build: Callable[..., Any], *inputs: Tensor, precision: str = "FLOAT32") -> Path:
    """Saves a program of inputs a, b, ... as Core ML would get it."""
    specs = [mb.TensorSpec(tuple(value.shape), types.fp32) for value in inputs]
    names = [chr(ord("a") + index) for index in range(len(inputs))]
    # The builder takes the names of the inputs from the function's own.
    scope: dict[str, Any] = {"build": build}
    exec(f"def function({', '.join(names)}): return build({', '.join(names)})", scope)
    program = mb.program(input_specs=specs, opset_version=ct.target.iOS18)(scope["function"])
    model = ct.convert(
        program,
        convert_to="mlprogram",
        minimum_deployment_target=ct.target.iOS18,
        compute_precision=ct.precision[precision],
        inputs=[ct.TensorType(name, tuple(value.shape), np.float32) for name, value in zip(names, inputs, strict=True)],
        skip_model_load=True,
    )
    model.save(str(folder / "program.mlpackage"))
    return folder / "program.mlpackage"


def run(folder: Path, build: Callable[..., Any], *inputs: Tensor, precision: str = "FLOAT32") -> Tensor:
    program = mil.Program(package(folder, build, *inputs, precision=precision))
    (output,) = program.run({chr(ord("a") + index): value for index, value in enumerate(inputs)}).values()
    return output


def index(a: Any, **parameters: Any) -> Any:
    return mb.slice_by_index(x=a, **parameters)


def counted(end: Any) -> Any:
    return mb.cast(x=mb.range_1d(start=0, end=end, step=1), dtype="fp32")


CASES: dict[str, tuple[Callable[..., Any], Tensor, Tensor]] = {
    "gather with negative indices": (
        lambda a: mb.gather(x=a, indices=[-1, 2, 0, -4], axis=1),
        MATRIX,
        MATRIX[:, [6, 2, 0, 3]],
    ),
    "gather by a matrix of indices": (
        lambda a: mb.gather(x=a, indices=np.array([[0, -1], [2, 2]], np.int32), axis=0),
        MATRIX,
        MATRIX[torch.tensor([[0, 4], [2, 2]])],
    ),
    "gather along a negative axis": (lambda a: mb.gather(x=a, indices=[1], axis=-1), MATRIX, MATRIX[:, 1:2]),
    "slice with strides": (lambda a: index(a, begin=[1, 0], end=[5, 7], stride=[2, 3]), MATRIX, MATRIX[1:5:2, ::3]),
    "slice from the end": (lambda a: index(a, begin=[-2, 0], end=[5, -1]), MATRIX, MATRIX[-2:, :-1]),
    "slice backwards": (
        lambda a: index(a, begin=[0, 0], end=[5, 0], stride=[1, -2], begin_mask=[False, True], end_mask=[False, True]),
        MATRIX,
        MATRIX.flip(1)[:, ::2],
    ),
    "slice with masks": (
        lambda a: index(a, begin=[3, 2], end=[4, 3], begin_mask=[True, False], end_mask=[False, True]),
        MATRIX,
        MATRIX[:4, 2:],
    ),
    "slice that drops an axis": (
        lambda a: index(a, begin=[1, 2], end=[0, 6], squeeze_mask=[True, False]),
        MATRIX,
        MATRIX[1, 2:6],
    ),
    "slice by size": (lambda a: mb.slice_by_size(x=a, begin=[1, 2], size=[-1, 3]), MATRIX, MATRIX[1:, 2:5]),
    "pixel shuffle": (lambda a: mb.pixel_shuffle(x=a, upscale_factor=2), IMAGE, F.pixel_shuffle(IMAGE, 2)),
    "pixel unshuffle": (
        lambda a: mb.pixel_unshuffle(x=a, downscale_factor=np.uint32(2)),
        IMAGE[..., :4, :6],
        F.pixel_unshuffle(IMAGE[..., :4, :6], 2),
    ),
    "nearest neighbours": (
        lambda a: mb.upsample_nearest_neighbor(x=a, scale_factor_height=2, scale_factor_width=3),
        IMAGE,
        IMAGE.repeat_interleave(2, 2).repeat_interleave(3, 3),
    ),
    "linear interpolation": (
        lambda a: mb.upsample_bilinear(x=a, scale_factor_height=2, scale_factor_width=3, align_corners=False),
        IMAGE,
        F.interpolate(IMAGE, scale_factor=(2, 3), mode="bilinear", align_corners=False),
    ),
    "padding of the last two axes": (
        lambda a: mb.pad(x=a, pad=[1, 2, 3, 0], mode="constant", constant_val=0.5),
        IMAGE,
        F.pad(IMAGE, (3, 0, 1, 2), value=0.5),
    ),
    "padding by what is at the edge": (
        lambda a: mb.pad(x=a, pad=[1, 0, 0, 2], mode="replicate"),
        IMAGE,
        F.pad(IMAGE, (0, 2, 1, 0), mode="replicate"),
    ),
    "padding of all axes, most of it nothing": (
        lambda a: mb.pad(x=a, pad=[0, 0, 0, 0, 1, 0, 0, 2], mode="replicate"),
        IMAGE,
        F.pad(IMAGE, (0, 2, 1, 0), mode="replicate"),
    ),
    "a slope for each channel": (
        lambda a: mb.prelu(x=a, alpha=np.linspace(-0.2, 0.5, 8, dtype=np.float32)),
        IMAGE,
        F.prelu(IMAGE, torch.linspace(-0.2, 0.5, 8)),
    ),
    "one slope for all channels": (
        lambda a: mb.leaky_relu(x=a, alpha=np.float32(0.3)),
        IMAGE,
        F.leaky_relu(IMAGE, 0.3),
    ),
    "unpadded convolution": (lambda a: mb.conv(x=a, weight=KERNEL.numpy()), IMAGE, F.conv2d(IMAGE, KERNEL)),
    "convolution with a margin per side": (
        lambda a: mb.conv(x=a, weight=KERNEL.numpy(), pad_type="custom", pad=[0, 1, 2, 3]),
        IMAGE,
        F.conv2d(F.pad(IMAGE, (2, 3, 0, 1)), KERNEL),
    ),
    # 7 columns in steps of 2 make 4 and need 2 more, one a side; 5 rows in steps of 3 make 2 and need 1 more.
    "same padding, more of it last": (
        lambda a: mb.conv(x=a, weight=KERNEL.numpy(), pad_type="same", strides=[3, 2]),
        IMAGE,
        F.conv2d(F.pad(IMAGE, (1, 1, 0, 1)), KERNEL, stride=(3, 2)),
    ),
    "same padding, more of it first": (
        lambda a: mb.conv(x=a, weight=KERNEL.numpy(), pad_type="same_lower", strides=[3, 2]),
        IMAGE,
        F.conv2d(F.pad(IMAGE, (1, 1, 1, 0)), KERNEL, stride=(3, 2)),
    ),
    "dilated convolution in groups": (
        lambda a: mb.conv(x=a, weight=KERNEL[:, :4].numpy(), dilations=[2, 1], groups=2, bias=np.ones(4, np.float32)),
        IMAGE,
        F.conv2d(IMAGE, KERNEL[:, :4], torch.ones(4), dilation=(2, 1), groups=2),
    ),
    "softmax": (lambda a: mb.softmax(x=a, axis=0), 30 * MATRIX, (30 * MATRIX).softmax(0)),
    "tile": (lambda a: mb.tile(x=a, reps=[2, 3]), MATRIX, MATRIX.repeat(2, 3)),
    "split into parts of their own": (
        lambda a: mb.concat(values=mb.split(x=a, split_sizes=[1, 4, 2], axis=1)[::-1], axis=1),
        MATRIX,
        torch.cat([MATRIX[:, 5:], MATRIX[:, 1:5], MATRIX[:, :1]], 1),
    ),
    "split into equal parts": (
        lambda a: mb.stack(values=mb.split(x=a, num_splits=5, axis=0), axis=-1),
        MATRIX,
        torch.stack(MATRIX.split(1), -1),
    ),
    "layer norm": (
        lambda a: mb.layer_norm(x=a, axes=[-1], gamma=np.arange(7, dtype=np.float32), epsilon=1e-3),
        MATRIX,
        F.layer_norm(MATRIX, (7,), torch.arange(7.0), eps=1e-3),
    ),
    "reshape that infers": (lambda a: mb.reshape(x=a, shape=[4, -1, 7]), IMAGE, IMAGE.reshape(4, 10, 7)),
    "reshape that keeps": (lambda a: mb.reshape(x=a, shape=[0, 4, 10, 0]), IMAGE, IMAGE.reshape(1, 4, 10, 7)),
    "mean over some axes": (lambda a: mb.reduce_mean(x=a, axes=[1, -1], keep_dims=False), IMAGE, IMAGE.mean((1, 3))),
    "mean over all": (lambda a: mb.reduce_mean(x=a, keep_dims=True), MATRIX, MATRIX.mean((0, 1), True)),
    "inverse, off by what Core ML adds": (lambda a: mb.inverse(x=mb.abs(x=a)), MATRIX, 1 / (MATRIX.abs() + 1e-4)),
    "logarithm": (lambda a: mb.log(x=mb.abs(x=a), epsilon=0.5), MATRIX, torch.log(MATRIX.abs() + 0.5)),
    "truncating cast": (
        lambda a: mb.cast(x=mb.cast(x=a, dtype="int32"), dtype="fp32"),
        3 * MATRIX,
        (3 * MATRIX).trunc(),
    ),
    "integer division": (
        lambda a: mb.cast(x=mb.real_div(x=mb.cast(x=a, dtype="int32"), y=np.int32(2)), dtype="fp32"),
        9 * MATRIX,
        ((9 * MATRIX).trunc() / 2).trunc(),
    ),
    "counting": (
        lambda a: mb.add(x=a, y=counted(mb.gather(x=mb.shape(x=a), indices=1))),
        MATRIX,
        MATRIX + torch.arange(7),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_an_operation_gives_what_torch_gives(tmp_path: Path, case: str) -> None:
    build, value, expected = CASES[case]
    actual = run(tmp_path, build, value)
    assert actual.dtype == torch.float32
    assert torch.allclose(actual, expected, atol=1e-5), case


@pytest.mark.parametrize("shapes", [((5, 7), (7,)), ((5, 1), (1, 7)), ((1,), (5, 7)), ((2, 1, 3), (4, 1))])
def test_operands_are_broadcast(tmp_path: Path, shapes: tuple[tuple[int, ...], ...]) -> None:
    left, right = (torch.randn(shape) for shape in shapes)
    smaller = run(tmp_path, lambda a, b: mb.select(cond=mb.less(x=a, y=b), a=a, b=b), left, right)
    assert torch.equal(smaller, torch.minimum(left, right))


def test_attention_may_be_masked(tmp_path: Path) -> None:
    query, key, value = (torch.randn(1, 2, n, 4) for n in (3, 6, 6))
    seen = np.array([[True, False, True, True, False, True]] * 3)
    actual = run(
        tmp_path,
        lambda a, b, c: mb.scaled_dot_product_attention(query=a, key=b, value=c, attn_mask=seen),
        query,
        key,
        value,
    )
    expected = F.scaled_dot_product_attention(query, key, value, torch.from_numpy(seen))
    assert torch.allclose(actual, expected, atol=1e-6)


def test_results_are_rounded_to_half_precision_where_the_program_says_so(tmp_path: Path) -> None:
    value = torch.full((1, 4), 0.1)
    exact = run(tmp_path, lambda a: mb.mul(x=a, y=3.0), value)
    assert torch.equal(exact, value * 3)
    rounded = run(tmp_path, lambda a: mb.mul(x=a, y=3.0), value, precision="FLOAT16")
    assert torch.equal(rounded.float(), (value.half().float() * 3).half().float())
    assert not torch.equal(rounded.float(), exact)


def test_half_precision_overflows(tmp_path: Path) -> None:
    value = torch.full((2,), 300.0)
    assert run(tmp_path, lambda a: mb.mul(x=a, y=a), value, precision="FLOAT16").isinf().all()


def test_an_unknown_operation_is_named(tmp_path: Path) -> None:
    path = package(tmp_path, lambda a: mb.cumsum(x=a, axis=0), MATRIX)
    with pytest.raises(NotImplementedError, match="cumsum"):
        mil.Program(path)


def test_inputs_must_be_those_of_the_program(tmp_path: Path) -> None:
    program = mil.Program(package(tmp_path, lambda a: mb.relu(x=a), MATRIX))
    for wrong in ({}, {"b": MATRIX}, {"a": MATRIX, "b": MATRIX}, {"a": MATRIX[:3]}, {"a": MATRIX[None]}):
        with pytest.raises(ValueError, match="input"):
            program.run(wrong)


def test_values_are_let_go_after_their_last_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def chain(a: Any) -> Any:
        for _ in range(20):
            a = mb.tanh(x=a)
        return mb.add(x=a, y=1.0)

    program = mil.Program(package(tmp_path, chain, MATRIX))
    held: list[int] = []
    results = mil.Program._results

    def watched(self: mil.Program, step: Any, values: Any) -> Any:
        held.append(len(values))
        return results(self, step, values)

    monkeypatch.setattr(mil.Program, "_results", watched)
    program.run({"a": MATRIX})
    assert len(held) == 21 and max(held) <= 2
