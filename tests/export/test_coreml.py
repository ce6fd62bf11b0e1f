"""A Core ML package computes what its torch model computes, as far as its precision goes, and says what it is."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

ct = pytest.importorskip("coremltools")

from infgen_export import mil  # noqa: E402
from infgen_export.errors import ExportError  # noqa: E402
from infgen_export.inputs import cells_inputs, context_inputs, decode_inputs, encoder_inputs, fit, trace_inputs  # noqa: E402
from infgen_export.mil.weights import arrays_in  # noqa: E402
from infgen_export.pool import Pool  # noqa: E402
from infgen_export.recipes import PRECISIONS  # noqa: E402
from infgen_export.targets import Options, coreml  # noqa: E402
from infgen_export.targets.dims import sizes  # noqa: E402
from infgen_export.verify import LEAST_PSNR, compare  # noqa: E402
from infgen_model.graphs import Graph, graphs_of  # noqa: E402
from infgen_model.inpe import INPE  # noqa: E402
from infgen_rt.bundle.assembly import PARTS, Assembly  # noqa: E402
from infgen_rt.bundle.graphs import WEIGHTS, Kind, Tensorspec  # noqa: E402
from infgen_rt.bundle.manifest import FixedShape  # noqa: E402
from infgen_rt.geometry.shapes import Box, Size  # noqa: E402

from . import tiny  # noqa: E402

# Tracing takes a while for every neighbour a token sees, so quick tests have an edge model with one.
CONFIGS = tiny.CONFIGS | {"near": dataclasses.replace(tiny.EDGE, radius=0.5)}
MODELS = {name: tiny.model(config) for name, config in CONFIGS.items()}
METADATA = {"author": "infgen-rt", "licence": "CC0-1.0", "model": "tiny", "version": "1.2", "latent_space": "flux2"}
# Cells of the latent, pixels of the picture, tile in tokens; none of them those of tracing.
SHAPES = (
    (Size(16, 16), Size(256, 256), None),
    (Size(3, 19), Size(50, 300), None),
    (Size(1, 1), Size(8, 8), None),
    (Size(24, 18), Size(96, 72), None),
    (Size(32, 48), Size(1001, 1777), Box(70, 101, 19, 23)),
)
QUICK = {
    ("edge", "statistics", "fp16"),
    ("edge", "trunk", "fp16"),
    ("edge", "refine4", "fp32"),
    ("edge", "encode", "int8"),
    ("edge", "encode_statistics", "fp16"),
    ("edge", "encode_latent", "fp16"),
    ("paper", "prefill", "int8"),
    ("paper", "decode", "fp16"),
}


def is_worth_it(kind: str, graph: str, precision: str) -> bool:
    """A graph takes up to a minute. Each is tried in float16, and one decode in all precisions."""
    return graph == "decode4" if kind == "near" else precision == "fp16"


EVERY = [
    pytest.param(*case, marks=() if case in QUICK else pytest.mark.slow)
    for kind, model in MODELS.items()
    for graph in tiny.graph_names(model)
    for precision in PRECISIONS
    if (case := (kind, graph, precision)) in QUICK or is_worth_it(*case)
]

pytestmark = [pytest.mark.filterwarnings("ignore")]

Convert = Callable[[str, str, str], Path]


def write(graph: Graph, example: tuple[Tensor, ...], path: Path, metadata: Mapping[str, str], **recipe: Any) -> None:
    coreml.write_package(coreml.trace(graph, example, Options()), graph, path, metadata, **recipe)


def graph_of(kind: str, name: str) -> Graph:
    return next(graph for graph in graphs_of(MODELS[kind]) if graph.name == name)


@pytest.fixture(scope="session")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Convert:
    """Packages by model, graph and precision, made when first asked for; not to be changed."""
    folder, made = tmp_path_factory.mktemp("coreml"), {}

    def convert(kind: str, name: str, precision: str) -> Path:
        # The real threshold would leave every weight of models this small alone.
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(coreml, "LEAST_WEIGHTS", 1024)
            return make(kind, name, precision)

    def make(kind: str, name: str, precision: str) -> Path:
        path = folder / f"{kind}-{name}-{precision}.mlpackage"
        if path not in made:
            graph = graph_of(kind, name)
            write(graph, trace_inputs(graph, MODELS[kind]), path, METADATA, precision=precision)
            made[path] = True
        return path

    return convert


def inputs_of(kind: str, graph: str, shape: tuple[Size, Size, Box | None]) -> dict[str, Tensor]:
    cells, size, tile = shape
    latent = tiny.latent(cells.height, cells.width)
    if graph.startswith("encode"):
        return encoder_inputs(graph_of(kind, graph), MODELS[kind], cells, torch.Generator().manual_seed(0))
    if graph.startswith("decode_cells"):
        return cells_inputs(graph_of(kind, graph), MODELS[kind], latent)
    if graph.startswith("decode"):
        return decode_inputs(graph_of(kind, graph), MODELS[kind], latent, size, tile)
    return context_inputs(graph_of(kind, graph), MODELS[kind], latent)


def expected_of(graph: Graph, inputs: dict[str, Tensor]) -> Tensor:
    with torch.inference_mode():
        return graph.module(*inputs.values())


# The same as torch.


@pytest.mark.parametrize(("kind", "name", "precision"), EVERY)
def test_a_package_computes_what_torch_computes(converted: Convert, kind: str, name: str, precision: str) -> None:
    graph, session = graph_of(kind, name), coreml.Session(converted(kind, name, precision))
    for shape in SHAPES:
        inputs = inputs_of(kind, name, shape)
        actual, expected = session(inputs), expected_of(graph, inputs)
        assert actual.dtype == torch.float32 and actual.shape == expected.shape
        check = compare(name, str(shape), actual, expected)
        if precision == "fp32":
            assert check.max_error <= 1e-4, check
        else:
            assert check.psnr >= {"fp16": 50, "int8": 40}[precision], check
            assert check.max_error > 1e-6, "it is not reduced at all"


def test_weights_of_int8_are_of_8_bits_unless_they_make_the_embedding(converted: Convert) -> None:
    assert coreml.Session(converted("edge", "encode", "int8")).operations["constexpr_blockwise_shift_scale"] == 1
    # This one has weights enough, but for the embedding only.
    assert "constexpr_blockwise_shift_scale" not in coreml.Session(converted("paper", "prefill", "int8")).operations


@pytest.mark.parametrize(
    ("kind", "name"), [("paper", "decode"), pytest.param("near", "decode2", marks=pytest.mark.slow)]
)
def test_what_depends_on_coordinates_alone_stays_in_float32(converted: Convert, kind: str, name: str) -> None:
    found: dict[str, set[torch.dtype]] = {}
    for step in mil.Program(converted(kind, name, "fp16"))._steps:
        found.setdefault(step.kind, set()).update(result.dtype for result in step.outputs)
    assert found["cos"] == found["sin"] == found["log"] == {torch.float32}
    assert torch.float32 in found["linear"], "the embedding's own MLP"
    assert found["conv"] == found["pixel_shuffle"] == {torch.float16}, "the upsampler depends on the context"


class Embedding(nn.Module):
    """The published model's embedding, added to data as in decode."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inpe = INPE(64, 64.0, 16)

    def forward(self, data: Tensor, y: Tensor, x: Tensor, scale: Tensor) -> Tensor:
        return data + self.inpe(y, x, scale)


def embedding_error(path: Path) -> float:
    module = Embedding().eval().requires_grad_(False)
    inputs = (
        Tensorspec("data", (1, "h", "w", 16), "zeros"),
        Tensorspec("y", ("h",), "rows"),
        Tensorspec("x", ("w",), "columns"),
        Tensorspec("scale", (2,), "scale"),
    )
    output = dataclasses.replace(inputs[0], name="sum")
    kind = Kind("embed", inputs, output, "cell", "decode")
    graph = Graph(kind, tiny.EDGE, module, inputs, output, {"h": (1, 64), "w": (1, 64)})
    values = (torch.zeros(1, 23, 31, 16), torch.rand(23), torch.rand(31), torch.ones(2))
    write(graph, values, path, {}, precision="fp16")
    actual = coreml.Session(path)({spec.name: value for spec, value in zip(inputs, values, strict=True)})
    expected = module(*values)
    return ((actual - expected).norm() / expected.norm()).item()


def test_the_embedding_keeps_its_accuracy_in_a_half_precision_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert embedding_error(tmp_path / "ours.mlpackage") < 5e-4
    # What it would be if the converter had its way.
    monkeypatch.setattr(coreml, "_compute_precision", lambda graph, precision: ct.precision.FLOAT16)
    assert embedding_error(tmp_path / "plain.mlpackage") > 1e-2


def test_a_weight_that_is_wrong_in_the_file_is_noticed(converted: Convert, tmp_path: Path) -> None:
    path, graph = converted("edge", "refine4", "fp32"), graph_of("edge", "refine4")
    (file,) = path.rglob("weight.bin")
    content = bytearray(file.read_bytes())
    weight = MODELS["edge"].refine.to_context.weight.clone()
    place = content.index(weight.numpy().tobytes())
    weight.view(-1)[0] += 0.1
    content[place : place + 4] = weight.numpy().tobytes()[:4]
    try:
        original = file.read_bytes()
        file.write_bytes(content)
        inputs = inputs_of("edge", "refine4", SHAPES[0])
        check = compare("refine", "fault", coreml.Session(path)(inputs), expected_of(graph, inputs))
    finally:
        file.write_bytes(original)
    assert check.max_error > 1e-3


@pytest.mark.parametrize(
    ("kind", "name", "precision"),
    [("edge", "prefill", "fp32"), ("edge", "trunk", "fp16"), ("edge", "encode", "int8"), ("paper", "decode", "fp16")],
)
def test_a_packed_package_has_no_numbers_and_is_restored_byte_for_byte(
    converted: Convert, tmp_path: Path, kind: str, name: str, precision: str
) -> None:
    path, pool = converted(kind, name, precision), Pool(tmp_path / WEIGHTS)
    for entry, array in coreml.weights(path).items():
        pool.add_constant(entry, array)
    pool.save()
    coreml.pack(path, tmp_path / "packed", [pool])
    before = {file.relative_to(path).as_posix(): file.read_bytes() for file in path.rglob("*.*") if file.is_file()}
    packed = {file.relative_to(tmp_path / "packed").as_posix(): file.read_bytes() for file in tmp_path.rglob("*.json")}
    (parts,) = (content for name, content in packed.items() if name.endswith(PARTS))
    (weight,) = (content for name, content in before.items() if name.endswith("weight.bin"))
    assert len(parts) < 400 + 100 * len(coreml.weights(path)) and not list((tmp_path / "packed").rglob("*.bin"))
    assert Assembly.from_json(parts).make((tmp_path / WEIGHTS).read_bytes()) == weight
    # What is left of the file are its headers.
    assert sum(array.nbytes for array in coreml.weights(path).values()) > 0.5 * len(weight)


@pytest.mark.parametrize("content", [b"", b"\1\0\0\0\2\0\0\0", b"\1\0\0\0\3\0\0\0" + bytes(120), bytes(7)])
def test_weights_in_another_layout_are_not_guessed(content: bytes) -> None:
    with pytest.raises(ExportError, match=r"in a layout that this exporter does not know"):
        arrays_in(content)


class Reciprocal(nn.Module):
    def forward(self, data: Tensor) -> Tensor:
        return torch.reciprocal(data)


def test_a_small_divisor_is_not_made_larger(tmp_path: Path) -> None:
    data = Tensorspec("data", (1, "n"), "small")
    output = dataclasses.replace(data, name="out")
    kind = Kind("divide", (data,), output, "cell", "decode")
    graph = Graph(kind, tiny.EDGE, Reciprocal(), (data,), output, {"n": (1, 64)})
    values = torch.linspace(1e-3, 1e-2, 10)[None]
    write(graph, (values,), tmp_path / "divide.mlpackage", {})
    actual = coreml.Session(tmp_path / "divide.mlpackage")({"data": values})
    assert torch.allclose(actual, 1 / values, rtol=1e-6)


# What it says of itself.


def test_a_package_says_what_it_is(converted: Convert) -> None:
    spec = ct.utils.load_spec(str(converted("paper", "decode", "fp16")))
    about = spec.description.metadata
    assert (about.author, about.license, about.versionString) == ("infgen-rt", "CC0-1.0", "1.2")
    assert about.shortDescription == "tiny: decode"
    graph = graph_of("paper", "decode")
    bounds = {f"bounds.{name}": f"{low}..{high}" for name, (low, high) in graph.bounds.items()}
    assert METADATA.items() | bounds.items() <= about.userDefined.items()
    assert not [key for key in about.userDefined if "date" in key], "two conversions of a model are alike"


@pytest.mark.parametrize(
    ("kind", "name", "precision"),
    [("edge", "prefill", "fp32"), ("paper", "decode", "fp16"), ("edge", "encode", "int8")],
)
def test_inputs_and_outputs_keep_the_contract(converted: Convert, kind: str, name: str, precision: str) -> None:
    description = ct.utils.load_spec(str(converted(kind, name, precision))).description
    graph = graph_of(kind, name)
    example = trace_inputs(graph, MODELS[kind])
    float32 = ct.proto.FeatureTypes_pb2.ArrayFeatureType.FLOAT32
    for value, spec in zip((*description.input, *description.output), (*graph.inputs, graph.output), strict=True):
        assert (value.name, value.shortDescription) == (spec.name, spec.about)
        assert value.type.multiArrayType.dataType == float32
    for value, spec, tensor in zip(description.input, graph.inputs, example, strict=True):
        array = value.type.multiArrayType
        assert tuple(array.shape) == tuple(tensor.shape)
        ranges = [(side.lowerBound, side.upperBound) for side in array.shapeRange.sizeRanges]
        fixed = all(isinstance(dim, int) for dim in spec.shape)
        assert ranges == ([] if fixed else [bounds_of(graph, dim) for dim in spec.shape])


def bounds_of(graph: Graph, dim: str | int) -> tuple[int, int]:
    if isinstance(dim, int):
        return dim, dim
    factor, _, name = dim.rpartition("*")
    low, high = graph.bounds[name]
    return int(factor or 1) * low, int(factor or 1) * high


def test_nothing_of_this_machine_is_in_a_package(converted: Convert) -> None:
    private = [str(Path(__file__).parents[2]), str(Path.home()), "site-packages", ".py"]
    path = converted("near", "decode4", "fp16")
    files = [file for file in path.rglob("*") if file.is_file()]
    assert {file.name for file in files} == {"Manifest.json", "model.mlmodel", "weight.bin"}
    for file in files:
        content = file.read_bytes()
        assert [text for text in private if len(text) > 1 and text.encode() in content] == [], file.name


# Other shapes than ranges.


def test_a_graph_with_equal_bounds_takes_one_shape(tmp_path: Path) -> None:
    graph = dataclasses.replace(graph_of("edge", "encode"), bounds={"h": (6, 6), "w": (7, 7)})
    image = torch.rand(1, 3, 48, 56)
    write(graph, (image,), tmp_path / "fixed.mlpackage", {})
    spec = ct.utils.load_spec(str(tmp_path / "fixed.mlpackage"))
    array = spec.description.input[0].type.multiArrayType
    assert list(array.shape) == [1, 3, 48, 56] and not array.WhichOneof("ShapeFlexibility")
    assert list(spec.description.output[0].type.multiArrayType.shape) == [1, 8, 6, 7]
    assert spec.description.metadata.userDefined["bounds.h"] == "6..6"
    session = coreml.Session(tmp_path / "fixed.mlpackage")
    assert torch.allclose(session({"image": image}), graph.module(image), atol=1e-4)
    with pytest.raises(ValueError, match="image"):
        session({"image": torch.rand(1, 3, 56, 48)})


def test_shapes_may_be_enumerated(tmp_path: Path) -> None:
    graph, choices = graph_of("edge", "encode"), [{"h": 6, "w": 7}, {"h": 3, "w": 9}, {"h": 2, "w": 2}]
    example = trace_inputs(graph, MODELS["edge"])
    write(graph, example, tmp_path / "some.mlpackage", {}, enumerated=choices)
    spec = ct.utils.load_spec(str(tmp_path / "some.mlpackage"))
    shapes = spec.description.input[0].type.multiArrayType.enumeratedShapes.shapes
    assert {tuple(shape.shape) for shape in shapes} == {(1, 3, 48, 56), (1, 3, 24, 72), (1, 3, 16, 16)}
    about = spec.description.metadata.userDefined
    assert about["bounds.h"] == "2..6" and about["shapes"] == "h=6 w=7; h=3 w=9; h=2 w=2"
    session = coreml.Session(tmp_path / "some.mlpackage")
    for choice in choices:
        image = torch.rand(1, 3, 8 * choice["h"], 8 * choice["w"])
        assert torch.allclose(session({"image": image}), graph.module(image), atol=1e-4)


@pytest.mark.slow
def test_shapes_of_several_inputs_are_enumerated_together(tmp_path: Path) -> None:
    graph = graph_of("near", "decode4")
    inputs = [inputs_of("near", "decode4", shape) for shape in SHAPES[:2]]
    choices = [sizes(graph, tuple(each.values())) for each in inputs]
    path = tmp_path / "some.mlpackage"
    write(graph, trace_inputs(graph, MODELS["near"]), path, {}, precision="fp16", enumerated=choices)
    description = ct.utils.load_spec(str(path)).description
    for value, spec in zip(description.input, graph.inputs, strict=True):
        shapes = [tuple(shape.shape) for shape in value.type.multiArrayType.enumeratedShapes.shapes]
        assert shapes == ([] if spec.shape == (2,) else [tuple(each[spec.name].shape) for each in inputs])
    for each in inputs:
        assert compare("decode", "choice", coreml.Session(path)(each), expected_of(graph, each)).psnr >= 50


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["near", "paper"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_fixed_shape_may_be_filled(tmp_path: Path, kind: str, precision: str) -> None:
    fixed = FixedShape(tokens=(32, 40), context=(20, 24), image=(64, 72))
    graph = next(graph for graph in graphs_of(MODELS[kind], (fixed,)) if graph.kind.name == "decode")
    path = tmp_path / "fixed.mlpackage"
    write(graph, trace_inputs(graph, MODELS[kind]), path, {}, precision=precision)
    session = coreml.Session(path)
    for cells, size in ((Size(16, 16), Size(256, 256)), (Size(9, 7), Size(101, 77)), (Size(1, 1), Size(8, 8))):
        inputs = fit(graph, inputs_of(kind, graph.name, (cells, size, None)))
        check = compare("decode", str(size), session(inputs), expected_of(graph, inputs))
        assert check.psnr >= {"fp32": 100, "fp16": 50, "int8": 40}[precision], check


# What cannot be asked for.


def test_impossible_requests_are_refused_before_any_work(tmp_path: Path) -> None:
    graph = graph_of("edge", "encode")
    image, path = torch.rand(1, 3, 48, 56), tmp_path / "none.mlpackage"
    with pytest.raises(ValueError, match="precision"):
        write(graph, (image,), path, {}, precision="fp8")
    with pytest.raises(ValueError, match="equal bounds"):
        write(graph, (image,), path, {}, enumerated=[{"h": 6, "w": 7}])
    with pytest.raises(ValueError, match="outside its bounds 1..1024"):
        write(graph, (image,), path, {}, enumerated=[{"h": 6, "w": 7}, {"h": 6, "w": 2000}])
    with pytest.raises(ValueError, match=r"image has shape \[1, 3, 44, 56\], expected"):
        write(graph, (torch.rand(1, 3, 44, 56),), path, {})
    with pytest.raises(ValueError, match="outside its bounds 4..4"):
        write(dataclasses.replace(graph, bounds={"h": (4, 4), "w": (7, 7)}), (image,), path, {})
    assert not path.exists()


def test_on_macos_core_ml_itself_is_proven_too(converted: Convert, monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter stands in for Core ML, which exists nowhere else."""
    path = converted("edge", "prefill", "fp32")
    interpreted = coreml.load(path, "")
    program = mil.Program(path)
    assert coreml.native_precisions() == ()

    class MLModel:
        def __init__(self, path: str, compute_units: object) -> None:
            assert compute_units is ct.ComputeUnit.ALL

        def predict(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
            values = {name: torch.from_numpy(value) for name, value in inputs.items()}
            return {name: value.numpy() for name, value in program.run(values).items()}

    monkeypatch.setattr("sys.platform", "darwin")
    monkeypatch.setattr(ct.models, "MLModel", MLModel)
    assert coreml.native_precisions() == ("apple",) and "apple" in LEAST_PSNR
    inputs = context_inputs(graph_of("edge", "prefill"), MODELS["edge"], tiny.latent(5, 7))
    assert torch.equal(coreml.load(path, "", "apple")(inputs), interpreted(inputs))
