"""Compares forms of cross-attention in each runtime: ``python -m benchmarks.studies.attention``.

It measures one attention layer for a tile of 64x64 tokens, exported in every form that a target supports. Each form
runs in its own process. The results are the median seconds, and how much the memory of the process grows. In global
attention, the tile sees 64x64 cells. In attention within a radius of 1.5, it sees the crop for scale 1 or 4.
"""

from __future__ import annotations

import contextlib
import io
import json
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks import options, table
from infgen_model import attention, edge, paper
from infgen_model.grid import Grid
from infgen_rt.common.memory import peak_memory

TOKENS = 64
FORMS = {
    "global": ("fused", "products", "Attention"),
    "within a radius": ("shifted copies", "masked products"),
}


class Layer(nn.Module):
    """A cross-attention layer of a preset, with a grid's tensors as arguments."""

    def __init__(self, radius: float | None) -> None:
        super().__init__()
        config = paper() if radius is None else edge()
        self.radius, self.width = radius, config.width
        self.attention = attention.CrossAttention(
            config.width, config.key_width, config.heads, config.rotary, config.radius
        )

    def forward(
        self,
        tokens: Tensor,
        context: Tensor,
        key_y: Tensor,
        key_x: Tensor,
        token_y: Tensor,
        token_x: Tensor,
        extent: Tensor,
        scale: Tensor,
    ) -> Tensor:
        """See ``CrossAttention``."""
        out: Tensor = self.attention(tokens, context, Grid(key_y, key_x, token_y, token_x, extent, scale))
        return out


def masked_products(query: Tensor, key: Tensor, value: Tensor, rows: object, columns: object) -> Tensor:
    """Attention within a radius, computed as attention to all cells of the crop with a mask."""
    assert isinstance(rows, attention.Neighbours) and isinstance(columns, attention.Neighbours)
    biases = []
    for part, count in ((rows, key.shape[1]), (columns, key.shape[2])):
        place = torch.arange(count) - part.centre[:, None] + part.count // 2
        bias = part.bias.gather(1, place.clamp(0, part.count - 1))
        biases.append(torch.where((place >= 0) & (place < part.count), bias, attention.MASKED))
    mask = (biases[0][:, None, :, None] + biases[1][None, :, None, :]).flatten(2).flatten(0, 1)
    q, k, v = (part.flatten(1, 2).transpose(1, 2) for part in (query, key, value))
    out = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return out.transpose(1, 2).reshape(*query.shape[:3], -1)


def example(layer: Layer, scale: float) -> tuple[Tensor, ...]:
    """Arguments for a tile that is far from the picture's edges."""
    cells = TOKENS if layer.radius is None else round(TOKENS / scale) + 4
    key = torch.arange(cells) + 0.5
    token = torch.arange(TOKENS) / scale + 0.5 / scale + (0 if layer.radius is None else 2)
    sizes = (torch.tensor([float(cells)] * 2), torch.tensor([scale] * 2))
    tokens, context = (torch.randn(1, side, side, layer.width) for side in (TOKENS, cells))
    return tokens, context, key, key, token, token, *sizes


@contextlib.contextmanager
def form_of(name: str) -> Iterator[None]:
    """A context in which tracing the layer gives the named form of attention."""
    window, exporting = attention.window_attention, torch.onnx.is_in_onnx_export
    if name == "masked products":
        attention.window_attention = masked_products
    elif name in {"products", "Attention"}:
        torch.onnx.is_in_onnx_export = lambda: False
    try:
        yield
    finally:
        attention.window_attention, torch.onnx.is_in_onnx_export = window, exporting


def export_onnx(layer: Layer, values: tuple[Tensor, ...], form: str, file: Path) -> None:
    """Writes the layer for ONNX Runtime."""
    opset = 23 if form == "Attention" else 20
    with form_of(form):
        torch.onnx.export(layer, values, file, dynamo=True, opset_version=opset, external_data=False)


def export_openvino(layer: Layer, values: tuple[Tensor, ...], form: str, file: Path) -> None:
    """Writes the layer for OpenVINO."""
    import openvino

    with form_of(form):
        openvino.save_model(openvino.convert_model(layer, example_input=values), file, compress_to_fp16=False)


def run_onnx(file: Path) -> Callable[[list[NDArray[np.float32]]], object]:
    """Loads the layer into ONNX Runtime, and returns the function that runs it."""
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    names = [port.name for port in session.get_inputs()]
    return lambda values: session.run(None, dict(zip(names, values, strict=False)))


def run_openvino(file: Path) -> Callable[[list[NDArray[np.float32]]], object]:
    """Loads the layer into OpenVINO in float32, and returns the function that runs it."""
    from infgen_runtimes.openvino import shared_core

    compiled = shared_core().compile_model(file, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda values: compiled(values[: len(compiled.inputs)])


TARGETS = {"onnx": (export_onnx, run_onnx, ".onnx"), "openvino": (export_openvino, run_openvino, ".xml")}


def measure(target: str, file: Path) -> dict[str, float]:
    """Measures the seconds of a layer, and how many bytes this process grows. It must not have done anything else."""
    with np.load(file.with_name("values.npz")) as stored:
        values = [stored[name] for name in stored.files]
    run = TARGETS[target][1](file)
    before = peak_memory() or 0
    times = []
    for _ in range(4):
        start = time.perf_counter()
        run(values)
        times.append(time.perf_counter() - start)
    return {"seconds": statistics.median(times[1:]), "bytes": (peak_memory() or 0) - before}


def row(target: str, kind: str, form: str, scale: int) -> str:
    """Exports a layer, measures it in a new process, and returns the row of the table."""
    torch.manual_seed(0)
    layer = Layer(None if kind == "global" else 1.5).eval().requires_grad_(False)
    values = example(layer, scale)
    export, _, suffix = TARGETS[target]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"layer{suffix}"
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            export(layer, values, form, file)
        np.savez(file.with_name("values.npz"), *(value.numpy() for value in values))
        command = [sys.executable, "-m", "benchmarks.studies.attention", "--one", target, str(file)]
        result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise click.ClickException(result.stderr.strip().splitlines()[-1])
    figures = json.loads(result.stdout)
    memory = f"{figures['bytes'] / 2**20:.0f} MiB"
    return table.row(target, kind, scale, form, f"{figures['seconds']:.3f}", memory)


@click.command(cls=options.Command)
@click.option("--one", nargs=2, hidden=True)
def main(one: tuple[str, str] | None) -> None:
    """Prints the time and the memory of each form of attention."""
    if one:
        click.echo(json.dumps(measure(one[0], Path(one[1]))))
        return
    click.echo(table.head("runtime", "attention", "scale", "form", "seconds", "memory"))
    for target in TARGETS:
        for kind, forms in FORMS.items():
            for scale in (1,) if kind == "global" else (1, 4):
                # OpenVINO fuses global attention in any form.
                for form in ("products",) if target == "openvino" and kind == "global" else forms:
                    click.echo(row(target, kind, form, scale))


if __name__ == "__main__":
    main()
