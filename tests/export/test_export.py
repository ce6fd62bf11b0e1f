"""From a checkpoint to a bundle that is the model's equal, or to none at all."""

import dataclasses
import errno
import hashlib
import itertools
import json
import math
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner, Result
from onnx import numpy_helper
from torch.export import Dim

import infgen_rt
from infgen_export.cli import main
from infgen_export.errors import ExportError, RequestError
from infgen_export.pipeline import _put, export
from infgen_export.targets import Options
from infgen_export.targets import onnx as onnx_target
from infgen_export.targets.dims import dynamic_shapes
from infgen_export.verify import CASES, TOLERANCE, Check, compare, verify
from infgen_model import Enlargement, InfGen
from infgen_model.checkpoint import load_checkpoint, save_checkpoint
from infgen_model.graphs import MAX_CELLS, MAX_TOKENS, Graph
from infgen_model.sharing import share
from infgen_rt.backend.engine import Engine, Purpose
from infgen_rt.bundle.folder import Bundle
from infgen_rt.bundle.graphs import Kind
from infgen_rt.geometry.shapes import Box, Size
from infgen_rt.geometry.tiling import HaloTiling, Tiling
from infgen_rt.nodes.encoding import GivenPicture, encoded_latent, encoding_costs
from infgen_rt.nodes.features import LocalFeatures, WholeFeatures
from infgen_rt.nodes.latents import Given

from . import tiny
from .conftest import CARD, Exported
from .shortcuts import known_memory

# Inputs and output of every graph; F, T and D are fixed numbers, the model's own.
LATENT, FEATURES, CONTEXT = (
    {name: [1, n, "h", "w"]} for name, n in (("latent", 32), ("features", "F"), ("context", "D"))
)
FINE = {"fine": [1, "T", "8*h", "8*w"]}
MOMENTS = {"moments": [2, 2, 4]}
ENCODED = {"encoded": [1, "E", "h", "w"]}
CONTRACT = {
    "statistics": (LATENT | {"share_y": ["h"], "share_x": ["w"], "known": [2, 2, 4]}, MOMENTS),
    "prefill": (LATENT | MOMENTS, FEATURES),
    "trunk": (FEATURES, FINE),
    "refine": (FEATURES | FINE, CONTEXT),
    "decode": (
        {
            "context": [1, "D", "hk", "wk"],
            "key_y": ["hk"],
            "key_x": ["wk"],
            "token_y": ["ht"],
            "token_x": ["wt"],
            "extent": [2],
            "scale": [2],
        },
        {"image": [1, 3, "8*ht", "8*wt"]},
    ),
    "decode_cells": ({"context": [1, "D", "hk", "wk"]}, {"image": [1, 3, "U*hk", "U*wk"]}),
    "encode": ({"image": [1, 3, "8*h", "8*w"]}, ENCODED),
    "encode_statistics": (ENCODED | {"share_y": ["h"], "share_x": ["w"], "known": [2, 2, 4]}, MOMENTS),
    "encode_latent": (ENCODED | MOMENTS, LATENT),
}

pytestmark = pytest.mark.filterwarnings("ignore::infgen_rt.InfGenWarning")


export_one = partial(export, recipes=["onnx-fp32"])


@pytest.fixture(autouse=True)
def memory_is_known() -> Iterator[None]:
    """Memory is measured for the session's exported models, which are made before this fixture, and not again."""
    with known_memory():
        yield


def load(bundle: Path, graph: str) -> onnx.ModelProto:
    return onnx.load(bundle / f"onnx-fp32.{graph}.onnx")


# A good export.


@pytest.mark.parametrize(("size", "tile"), [((80, 56), None), ((101, 77), 40), ((313, 201), 64), ((43, 29), 8)])
def test_the_runtime_decodes_the_same_pixels_as_torch(
    exported: Exported, size: tuple[int, int], tile: int | None
) -> None:
    latent = tiny.latent(7, 10)
    with torch.inference_mode():
        expected = exported.model(latent, (size[1], size[0]))[0].permute(1, 2, 0).clamp(0, 1).numpy()
    assert np.mean((expected > 0) & (expected < 1)) > 0.5
    with infgen_rt.open(exported.bundle) as decoder:
        picture = decoder.picture(latent.numpy(), size, tile=tile)
        assert np.abs(picture.read(dtype=np.float32) - expected).max() < 1e-4
        part = picture.read((11, 3, 25, 19), dtype=np.float32)
        assert np.abs(part - expected[3:22, 11:36]).max() < 1e-4
        assert np.abs(np.asarray(picture).astype(int) - np.floor(expected * 255 + 0.5)).max() <= 1


@pytest.mark.parametrize(
    ("factor", "tile", "graph"),
    [(1, None, "decode1"), (2, None, "decode_cells2"), (4, None, "decode_cells4"), (4, 512, "decode_cells4")]
    + [(4, 16, "decode4"), (3.9, None, "decode4"), (2.1, 96, "decode4")],
)
def test_whole_cells_are_decoded_where_the_scale_allows_it(
    factor: float, tile: int | None, graph: str, tmp_path: Path, exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small tiles are not, because they would be mostly halo. A bundle without these graphs decodes the same pixels."""
    if not exported.model.config.enlargements:
        pytest.skip("a model of this kind has no enlargements")
    ran: list[str] = []
    run = Engine.run

    def on_run(engine: Engine, kind: Kind, inputs: Any, enlargement: Any = None, shared: bool = False) -> Any:
        ran.append(enlargement.graph(kind.name) if kind.enlarged else kind.name)
        return run(engine, kind, inputs, enlargement, shared)

    monkeypatch.setattr(Engine, "run", on_run)
    columns = 32 if tile == 512 else 15  # two tiles, and one
    latent, size = tiny.latent(13, columns), (round(8 * columns * factor), round(8 * 13 * factor))
    with torch.inference_mode():
        expected = exported.model(latent, (size[1], size[0]))[0].permute(1, 2, 0).clamp(0, 1).numpy()
    lacking = tmp_path / "lacking"
    shutil.copytree(exported.bundle, lacking)
    manifest = json.loads((lacking / "manifest.json").read_text())
    for recipe in manifest["recipes"]:
        recipe["graphs"] = {name: file for name, file in recipe["graphs"].items() if "cells" not in name}
    (lacking / "manifest.json").write_text(json.dumps(manifest))
    for bundle, decoding in ((exported.bundle, graph), (lacking, graph.replace("_cells", ""))):
        ran.clear()
        with infgen_rt.open(bundle) as decoder:
            picture = decoder.picture(latent.numpy(), size, tile=tile)
            assert np.abs(picture.read(dtype=np.float32) - expected).max() < 1e-4
            x, y, width, height = (size[0] // 3, size[1] // 4, size[0] // 2, size[1] // 3)
            again = decoder.picture(latent.numpy(), size, tile=tile)
            part = again.read((x, y, width, height), dtype=np.float32)
            assert np.abs(part - expected[y : y + height, x : x + width]).max() < 1e-4
        assert {name for name in ran if name.startswith("decode")} == {decoding}


@pytest.mark.slow
def test_a_trunk_without_statistics_has_no_graph_for_them(tmp_path: Path) -> None:
    config = dataclasses.replace(tiny.EDGE, latent_space="sdxl", latent_channels=4, pooled=False)
    model = tiny.model(dataclasses.replace(config, enlargements=(Enlargement(2, 1),)))
    save_checkpoint(tmp_path / "checkpoint", model)
    export_one(tmp_path / "checkpoint", tmp_path / "bundle", card=CARD, leave_out=["*.encode"])
    latent = torch.randn(1, 4, 7, 10, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = model(latent, (77, 101))[0].permute(1, 2, 0).clamp(0, 1).numpy()
    with infgen_rt.open(tmp_path / "bundle") as decoder:
        picture = decoder.picture(latent.numpy(), (101, 77), tile=40)
        assert np.abs(picture.read(dtype=np.float32) - expected).max() < 1e-4
        assert picture.plan.stages[0].context.is_local
        engine, box = decoder._engine, Box(2, 3, 4, 3)
        given = Given(latent.numpy()[0], engine)
        nodes = (LocalFeatures(given, None, engine), WholeFeatures(given, Purpose("test"), engine))
        for node in nodes:
            list(node.prepare())
        assert np.allclose(*(node.read(box) for node in nodes), atol=1e-5)
    manifest = Bundle.open(tmp_path / "bundle").manifest
    assert manifest.moments is None and "statistics" not in manifest.recipes[0].graphs
    assert manifest.prefill_is_local and manifest.halo.prefill > 0


@pytest.mark.parametrize("cells", [(1, 1), (5, 9), (31, 2)])
def test_the_encoder_is_torchs_too(exported: Exported, cells: tuple[int, int]) -> None:
    image = torch.rand(1, 3, 8 * cells[0], 8 * cells[1])
    with torch.inference_mode():
        expected = exported.model.encode(image)[0].numpy()
    with infgen_rt.open(exported.bundle) as decoder:
        assert np.abs(decoder.encode(image[0].permute(1, 2, 0).numpy()) - expected).max() < 1e-4


def test_an_encoder_with_statistics_gives_the_same_latent_in_any_tiles(exported: Exported) -> None:
    """The picture is the same everywhere but in a corner, so that each part alone has other statistics."""
    image = 0.3 + 0.02 * torch.rand(1, 3, 8 * 21, 8 * 33, generator=torch.Generator().manual_seed(0))
    image[..., 60:, 80:] *= torch.rand(1, 3, 108, 184, generator=torch.Generator().manual_seed(1)) * 3
    with torch.inference_mode():
        expected = exported.model.encode(image.clamp(0, 1))[0].numpy()
    pixels = image.clamp(0, 1)[0].permute(1, 2, 0).numpy()
    with infgen_rt.open(exported.bundle) as decoder:
        engine, manifest = decoder._engine, decoder.manifest
        engine.load_encoder()
        for side, count in ((64, 1), (16, 6), (8, 15)):
            tiles = HaloTiling(Tiling.of(Size(33, 21), Size(side, side)), manifest.encode_halo)
            node = encoded_latent(GivenPicture(pixels, manifest.patch), tiles, engine)
            steps = Counter(node.prepare())
            assert tiles.tiling.count == count
            costs = encoding_costs(tiles, None, manifest, manifest.memory(manifest.recipes[0]))
            assert steps.total() == sum(cost.steps for cost in costs)
            assert np.abs(node.read(tiles.tiling.box) - expected).max() < 1e-4
        if manifest.encoder_moments is None:
            return
        # Without the true statistics, a part of the picture has another latent.
        alone = decoder.encode(pixels[:64, :80])
        assert np.abs(alone - expected[:, :8, :10]).max() > 0.01


GRAPHS = {
    "tiny-edge": [
        *("statistics", "prefill", "trunk"),
        *(f"{kind}{factor}" for kind in ("refine", "decode") for factor in (1, 2, 4)),
        *("decode_cells2", "decode_cells4"),
        *("encode", "encode_statistics", "encode_latent"),
    ],
    "tiny-paper": ["prefill", "decode", "encode"],
}


def test_a_model_has_the_graphs_of_its_kind(exported: Exported) -> None:
    """One without a trunk has no statistics to be given, and its features are the context."""
    names = GRAPHS[exported.model.config.name]
    assert tiny.graph_names(exported.model) == names
    assert sorted(path.name for path in exported.bundle.glob("*.onnx")) == sorted(
        f"onnx-fp32.{name}.onnx" for name in names
    )


@pytest.mark.parametrize("graph", GRAPHS["tiny-edge"] + ["decode"])
def test_a_graph_keeps_the_contract(exported: Exported, graph: str) -> None:
    config = exported.model.config
    if graph not in GRAPHS[config.name]:
        pytest.skip("a model of this kind has no such graph")
    kind, factor = graph.rstrip("124"), graph[-1]
    contract = CONTRACT[kind]
    if kind == "prefill" and not config.detail:
        contract = (LATENT, CONTEXT)
    elif kind == "encode" and not config.encoder_pooled:
        contract = (contract[0], LATENT)
    enlargement = next((each for each in config.enlargements if str(each.factor) == factor), None)
    model = load(exported.bundle, graph)
    numbers = {"F": config.feature_channels, "T": config.fine_channels, "D": config.context_channels(enlargement)}
    numbers["E"] = config.encoder_channels
    for values, expected in zip((model.graph.input, model.graph.output), contract, strict=True):
        shapes = {value.name: value.type.tensor_type for value in values}
        expected = {
            name: [f"{8 * int(factor)}{side[1:]}" if str(side)[0] == "U" else numbers.get(side, side) for side in shape]
            for name, shape in expected.items()
        }
        assert {
            name: [dim.dim_param or dim.dim_value for dim in shape.shape.dim] for name, shape in shapes.items()
        } == expected
        assert {shape.elem_type for shape in shapes.values()} == {onnx.TensorProto.FLOAT}
        assert all(value.doc_string for value in values)
    properties = {entry.key: entry.value for entry in model.metadata_props}
    largest = {"t": MAX_TOKENS, "k": MAX_CELLS, "h": MAX_CELLS, "w": MAX_CELLS}
    names = {"decode": {"hk", "wk", "ht", "wt"}, "decode_cells": {"hk", "wk"}}.get(kind, {"h", "w"})
    assert {f"bounds.{name}": f"1..{largest[name[-1]]}" for name in names}.items() <= properties.items()
    assert sum(key.startswith("bounds.") for key in properties) == len(names)
    assert properties["licence"] == "CC0-1.0" and properties["latent_space"] == "flux2"
    assert properties["model"] == exported.model.config.name and properties["graph"] == graph
    fused = [("com.microsoft", 1)] if kind == "decode" and exported.model.config.radius is None else []
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 20), *fused]


def test_nothing_of_this_machine_is_in_the_bundle(exported: Exported) -> None:
    root = Path(__file__).parents[2]
    private = [str(root), str(Path.home()), str(exported.bundle.parent), ".py", "site-packages"]
    for file in exported.bundle.rglob("*.*"):
        content = file.read_bytes()
        assert [text for text in private if len(text) > 1 and text.encode() in content] == [], file.name


def test_the_manifest_says_what_the_model_is(exported: Exported) -> None:
    config, manifest = exported.model.config, Bundle.open(exported.bundle).manifest
    assert (manifest.model.name, manifest.model.version) == (config.name, CARD.version)
    assert (manifest.model.licence, manifest.model.training) == (CARD.licence, CARD.training)
    assert sum(manifest.model.parameters.values()) == sum(p.numel() for p in exported.model.parameters())
    assert (manifest.latent_space, manifest.latent_channels) == ("flux2", 32)
    channels = [each.channels for each in manifest.contexts]
    assert channels == {"tiny-edge": [16 + (3 + 3 * n * n) * 64 for n in (1, 2, 4)], "tiny-paper": [16]}[config.name]
    for each, own in zip(manifest.enlargements, config.enlargements, strict=True):
        assert (each.factor, each.halo) == (own.factor, config.refine_halo(own))
    works = [each.work for each in manifest.enlargements]
    assert works == sorted(set(works)) and all(works)
    assert manifest.feature_channels == {"tiny-edge": 8, "tiny-paper": None}[config.name]
    assert manifest.scale_range == config.scale_range and manifest.patch == 8
    halo = manifest.halo
    assert (halo.tokens, halo.cells, halo.encode_pixels) == (config.halo_tokens, config.radius, config.encode_halo)
    assert (halo.prefill, halo.encode_latent) == (config.prefill_halo, config.encode_latent_halo)
    assert (manifest.encoder_channels, manifest.encoder_moments) == (config.encoder_channels, config.encoder_moments)
    assert manifest.moments == {"tiny-edge": (2, 4), "tiny-paper": None}[config.name]
    (recipe,) = manifest.recipes
    assert (recipe.name, recipe.target, recipe.precision) == ("onnx-fp32", "onnx", "fp32")
    files = {path.relative_to(exported.bundle).as_posix() for path in exported.bundle.rglob("*.*")}
    assert files == {"manifest.json", *manifest.files}
    assert set(manifest.files) == {"weights.safetensors", *recipe.graphs.values()}
    for name, info in manifest.files.items():
        content = (exported.bundle / name).read_bytes()
        assert (hashlib.sha256(content).hexdigest(), len(content)) == (info.sha256, info.bytes)


def test_memory_is_the_runtimes_own_and_not_that_of_torch(exported: Exported) -> None:
    memory = Bundle.open(exported.bundle).manifest.recipes[0].memory
    assert 20e6 < memory.base < 200e6
    # At least the decoded pixels; far more would be memory that is not the tile's.
    assert 4 * 3 * 64 < memory.decode_per_token < 100e3
    assert 0 < memory.prefill_per_cell < 100e3
    for graph in ("statistics", "trunk", "refine"):
        named = any(name.startswith(graph) for name in tiny.graph_names(exported.model))
        assert (getattr(memory, f"{graph}_per_cell") > 0) == named


def test_the_report_has_every_graph_at_every_shape(exported: Exported) -> None:
    assert [entry.graph for entry in exported.report.graphs] == tiny.graph_names(exported.model)
    for entry in exported.report.graphs:
        assert [check.case for check in entry.checks] == [case.name for case in CASES]
        assert 0 <= entry.max_error <= TOLERANCE and entry.psnr > 80 and not entry.failures()
        assert entry.bytes > (exported.bundle / f"onnx-fp32.{entry.graph}.onnx").stat().st_size
    rows = str(exported.report).splitlines()
    assert rows[0].split()[:2] == ["recipe", "graph"] and [row.split()[1] for row in rows[1:]] == tiny.graph_names(
        exported.model
    )
    verification = Bundle.open(exported.bundle).manifest.verification
    assert list(verification) == json.loads(json.dumps(exported.report.to_json()))["graphs"]


def test_progress_names_each_step(exported: Exported) -> None:
    steps = [line for line in exported.progress if not line.startswith("  ")]
    names = tiny.graph_names(exported.model)
    graphs = [f"[{number}/{len(names)}] onnx-fp32.{graph}" for number, graph in enumerate(names, start=1)]
    assert steps == [*graphs, "onnx-fp32: measuring memory"]
    details = exported.progress[1 : exported.progress.index(graphs[1])]
    assert details[0].startswith("  converted in ")
    assert [line.split(":")[0].strip() for line in details[1:]] == [case.name for case in CASES]


def test_cases_differ_in_every_dimension() -> None:
    """A dimension that all cases share could be baked in unnoticed."""
    assert len(CASES) >= 6
    for sides in zip(*((*case.cells, *case.size) for case in CASES), strict=True):
        assert len(set(sides)) >= 4
    assert any(case.tile for case in CASES) and any(case.size.width % 8 for case in CASES)


@pytest.mark.slow
@pytest.mark.parametrize("opset", [18, 23])
def test_other_opsets(tmp_path: Path, opset: int) -> None:
    """With one enlargement, because the graphs of all of them have the same operations, and tracing takes long."""
    config = dataclasses.replace(tiny.EDGE, enlargements=tiny.EDGE.enlargements[1:2])
    save_checkpoint(tmp_path / "checkpoint", tiny.model(config))
    options = Options(opset=opset)
    export(tmp_path / "checkpoint", tmp_path / "bundle", recipes=["onnx-fp32"], options=options, leave_out=["*encode*"])
    assert load(tmp_path / "bundle", "decode2").opset_import[0].version == opset


# A bad export: graphs that were made well are damaged before they are verified.

Edit = Callable[[onnx.GraphProto], None]


@pytest.fixture
def damage(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes conversion give the graphs of the good export, edited; without edits, an export is quick.

    Only edited graphs are verified, because the others have passed in the good export. No graph is timed.
    """
    passed = {entry.graph: entry.checks for entry in exported.report.graphs}

    def damage(**edits: Edit) -> None:
        def verified(model: InfGen, graph: Graph, *others: Any) -> Iterator[Check]:
            return verify(model, graph, *others) if graph.kind.name in edits else iter(passed[graph.name])

        def trace(graph: Graph, *_: object) -> onnx.ModelProto:
            model = load(exported.bundle, graph.name)
            edits.get(graph.kind.name, lambda _: None)(model.graph)
            return model

        monkeypatch.setattr("infgen_export.targets.onnx.trace", trace)
        monkeypatch.setattr("infgen_export.model_export.verify", verified)
        monkeypatch.setattr("infgen_export.model_export.ModelExport._seconds", lambda *_: 0.0)
        monkeypatch.setattr("onnx.checker.check_model", lambda *_, **__: None)

    return damage


def weight(graph: onnx.GraphProto) -> None:
    tensor = max(graph.initializer, key=lambda tensor: len(tensor.raw_data))
    values = numpy_helper.to_array(tensor).copy()
    values.flat[values.size // 2] += 0.5
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def swapped_axes(graph: onnx.GraphProto) -> None:
    other = {"key_y": "key_x", "key_x": "key_y"}
    for node in graph.node:
        node.input[:] = [other.get(name, name) for name in node.input]


def swapped_scale(graph: onnx.GraphProto) -> None:
    graph.initializer.append(numpy_helper.from_array(np.array([1, 0]), "turn"))
    for node in graph.node:
        node.input[:] = ["turned" if name == "scale" else name for name in node.input]
    graph.node.insert(0, onnx.helper.make_node("Gather", ["scale", "turn"], ["turned"]))


def mirrored(graph: onnx.GraphProto) -> None:
    """The output back to front: the right shape at every case."""
    output = graph.output[0].name
    for node in graph.node:
        node.output[:] = ["straight" if name == output else name for name in node.output]
    for name, value in (("start", -1), ("end", -(2**31)), ("axis", 3), ("step", -1)):
        graph.initializer.append(numpy_helper.from_array(np.array([value]), f"mirror_{name}"))
    names = [f"mirror_{name}" for name in ("start", "end", "axis", "step")]
    graph.node.append(onnx.helper.make_node("Slice", ["straight", *names], [output]))


def half_size(graph: onnx.GraphProto) -> None:
    output = graph.output[0].name
    for node in graph.node:
        node.output[:] = ["large" if name == output else name for name in node.output]
    graph.node.append(onnx.helper.make_node("MaxPool", ["large"], [output], kernel_shape=[2, 2], strides=[2, 2]))


def not_a_number(graph: onnx.GraphProto) -> None:
    output = graph.output[0].name
    for node in graph.node:
        node.output[:] = ["number" if name == output else name for name in node.output]
    graph.initializer.append(numpy_helper.from_array(np.array(-1e-3, np.float32), "below"))
    graph.node.append(onnx.helper.make_node("Min", ["number", "below"], ["negative"]))
    graph.node.append(onnx.helper.make_node("Log", ["negative"], [output]))


def fixed_width(graph: onnx.GraphProto) -> None:
    graph.input[0].type.tensor_type.shape.dim[3].dim_value = 16


def nonsense(graph: onnx.GraphProto) -> None:
    graph.node[0].op_type = "NoSuchOperation"


FAULTS = [
    ("prefill", weight, r"onnx-fp32\.prefill differs from PyTorch in \d of 9 cases, most in '\w+': "),
    ("decode", weight, r"onnx-fp32\.decode\d? differs from PyTorch in \d of 9 cases"),
    ("encode", weight, r"onnx-fp32\.encode differs from PyTorch in \d of 9 cases"),
    ("decode", swapped_axes, r"onnx-fp32\.decode\d?( differs from PyTorch|, case \w+: )"),
    ("decode", swapped_scale, r"onnx-fp32\.decode\d? differs from PyTorch"),
    ("prefill", mirrored, r"prefill differs from PyTorch in [789] of 9 cases"),
    ("encode", mirrored, r"encode differs from PyTorch in [789] of 9 cases"),
    ("decode", not_a_number, r"decode\d? differs from PyTorch in 9 of 9 cases, .*: inf of full scale"),
    ("decode", half_size, r"onnx-fp32\.decode\d?, case square: shape \[1, 3, 128, 128\], expected \[1, 3, 256, 256\]"),
    ("prefill", fixed_width, r"onnx-fp32\.prefill, case wide: .*[Gg]ot.* 40 .*[Ee]xpected.* 16"),
    ("encode", nonsense, r"onnx-fp32\.encode cannot be converted: .*NoSuchOperation"),
]


@pytest.mark.parametrize(("graph", "edit", "text"), FAULTS)
def test_a_graph_that_is_not_the_models_equal_is_not_shipped(
    exported: Exported, damage: Callable[..., None], tmp_path: Path, graph: str, edit: Edit, text: str
) -> None:
    damage(**{graph: edit})
    with pytest.raises(ExportError, match=text) as caught:
        export_one(exported.checkpoint, tmp_path / "bundle")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_dimension_that_the_converter_bakes_in_is_noticed(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_width(graph: Graph) -> tuple[dict[int, Dim], ...]:
        return tuple({n: d for n, d in dims.items() if d.__name__ != "w"} for dims in dynamic_shapes(graph))

    monkeypatch.setattr("infgen_export.targets.onnx.dynamic_shapes", without_width)
    with pytest.raises(ExportError, match=rf"^onnx-fp32\.{tiny.graph_names(exported.model)[0]}, case square: "):
        export_one(exported.checkpoint, tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_is_replaced_only_by_one_that_passes(
    exported: Exported, damage: Callable[..., None], tmp_path: Path
) -> None:
    bundle = Path(shutil.copytree(exported.bundle, tmp_path / "bundle"))
    before = contents(tmp_path)
    damage(encode=weight)
    with pytest.raises(ExportError, match="encode differs"):
        export_one(exported.checkpoint, bundle, force=True)
    assert contents(tmp_path) == before
    damage()
    export_one(exported.checkpoint, bundle, force=True)
    assert Bundle.open(bundle).manifest.model.version == "0"
    assert list(tmp_path.iterdir()) == [bundle]


def test_a_bundle_that_cannot_be_moved_leaves_the_one_before(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = Path(shutil.copytree(exported.bundle, tmp_path / "bundle"))
    before, rename = contents(tmp_path), Path.rename

    def refuse(path: Path, target: Path) -> Path:
        if path.name == "bundle" and path != bundle:
            raise OSError("no space left")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(ExportError, match="cannot be replaced .no space left.: close the programs that use it$"):
        export_one(exported.checkpoint, bundle, force=True)
    assert contents(tmp_path) == before


def test_a_link_to_a_bundle_stays_a_link(exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = Path(shutil.copytree(exported.bundle, tmp_path / "real"))
    (tmp_path / "link").symlink_to(bundle)
    export_one(exported.checkpoint, tmp_path / "link", force=True)
    assert (tmp_path / "link").is_symlink() and Bundle.open(bundle).manifest.model.version == "0"
    # The folder that the command is run in can be replaced too.
    monkeypatch.chdir(bundle)
    export_one(exported.checkpoint, ".", force=True)
    assert Bundle.open(bundle).manifest.model.version == "0"


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_bundle_that_is_in_use_stays_and_the_new_one_is_kept_beside_it(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows does not move a folder with an open file in it, such as the bundle of a decoder."""
    place, building = tmp_path / "bundle", tmp_path / "temporary" / "bundle"
    shutil.copytree(exported.bundle, place)
    building.mkdir(parents=True)
    (building / "new").touch()
    before, rename = contents(place), Path.rename

    def in_use(self: Path, target: Path) -> Path:
        if self == place:
            raise PermissionError(errno.EACCES, "Access is denied")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", in_use)
    with pytest.raises(ExportError, match=f"bundle cannot be replaced .*the new bundle is {tmp_path / 'bundle-new'}"):
        _put(building, place, tmp_path / "temporary" / "replaced", force=True)
    assert contents(place) == before and (tmp_path / "bundle-new" / "new").exists()


@pytest.mark.parametrize("force", [False, True])
def test_what_is_no_bundle_is_never_replaced(exported: Exported, tmp_path: Path, force: bool) -> None:
    folder, file = tmp_path / "folder", tmp_path / "file"
    (folder / "thesis").mkdir(parents=True)
    (folder / "thesis" / "chapter.txt").write_text("precious")
    (folder / "manifest.json").write_text('{"name": "an app for browsers"}')
    file.write_text("precious")
    before = contents(tmp_path)
    for output in (folder, file):
        with pytest.raises(RequestError, match=f"{output.name} exists: it is not a bundle"):
            export_one(exported.checkpoint, output, force=force)
    assert contents(tmp_path) == before


def test_what_appears_during_an_export_is_not_replaced(exported: Exported, tmp_path: Path) -> None:
    output = tmp_path / "bundle"

    def appear(line: str) -> None:
        output.mkdir(exist_ok=True)
        (output / "thesis.txt").write_text("precious")

    with pytest.raises(ExportError, match=f"it was not there when the export began; the new bundle is {output}-new"):
        export_one(exported.checkpoint, output, progress=appear)
    assert contents(output) == {output / "thesis.txt": b"precious"}
    assert Bundle.open(f"{output}-new").manifest.recipes


def test_a_bundle_with_other_files_in_it_is_not_replaced(exported: Exported, tmp_path: Path) -> None:
    output = Path(shutil.copytree(exported.bundle, tmp_path / "bundle"))
    shutil.copytree(exported.checkpoint, output / "checkpoint")
    before = contents(output)
    with pytest.raises(RequestError, match="which would be replaced: choose another output"):
        export_one(output / "checkpoint", output, force=True)
    with pytest.raises(RequestError, match="other files in it, such as checkpoint/config.json, which would be deleted"):
        export_one(exported.checkpoint, output, force=True)
    assert contents(output) == before


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signal")
def test_a_signal_leaves_nothing(exported: Exported, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "infgen_export.cli", str(exported.checkpoint), "--recipe", "onnx-fp32"]
    with subprocess.Popen([*command, "-o", str(tmp_path / "bundle")], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert any(line.startswith("[1/") for line in process.stderr)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM
    assert not list(tmp_path.iterdir())


def test_the_folder_of_a_process_that_died_is_removed(exported: Exported, tmp_path: Path) -> None:
    for name, lock in ((".bundle.0123abcd", True), (".bundle.notes", True), (".bundle.89abcdef", False)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "graph").touch()
        if lock:
            (tmp_path / name / "writing.lock").touch()
    export_one(exported.checkpoint, tmp_path / "bundle")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".bundle.89abcdef", ".bundle.notes", "bundle"]


@pytest.mark.parametrize("name", ["a" * 300, "loop"])
def test_an_odd_name_of_an_output_is_refused(exported: Exported, tmp_path: Path, name: str) -> None:
    (tmp_path / "loop").symlink_to("pool")
    (tmp_path / "pool").symlink_to("loop")
    with pytest.raises(RequestError, match="cannot be written: |exists: "):
        export_one(exported.checkpoint, tmp_path / name)


def test_an_existing_bundle_is_kept_without_force(exported: Exported) -> None:
    before = contents(exported.bundle)
    with pytest.raises(RequestError, match="exists: use --force to replace it"):
        export_one(exported.checkpoint, exported.bundle)
    assert contents(exported.bundle) == before


def test_an_output_that_cannot_be_written_is_found_before_work(exported: Exported, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RequestError, match="bundle cannot be written: "):
        export_one(exported.checkpoint, tmp_path / "file" / "bundle", progress=pytest.fail)


def test_an_unknown_target_is_refused(exported: Exported, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="unknown target 'abacus': expected one of onnx"):
        export(exported.checkpoint, tmp_path / "bundle", ["onnx", "abacus"])


@pytest.mark.parametrize(
    ("graph", "actual", "expected", "error"),
    [
        ("decode", [0.5, 1.0], [0.5, 0.75], 0.25),
        ("prefill", [0.5, 11.0], [0.5, 10.0], 0.1),
        ("encode", [0.0, 0.1], [0.0, 0.2], 0.1),
        ("decode", [0.5, math.nan], [0.5, 0.5], math.inf),
    ],
)
def test_errors_are_shares_of_full_scale(graph: str, actual: list[float], expected: list[float], error: float) -> None:
    check = compare(graph, "case", torch.tensor(actual), torch.tensor(expected))
    assert check.max_error == pytest.approx(error) and not check.passed and check.worst == (1,)
    equal = compare(graph, "case", torch.tensor(expected), torch.tensor(expected))
    assert equal.passed and equal.psnr == math.inf


# The command.

ONE = ("--target", "onnx", "--recipe", "onnx-fp32")


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_the_command_makes_a_bundle(exported: Exported, damage: Callable[..., None], tmp_path: Path) -> None:
    damage()
    bundle = tmp_path / "new" / "bundle"
    card = ("--model-version", "3", "--licence", "MIT", "--training", "long")
    result = run(exported.checkpoint, *ONE, "-o", bundle, *card)
    assert result.exit_code == 0
    assert result.stdout.startswith("recipe") and result.stdout.endswith(f"wrote {bundle}\n")
    graphs = tiny.graph_names(exported.model)
    assert result.stderr.splitlines()[0] == f"[1/{len(graphs)}] onnx-fp32.{graphs[0]}"
    model = Bundle.open(bundle).manifest.model
    assert (model.version, model.licence, model.training) == ("3", "MIT", "long")

    result = run(exported.checkpoint, *ONE, "-o", bundle, "--force", "--json", "--quiet")
    assert result.exit_code == 0 and result.stderr == ""
    assert [entry["graph"] for entry in json.loads(result.stdout)["graphs"]] == tiny.graph_names(exported.model)
    result = run(exported.checkpoint, *ONE, "-o", bundle, "--force", "--quiet")
    assert (result.exit_code, result.output) == (0, "")


def test_a_failed_proof_is_exit_code_1(exported: Exported, damage: Callable[..., None], tmp_path: Path) -> None:
    damage(prefill=weight)
    result = run(exported.checkpoint, *ONE, "-o", tmp_path / "bundle", "--quiet")
    assert result.exit_code == 1 and result.stdout == ""
    assert result.stderr.startswith("Error: onnx-fp32.prefill differs") and result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
    result = run(exported.checkpoint, *ONE, "-o", tmp_path / "bundle", "--quiet", "--json")
    assert result.exit_code == 1 and [entry["graph"] for entry in json.loads(result.stdout)["graphs"]][-1] == "prefill"


BAD = {
    "no checkpoint": (["none", "-o", "out"], "none is not a checkpoint folder"),
    "a pickle": (["model.pt", "-o", "out"], "pickles are refused"),
    "a bad config": (["broken", "-o", "out"], "config.json cannot be read"),
    "a folder": (["CHECKPOINT", "-o", "folder"], "it is not a bundle"),
    "forced on a folder": (["CHECKPOINT", "-o", "folder", "--force"], "it is not a bundle"),
    "an existing bundle": (["CHECKPOINT", "-o", "BUNDLE"], "use --force"),
    "a target": (["CHECKPOINT", "-o", "out", "--target", "abacus"], "unknown target 'abacus'"),
    "an opset": (["CHECKPOINT", "-o", "out", "--opset", "9"], "opset 9 is not possible: expected 18 to 23"),
    "a system": (["CHECKPOINT", "-o", "out", "--min-deployment-target", "iOS9"], "unknown deployment target 'iOS9'"),
    "an opset without ONNX": (
        ["CHECKPOINT", "-o", "out", "--target", "openvino", "--opset", "18"],
        "--opset is for onnx, which is not exported: leave it out, or export onnx too",
    ),
    "a system without Core ML": (
        ["CHECKPOINT", "-o", "out", "--min-deployment-target", "macOS26"],
        "--min-deployment-target is for coreml, which is not exported",
    ),
    "options of recipes": (["recipes", "--quiet"], "recipes takes no options: for a checkpoint in a folder"),
    "a recipe": (["CHECKPOINT", "-o", "out", "--recipe", "onnx-fp64"], "unknown recipe 'onnx-fp64'"),
    "a foreign recipe": (
        ["CHECKPOINT", "-o", "out", "--target", "onnx", "--recipe", "coreml-fp16"],
        "recipe 'coreml-fp16' is for target 'coreml', which was not requested: add --target coreml",
    ),
    "a target without a recipe": (
        ["CHECKPOINT", "-o", "out", "--target", "onnx", "--target", "openvino", "--recipe", "onnx-fp32"],
        "no recipe for target 'openvino' among onnx-fp32",
    ),
    "a report": (["CHECKPOINT", "-o", "out", "--report", "report.xls"], "must end in .md or .json"),
    "a report in no folder": (["CHECKPOINT", "-o", "out", "--report", "none/report.md"], "in a folder that exists"),
    "no output": (["CHECKPOINT"], "--output"),
    "an empty output": (["CHECKPOINT", "-o", ""], "it is empty"),
    "an empty checkpoint": (["", "-o", "out"], "it is empty"),
    "an unwritable output": (["CHECKPOINT", "-o", "model.pt/out"], "cannot be written"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_exit_code_2(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    arguments, text = BAD[name]
    monkeypatch.chdir(tmp_path)
    Path("model.pt").write_bytes(b"")
    for folder in ("folder", "broken"):
        Path(folder).mkdir()
        Path(folder, "config.json").write_text("{}")
    Path("broken", "model.safetensors").write_bytes(b"")
    before = contents(tmp_path) | contents(exported.bundle)
    places = {"CHECKPOINT": exported.checkpoint, "BUNDLE": exported.bundle}
    result = run(*(places.get(argument, argument) for argument in arguments))
    assert result.exit_code == 2 and result.stdout == ""
    last = result.stderr.splitlines()[-1]
    assert last.startswith("Error: ") and text in last and "Traceback" not in result.stderr
    assert contents(tmp_path) | contents(exported.bundle) == before


def test_help_is_quick_because_torch_is_not_loaded() -> None:
    code = (
        "import sys; from infgen_export.cli import main; main(['--help'], standalone_mode=False); print(*sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.startswith("Usage: ")
    assert not {"torch", "onnx", "onnxruntime"} & set(itertools.chain(*map(str.split, result.stdout.splitlines()[-1:])))


# Several latent spaces.


@pytest.fixture(scope="module")
def of_spaces(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoints of two latent spaces that share all but what belongs to a space; not to be changed."""
    folder, guide = tmp_path_factory.mktemp("spaces"), tiny.model(tiny.EDGE)
    other = dataclasses.replace(tiny.EDGE, name="tiny-sdxl", latent_space="sdxl", latent_channels=4, pooled=False)
    model = tiny.model(other, seed=1)
    share(guide, model)
    save_checkpoint(folder / "flux2", guide)
    save_checkpoint(folder / "sdxl", model)
    return {space: folder / space for space in ("flux2", "sdxl")}


def test_models_of_several_spaces_share_a_bundle(of_spaces: dict[str, Path], tmp_path: Path) -> None:
    """Graphs after the trunk are exported once, and every space has the pixels of its own model."""
    report = export_one(list(of_spaces.values()), tmp_path / "bundle", card=CARD, leave_out=["*.encode.sdxl"])
    own = [entry.graph for entry in report.graphs if entry.space == "sdxl"]
    assert own == ["prefill", "trunk"] and not any(entry.failures() for entry in report.graphs)
    assert Bundle.open(tmp_path / "bundle").spaces == ("flux2", "sdxl")
    manifests = {space: Bundle.open(tmp_path / "bundle", space).manifest for space in of_spaces}
    recipes = {space: manifest.recipes[0] for space, manifest in manifests.items()}
    same = recipes["flux2"].graphs.items() & recipes["sdxl"].graphs.items()
    assert {name for name, _ in same} == {
        *(f"{kind}{factor}" for kind in ("refine", "decode") for factor in (1, 2, 4)),
        *("decode_cells2", "decode_cells4"),
    }
    assert recipes["sdxl"].graphs["trunk"] == "onnx-fp32.trunk.sdxl.onnx" and "encode" not in recipes["sdxl"].graphs
    assert recipes["flux2"].graphs["encode"] == "onnx-fp32.encode.flux2.onnx"
    for space, folder in of_spaces.items():
        model = load_checkpoint(folder)
        latent = torch.randn(1, model.config.latent_channels, 7, 10, generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            expected = model(latent, (77, 101))[0].permute(1, 2, 0).clamp(0, 1).numpy()
        with infgen_rt.open(tmp_path / "bundle", space=space) as decoder:
            pixels = decoder.picture(latent.numpy(), (101, 77), tile=40).read(dtype=np.float32)
        assert np.abs(pixels - expected).max() < 1e-4
        # Each is told how good its own graphs and the shared ones are.
        assert manifests[space].psnr("onnx-fp32", "fp32") > 80
    # Each space but the first has a file of weights, which no other space needs.
    files = ["weights.safetensors", "weights.sdxl.safetensors"]
    assert sorted(path.name for path in (tmp_path / "bundle").glob("*.safetensors")) == files
    for space, recipe in recipes.items():
        for graph in recipe.graphs:
            own = space == "sdxl" and graph in ("prefill", "trunk")
            assert recipe.weights_of(graph) == (files[own],)
        assert (files[1] in manifests[space].files) == (space == "sdxl")
    (tmp_path / "bundle" / files[0]).unlink()
    features = torch.zeros(1, manifests["sdxl"].feature_channels or 0, 3, 4)
    trunk = onnx_target.Session(tmp_path / "bundle" / "onnx-fp32.trunk.sdxl.onnx")
    assert trunk({"features": features}).shape[2:] == (24, 32)


@pytest.mark.parametrize(
    ("recipe", "backend"),
    [("torch-fp32", "torch"), pytest.param("openvino-fp32", "openvino", marks=pytest.mark.slow)],
)
def test_other_targets_refer_to_the_weights_of_a_space_too(
    of_spaces: dict[str, Path], tmp_path: Path, recipe: str, backend: str
) -> None:
    bundle = tmp_path / "bundle"
    export(list(of_spaces.values()), bundle, recipes=[recipe], card=CARD, validate=False, leave_out=["*.encode.*"])
    assert len(list(bundle.glob("*.safetensors"))) == 2
    model = load_checkpoint(of_spaces["sdxl"])
    latent = torch.randn(1, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = model(latent, (61, 85))[0].permute(1, 2, 0).clamp(0, 1).numpy()
    with infgen_rt.open(bundle, backend, space="sdxl", precision="exact") as decoder:
        pixels = decoder.picture(latent.numpy(), (85, 61)).read(dtype=np.float32)
    assert np.abs(pixels - expected).max() < 1e-4
    opened = Bundle.open(bundle, "sdxl").manifest.recipes[0]
    # A file of PyTorch has several graphs, so it refers to both files of weights.
    trunk = ("weights.sdxl.safetensors", "weights.safetensors")
    assert set(opened.weights_of("trunk")) == set(trunk if backend == "torch" else trunk[:1])


def test_what_models_of_several_spaces_cannot_be(of_spaces: dict[str, Path], tmp_path: Path) -> None:
    flux2, sdxl = of_spaces.values()
    with pytest.raises(RequestError, match=r"sdxl is a second model for sdxl latents: a bundle has one for each"):
        export_one([flux2, sdxl, sdxl], tmp_path / "bundle")
    save_checkpoint(tmp_path / "stranger", tiny.model(load_checkpoint(sdxl).config, seed=2))
    with pytest.raises(RequestError, match=r"stranger and .*flux2 differ in what models of one bundle share"):
        export_one([flux2, tmp_path / "stranger"], tmp_path / "bundle")
    with pytest.raises(RequestError, match="no checkpoint to export"):
        export_one([], tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        ("*.encoder", r"no graph matches '\*\.encoder': their names are like 'onnx-fp32\.statistics"),
        ("*.decode2", r"'onnx-fp32\.decode2' cannot be left out, because pictures need it"),
        ("*", r"'onnx-fp32\.statistics' cannot be left out"),
    ],
)
def test_only_what_pictures_do_not_need_can_be_left_out(
    of_spaces: dict[str, Path], tmp_path: Path, pattern: str, text: str
) -> None:
    with pytest.raises(RequestError, match=text):
        export_one(of_spaces["flux2"], tmp_path / "bundle", leave_out=[pattern])


def test_a_bundle_without_an_encoder_decodes(of_spaces: dict[str, Path], tmp_path: Path) -> None:
    arguments = [str(of_spaces["flux2"]), "-o", str(tmp_path / "bundle"), "--leave-out", "*.encode", "--no-validate"]
    assert CliRunner().invoke(main, [*arguments, *ONE, "--quiet"]).exit_code == 0
    with infgen_rt.open(tmp_path / "bundle") as decoder:
        assert "encode" not in decoder.manifest.recipes[0].graphs
        assert decoder.picture(tiny.latent(5, 6).numpy()).read().shape == (40, 48, 3)


def test_a_report_that_cannot_be_written_is_one_line_and_the_bundle_stays(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    report = SimpleNamespace(to_markdown=lambda: "ä", to_json=dict)
    monkeypatch.setattr("infgen_export.pipeline.export", lambda *_, **__: report)
    write = Path.write_text

    def full(self: Path, *arguments: Any, **options: Any) -> int:
        if self.name == "a.md":
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, *arguments, **options)

    monkeypatch.setattr(Path, "write_text", full)
    arguments = ["checkpoint", "-o", str(tmp_path / "bundle"), "--report", str(tmp_path / "a.md")]
    result = CliRunner().invoke(main, [*arguments, "--report", str(tmp_path / "b.md")])
    assert result.exit_code == 1 and f"wrote {tmp_path / 'bundle'}" in result.stdout
    assert result.stderr == f"Error: the report cannot be written to {tmp_path / 'a.md'}: No space left on device\n"
    assert (tmp_path / "b.md").read_text(encoding="utf-8") == "ä"


def test_the_command_says_when_the_licence_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(
        "infgen_export.pipeline.export", lambda *_, card, **__: f"a report on a model under {card.licence}"
    )
    arguments = ["checkpoint", "-o", str(tmp_path / "bundle")]
    assert "names no licence of the weights: pass --licence" in CliRunner().invoke(main, arguments).output
    licensed = CliRunner().invoke(main, [*arguments, "--licence", "MIT", "--model-version", "3"])
    assert "under MIT" in licensed.output and "names no licence" not in licensed.output
