"""What every recipe promises beyond the first: precision where it matters, and proof where there is less of it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import torch
from click.testing import CliRunner
from onnx import numpy_helper
from torch import Tensor

import infgen_rt
from infgen_export import footprint
from infgen_export.cli import main
from infgen_export.description import Card
from infgen_export.errors import ExportError, RequestError
from infgen_export.inputs import decode_inputs, fit
from infgen_export.model_export import ModelExport
from infgen_export.pipeline import export
from infgen_export.recipes import RECIPES, TARGETS, select
from infgen_export.report import Report
from infgen_export.targets import Options, target_of
from infgen_export.targets import onnx as onnx_target
from infgen_export.verify import CASES, LEAST_PSNR, TOLERANCE, cases_of
from infgen_model import InfGen
from infgen_model.checkpoint import save_checkpoint
from infgen_model.graphs import graphs_of
from infgen_rt.bundle.folder import Bundle
from infgen_rt.bundle.graphs import kind_of
from infgen_rt.bundle.manifest import FixedShape, Memory
from infgen_rt.geometry.shapes import Box, Size
from infgen_runtimes import openvino as backend
from infgen_runtimes.openvino import _cut

from . import tiny
from .tiny import tile

pytestmark = pytest.mark.filterwarnings("ignore::infgen_rt.InfGenWarning")
NAMES = ("onnx-fp32", "onnx-fp16", "onnx-int8", "openvino-fp32", "openvino-fp16", "openvino-int8", "openvino-npu")


@dataclass(frozen=True)
class Exported:
    model: InfGen
    checkpoint: Path
    bundle: Path
    report: Report


@contextmanager
def measured_once() -> Iterator[None]:
    """Memory is measured with the first recipe of each backend, because it takes a process for every graph."""
    measure, found = footprint.measure, dict[str, Memory | None]()

    def once(bundle: Path, backend: str) -> Memory | None:
        name = Bundle.open(bundle).manifest.recipes[0].name
        key = name if name == "onnx-fp16" else backend  # float16 in ONNX is for GPUs, so it has no figures
        if key not in found:
            found[key] = measure(bundle, backend)
        return found[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(footprint, "measure", once)
        yield


@pytest.fixture(scope="module", params=["edge"])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exported]:
    folder, model = tmp_path_factory.mktemp("recipes"), tiny.model(tiny.CONFIGS[request.param])
    save_checkpoint(folder / "checkpoint", model)
    with measured_once():
        report = export(folder / "checkpoint", folder / "bundle", recipes=NAMES)
    yield Exported(model, folder / "checkpoint", folder / "bundle", report)


def shapes_of(recipe: str) -> tuple[FixedShape, ...]:
    """The only shapes that a recipe's decode and encode take. With fixed shapes, no graph decodes whole cells."""
    return (tile(64),) if recipe == "openvino-npu" else ()


def read(exported: Exported, name: str) -> openvino.Model:
    """A graph of OpenVINO as any program reads it."""
    return backend.shared_core().read_model(exported.bundle / f"{name}.xml", exported.bundle / "weights.safetensors")


@pytest.mark.slow
def test_every_graph_of_every_recipe_is_proven(exported: Exported) -> None:
    assert [(entry.recipe, entry.graph) for entry in exported.report.graphs] == [
        (name, graph) for name in NAMES for graph in tiny.graph_names(exported.model, *shapes_of(name))
    ]
    for entry in exported.report.graphs:
        assert len(entry.checks) >= 6 and not entry.failures()
        if entry.precision == "fp32":
            assert entry.max_error <= TOLERANCE
        else:
            assert entry.psnr >= LEAST_PSNR[entry.precision]
        assert entry.seconds is not None and entry.seconds > 0 and sum(entry.operations.values()) > 10
        least = 50 if kind_of(entry.graph).picture else 0  # runtimes compute an encoder in float32 if it is less close
        assert set(entry.native) <= {"bf16"} and all(psnr >= least for psnr in entry.native.values())
        assert bool(entry.native) <= entry.recipe.startswith("openvino")


@pytest.mark.slow
def test_less_precision_is_a_smaller_file(exported: Exported) -> None:
    sizes = {(entry.recipe, entry.graph): entry.bytes for entry in exported.report.graphs}
    # OpenVINO's description of so small a model is larger than its weights, and so is that of the smallest graphs.
    for graph in tiny.graph_names(exported.model):
        if sizes["onnx-fp32", graph] < 10_000:
            continue
        assert sizes["onnx-fp16", graph] < 0.9 * sizes["onnx-fp32", graph]


@pytest.mark.slow
def test_the_manifest_has_every_recipe_and_file(exported: Exported) -> None:
    manifest = Bundle.open(exported.bundle).manifest
    assert [recipe.name for recipe in manifest.recipes] == list(NAMES)
    files = {path.relative_to(exported.bundle).as_posix() for path in exported.bundle.rglob("*.*")}
    assert files == {"manifest.json", *manifest.files}
    for recipe in manifest.recipes:
        suffix = "onnx" if recipe.target == "onnx" else "xml"
        graphs = tiny.graph_names(exported.model, *shapes_of(recipe.name))
        names = {name: f"{recipe.name}.{name}.{suffix}" for name in graphs}
        assert recipe.graphs == names and recipe.weights == "weights.safetensors"
        assert recipe.shapes == shapes_of(recipe.name)
        # Float16 in ONNX is for GPUs.
        assert (recipe.memory is None) == (bool(recipe.shapes) or recipe.name == "onnx-fp16")
        figures = asdict(manifest.memory(recipe))
        assert figures.pop("base") > 0 and figures.pop("stages") >= 0
        # Figures that were not measured are the largest of all other recipes.
        kinds = map(kind_of, tiny.graph_names(exported.model))
        assert {name for name, figure in figures.items() if figure} == {kind.memory for kind in kinds}


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_the_runtime_decodes_the_same_pixels_on_every_backend(exported: Exported, backend: str) -> None:
    latent = tiny.latent(7, 10)
    with torch.inference_mode():
        expected = exported.model(latent, (77, 101))[0].permute(1, 2, 0).clamp(0, 1).numpy()
    with infgen_rt.open(exported.bundle, backend, precision="exact") as decoder:
        assert decoder.backend.name == backend
        assert (
            np.abs(decoder.picture(latent.numpy(), (101, 77), tile=40).read(dtype=np.float32) - expected).max() < 1e-4
        )


# What coordinates become stays float32.


def embedding(model: InfGen, inputs: dict[str, Tensor]) -> np.ndarray:
    """What torch's INPE makes of the tokens, with the mask token, if any: where it meets what depends on data."""
    found: list[Tensor] = []
    hook = model.decode.inpe.register_forward_hook(lambda _, __, output: found.append(output))
    with torch.inference_mode():
        tiny.decode_graph(model).module(*inputs.values())
    hook.remove()
    mask = model.decode.mask_token
    return (found[0] if mask is None else found[0] + mask).numpy()


def far(model: InfGen) -> dict[str, Tensor]:
    """A tile whose coordinates half and quarter precision cannot tell apart."""
    return decode_inputs(tiny.decode_graph(model), model, tiny.latent(70, 90), Size(1999, 1501), Box(200, 150, 12, 9))


def is_among(expected: np.ndarray, values: list[np.ndarray], tolerance: float) -> bool:
    return any(
        value.dtype == np.float32
        and value.size == expected.size
        and np.abs(value.reshape(expected.shape) - expected).max() < tolerance
        for value in values
    )


@pytest.mark.slow
def test_the_embedding_is_float32_in_a_float16_onnx_graph(exported: Exported) -> None:
    inputs = far(exported.model)
    graph = onnx.load(exported.bundle / f"onnx-fp16.{tiny.decode_graph(exported.model).name}.onnx")
    casts = [node.input[0] for node in graph.graph.node if node.op_type == "Cast" and node.output[0].endswith("_half")]
    coordinates = [name for name in casts if name not in {"context", "image"}]
    inferred = onnx.shape_inference.infer_shapes(graph).graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*inferred.value_info, *inferred.input)}
    for node in graph.graph.node:
        if node.op_type in {"Cos", "Sin"}:
            assert {types[name] for name in (*node.input, *node.output)} == {onnx.TensorProto.FLOAT}
    graph.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in coordinates
    )
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    values = session.run(coordinates, {name: value.numpy() for name, value in inputs.items()})
    assert is_among(embedding(exported.model, inputs), values, 1e-4)
    # The rest is not.
    convolutions = [node for node in graph.graph.node if node.op_type == "Conv"]
    assert {types[node.output[0]] for node in convolutions} == {onnx.TensorProto.FLOAT16}


@pytest.mark.slow
def test_nothing_of_the_enlarger_is_taken_for_a_coordinate(exported: Exported) -> None:
    """Refine has two inputs, both of values. In float32, it would take several times as long."""
    if exported.model.refine is None:
        pytest.skip("this model has none")
    graph = onnx.load(exported.bundle / "onnx-fp16.refine4.onnx").graph
    values = onnx.shape_inference.infer_shapes(onnx.load(exported.bundle / "onnx-fp16.refine4.onnx")).graph
    types = {value.name: value.type.tensor_type.elem_type for value in values.value_info}
    convolutions = [node.output[0] for node in graph.node if node.op_type == "Conv"]
    assert convolutions and {types[name] for name in convolutions} == {onnx.TensorProto.FLOAT16}
    model = read(exported, "openvino-fp16.refine4")
    assert _cut(model) is None
    marked = [node for node in model.get_ordered_ops() if any("recision" in key for key in node.get_rt_info())]
    assert not any(node.get_type_name() == "Convolution" for node in marked)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["openvino-fp16", "openvino-int8"])
def test_the_embedding_is_float32_in_an_openvino_graph_whatever_the_cpu_computes_in(
    exported: Exported, recipe: str
) -> None:
    inputs = far(exported.model)
    core, name = backend.shared_core(), f"{recipe}.{tiny.decode_graph(exported.model).name}"
    positional, rest = _cut(read(exported, name))
    compiled = core.compile_model(positional, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    outputs = compiled([inputs[port.get_node().get_friendly_name()].numpy() for port in positional.inputs])
    assert is_among(embedding(exported.model, inputs), list(outputs.values()), 1e-4)
    assert {"Cos", "Sin"}.isdisjoint(node.get_type_name() for node in rest.get_ordered_ops())
    assert len(rest.inputs) == 1 + len(positional.outputs)
    # OpenVINO keeps marked operations in float32 on devices that compute in float16.
    marked = {
        node.get_type_name()
        for node in read(exported, name).get_ordered_ops()
        if any("recision" in key for key in node.get_rt_info())
    }
    assert {"Cos", "Sin"} <= marked and "Convolution" not in marked


@pytest.mark.slow
def test_openvino_has_the_bounds_and_the_card(exported: Exported) -> None:
    decode = tiny.decode_graph(exported.model)
    model = read(exported, f"openvino-fp16.{decode.name}")
    shapes = {port.any_name: port.partial_shape.to_string() for port in model.inputs}
    depth = exported.model.config.context_channels(decode.enlargement)
    assert shapes["context"] == f"[1,{depth},1..1024,1..1024]" and shapes["token_x"] == "[1..2048]"
    assert [port.any_name for port in model.outputs] == ["image"]
    card = model.get_rt_info(["infgen"]).astype(dict)
    assert card["latent_space"] == "flux2" and card["about.context"] == "crop of the context"
    assert card["bounds.ht"] == "1..2048" and card["scale_range"] == "{}..{}".format(*exported.model.config.scale_range)
    fixed = read(exported, f"openvino-npu.{decode.name}")
    assert {port.any_name: list(port.shape) for port in fixed.inputs}["context"] == [1, depth, 68, 68]
    assert list(fixed.outputs[0].shape) == [1, 3, 512, 512]


# Faults.


@pytest.mark.slow
def test_a_changed_openvino_weight_is_noticed(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from infgen_export.targets import openvino as target

    convert = target.convert

    def damaged(traced, graph, path, *others) -> None:
        convert(traced, graph, path, *others)
        if graph.kind.name == "decode":
            file = path.with_suffix(".bin")
            weights = np.frombuffer(file.read_bytes(), np.float32).copy()
            # Not what is an integer, of whose bits a float is made that is next to nothing: shapes would be enormous.
            weights[(np.abs(weights) > 1e-6) & (np.abs(weights) < 1)] += 0.3
            file.write_bytes(weights.tobytes())

    monkeypatch.setattr(target, "convert", damaged)
    with pytest.raises(
        ExportError, match=r"openvino-fp32\.decode\d?( differs from PyTorch| cannot be converted|, case)"
    ):
        export(exported.checkpoint, tmp_path / "bundle", recipes=["openvino-fp32"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_keeping_on_tells_of_every_failure_and_still_writes_nothing(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from infgen_export.targets import onnx as target

    def damaged(traced, graph, path, *others) -> None:
        model = onnx.load(exported.bundle / f"onnx-fp32.{graph.name}.onnx")
        if graph.name != "prefill":
            tensor = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
            tensor.CopyFrom(numpy_helper.from_array(1.5 * numpy_helper.to_array(tensor), tensor.name))
        onnx.save(model, path)

    monkeypatch.setattr(target, "convert", damaged)
    arguments = [exported.checkpoint, "-o", tmp_path / "bundle", "--recipe", "onnx-fp32", "--quiet"]
    files = ["--report", tmp_path / "report.md", "--report", tmp_path / "report.json"]
    result = CliRunner().invoke(main, [*map(str, arguments), "--keep-going", *map(str, files)])
    assert result.exit_code == 1
    for name in (tiny.decode_graph(exported.model).name, "encode"):
        assert f"onnx-fp32.{name} differs" in result.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"report.md", "report.json"}
    text = (tmp_path / "report.md").read_text()
    assert "| no |" in text and text.count("| onnx-fp32 | prefill |") == 1 + len(CASES)
    result = CliRunner().invoke(main, [*map(str, arguments)])
    assert result.exit_code == 1 and "encode differs" not in result.stderr


@pytest.mark.slow
def test_without_validation_the_bundle_says_so(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [exported.checkpoint, "-o", tmp_path / "bundle", "--recipe", "onnx-fp32", "--no-validate"]
    result = CliRunner().invoke(main, [*map(str, arguments)])
    assert result.exit_code == 0 and "whose graphs were not verified" in result.stdout
    for entry in Bundle.open(tmp_path / "bundle").manifest.verification:
        assert not entry["checks"] and entry["seconds"] is None


# Choosing.


def test_targets_and_recipes_choose() -> None:
    assert len({recipe.name for recipe in RECIPES}) == len(RECIPES)
    for target in TARGETS:
        own = {recipe.precision for recipe in RECIPES if recipe.target == target}
        assert (
            own >= {"fp32", "fp16"}
            and ("int8" in own or target == "torch")
            and any(recipe.default for recipe in select([target]))
        )
    assert {recipe.target for recipe in select(["all"])} == set(TARGETS)
    assert select(["all"], ["all"]) == RECIPES
    assert [recipe.name for recipe in select([], ["coreml-ane", "onnx-int8"])] == ["coreml-ane", "onnx-int8"]
    assert select([]) == select(["onnx"])
    for given in ((["all", "onyx"], []), (["onyx"], ["onnx-fp32"])):
        with pytest.raises(RequestError, match="unknown target 'onyx': expected one of onnx, "):
            select(*given)
    with pytest.raises(RequestError, match="unknown recipe 'onnx-fp23': expected one of onnx-fp32, "):
        select([], ["all", "onnx-fp23"])
    with pytest.raises(RequestError, match="not requested: add --target coreml"):
        select(["onnx"], ["coreml-ane"])


def test_the_command_lists_the_recipes() -> None:
    result = CliRunner().invoke(main, ["recipes"])
    assert result.exit_code == 0
    assert [line.split()[0] for line in result.stdout.splitlines()] == ["recipe", *(recipe.name for recipe in RECIPES)]


@pytest.mark.slow
def test_a_fixed_graph_is_proven_at_what_fits_into_it(exported: Exported) -> None:
    decode = tiny.decode_graph(exported.model, tile(64))
    names = [case.name for case in cases_of(decode, exported.model)]
    assert len(names) >= 6 and "wide" not in names


@pytest.mark.slow
def test_native_precision_of_a_fixed_shape_agrees_with_the_dynamic_graph(exported: Exported) -> None:
    model = exported.model
    fixed, dynamic = tiny.decode_graph(model, tile(64)), tiny.decode_graph(model)
    inputs = decode_inputs(dynamic, model, tiny.latent(12, 10), Size(155, 203))
    core = backend.shared_core()
    session = backend.Session(core, lambda: read(exported, f"openvino-npu.{dynamic.name}"), "f32", {})
    with torch.inference_mode():
        expected = dynamic.module(*inputs.values())
    height, width = expected.shape[2:]
    (image,) = session.run({name: value.numpy() for name, value in fit(fixed, inputs).items()}).values()
    assert np.allclose(image[:, :, :height, :width], expected.numpy(), atol=2e-3)


def test_the_package_offers_the_command_to_programs() -> None:
    import infgen_export

    assert infgen_export.export is export
    assert all(hasattr(infgen_export, name) for name in infgen_export.__all__)
    with pytest.raises(AttributeError, match="no attribute 'abacus'"):
        _ = infgen_export.abacus


@pytest.mark.parametrize("exact", [True, False])
def test_weights_that_are_float16_numbers_take_half_the_file_and_give_the_same_numbers(
    tmp_path: Path, exact: bool
) -> None:
    """A checkpoint is in float16. Weights that are not must stay as they are."""
    model = tiny.model(tiny.CONFIGS["edge"])
    if exact:
        model.half().float()
    graph = next(each for each in graphs_of(model) if each.name == "encode")
    image = torch.rand(1, 3, 24, 32)
    traced = onnx_target.trace(graph, (image,), Options())
    recipe = next(recipe for recipe in RECIPES if recipe.name == "onnx-fp32")
    onnx_target.convert(traced, graph, tmp_path / "short.onnx", {}, recipe, Options())
    onnx.save(traced, tmp_path / "long.onnx")
    before, after = (tmp_path / name for name in ("long.onnx", "short.onnx"))
    found = [onnxruntime.InferenceSession(file).run(None, {"image": image.numpy()})[0] for file in (before, after)]
    assert np.abs(found[0] - found[1]).max() < 1e-6  # the order of sums differs between runs
    weights = sum(tensor.ByteSize() for tensor in onnx.load(after).graph.initializer)
    assert (weights < 0.8 * sum(tensor.ByteSize() for tensor in traced.graph.initializer)) == exact


@pytest.mark.parametrize(
    ("name", "decode"),
    [("coreml-fp16", "cpuAndGPU"), ("coreml-ane", "cpuAndNeuralEngine"), ("coreml-enum", "cpuAndGPU")],
)
def test_a_manifest_names_the_units_of_an_apple_device_that_suit_each_graph(name: str, decode: str) -> None:
    """The Neural Engine takes a graph of one shape, and all graphs before decode take latents of any size."""
    model, recipe = tiny.model(tiny.CONFIGS["edge"]), next(each for each in RECIPES if each.name == name)
    work = ModelExport(model, Path(), Card(), Options(), (), False, print, False)
    units = work.describe(recipe, target_of(recipe), ()).compute_units
    assert units.keys() == {graph.name for graph in graphs_of(model, recipe.shapes(model.config))}
    assert {units[graph] for graph in units if kind_of(graph).fixed} == {decode}
    assert {units[graph] for graph in units if not kind_of(graph).fixed} == {"cpuAndGPU"}
