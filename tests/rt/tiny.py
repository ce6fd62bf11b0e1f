"""A tiny model that obeys the graph contract, and an independent way to decode with it.

Decode reads context cells up to two away from a token, sees its coordinates, and convolves over tokens and
over pixels, so that a wrong coordinate, a missing cell or a missing halo changes the picture. Encode convolves over
pixels and then over cells, so that it sees 9 pixels beyond a cell. Refine sees three cells beyond a cell. Prefill is
two convolutions, each normalised over the whole latent, so that the second one's statistics depend on the first one's.

A bundle may have two enlargements instead of the one context: a refine and a decode each, with weights, channels and a
reach of their own, so that the wrong one gives another picture. It then has a trunk too, whose result refine sees as
well. The trunk convolves over enlarged features, so that it sees one cell beyond a cell.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from infgen_rt.bundle.manifest import Enlargement, FileInfo, Halo, Manifest, Memory, ModelInfo, Recipe, Shapes
from infgen_rt.common.pixels import FloatArray

CHANNELS, FEATURES, FINE, CONTEXT, PATCH = 32, 5, 2, 6, 8
RADIUS = 2
REFINE, PREFILL = 3, 2
BLOCKS = 2
PREFILL_SEED = 10
TRUNK = 1
"""Reach of the trunk, in cells. That of an enlargement includes it."""
ONE = Enlargement(None, CONTEXT, REFINE)
"""The one context of this model, which has no enlargements."""
ENLARGEMENTS = (Enlargement(1, 5, 2, work=1_000), Enlargement(4, 7, 4, work=3_000))
GRAPHS = ("statistics", "prefill", "refine", "decode", "encode")
FLOAT = TensorProto.FLOAT


def manifest(
    files: dict[str, FileInfo],
    halo_tokens: int = 2,
    halo_cells: float | None = RADIUS + 0.5,
    encode_pixels: int = PATCH + 1,
    refine: int | None = None,
    prefill: int = PREFILL,
    enlargements: Sequence[Enlargement] = (),
) -> Manifest:
    graphs = {Path(name).stem: name for name in files}
    if refine is None:
        refine = TRUNK if "trunk" in graphs else REFINE
    return Manifest(
        model=ModelInfo("tiny", "1", "CC0-1.0", "none: random weights", dict.fromkeys(graphs, 1)),
        latent_space="flux2",
        latent_channels=CHANNELS,
        context_channels=CONTEXT,
        patch=PATCH,
        scale_range=(0.5, 4.0),
        halo=Halo(halo_tokens, halo_cells, encode_pixels, refine, prefill),
        shapes=Shapes(latent=(1, 128), context=(1, 128), tokens=(1, 2048)),
        recipes=(
            Recipe(
                name="onnx-fp32",
                target="onnx",
                precision="fp32",
                graphs=graphs,
                memory=Memory(1_000_000, 1_000, 10_000, 20_000, 2_000, 2_000, 1_000 if "trunk" in graphs else 0),
            ),
        ),
        files=files,
        verification=({"recipe": "onnx-fp32", "max_error": 0.0},),
        feature_channels=FEATURES,
        fine_channels=FINE if "trunk" in graphs else None,
        moments=(BLOCKS, 1),
        enlargements=tuple(enlargements),
    )


def write_bundle(
    folder: Path, enlargements: Sequence[Enlargement] = (), trunk: bool = True, **halo: float | None
) -> Path:
    """A bundle with one context for all scales, or with some enlargements and a trunk, unless it shall have none."""
    trunk = trunk and bool(enlargements)
    contexts = enlargements or (ONE,)
    graphs = {
        "statistics": statistics_graph(),
        "prefill": prefill_graph(),
        **({"trunk": trunk_graph()} if trunk else {}),
        **{each.graph("refine"): refine_graph(each, trunk) for each in contexts},
        **{each.graph("decode"): decode_graph(each) for each in contexts},
        "encode": encode_graph(),
    }
    files = {}
    for graph, content in graphs.items():
        name = f"onnx-fp32/{graph}.onnx"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
        files[name] = FileInfo(hashlib.sha256(content).hexdigest(), len(content))
    (folder / "manifest.json").write_text(manifest(files, **halo, enlargements=enlargements).to_json())
    return folder


def edit_manifest(bundle: Path, **changes: object) -> None:
    path = bundle / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def statistics_graph() -> bytes:
    """Mean and variance over all channels after each of prefill's convolutions: [2, 2, 1]."""
    build = _Builder()
    x = "latent"
    for block in range(BLOCKS):
        x = build.convolve(x, block)
        centre = build.mean(x)
        square = build.node("Mul", [build.node("Sub", [x, centre])] * 2)
        own = build.node("Reshape", [build.node("Concat", [centre, build.mean(square)], axis=0), build.list(2, 1, 1)])
        build.found.append(own)
        given = build.node("Slice", ["known", build.list(block), build.list(block + 1), build.list(1)])
        variance = build.node("Slice", [given, build.list(1), build.list(2), build.list(0)])
        unknown = build.node("Less", [variance, build.constant(0.0)])
        x = build.normalise(x, build.node("Where", [unknown, own, given]))
    build.node("Concat", build.found, "moments", axis=1)
    inputs = {"latent": [1, CHANNELS, "h", "w"], "share_y": ["h"], "share_x": ["w"], "known": [2, BLOCKS, 1]}
    return _model(build.nodes, build.constants, inputs, {"moments": [2, BLOCKS, 1]})


def prefill_graph() -> bytes:
    """Two convolutions, each normalised by the moments that are given."""
    build = _Builder()
    x = "latent"
    for block in range(BLOCKS):
        moments = build.node("Slice", ["moments", build.list(block), build.list(block + 1), build.list(1)])
        x = build.normalise(build.convolve(x, block), moments, "features" if block == BLOCKS - 1 else None)
    inputs = {"latent": [1, CHANNELS, "h", "w"], "moments": [2, BLOCKS, 1]}
    return _model(build.nodes, build.constants, inputs, {"features": [1, FEATURES, "h", "w"]})


def global_prefill_graph(output: str = "features", channels: int = FEATURES) -> bytes:
    """Prefill as it was before there were statistics: a convolution plus the global mean."""
    rng = np.random.default_rng(1)
    nodes = [
        helper.make_node("Conv", ["latent", "kernel"], ["local"], pads=[1, 1, 1, 1]),
        helper.make_node("ReduceMean", ["local", "space"], ["mean"], keepdims=1),
        helper.make_node("Add", ["local", "mean"], [output]),
    ]
    constants = {
        "kernel": rng.normal(0, 0.08, (channels, CHANNELS, 3, 3)).astype(np.float32),
        "space": np.array([2, 3], np.int64),
    }
    return _model(nodes, constants, {"latent": [1, CHANNELS, "h", "w"]}, {output: [1, channels, "h", "w"]})


class _Builder:
    """Nodes of statistics and prefill, with the weights that both have."""

    def __init__(self) -> None:
        self.nodes: list = []
        self.constants: dict = {}
        self.found: list[str] = []

    def node(self, kind: str, inputs: list[str], output: str | None = None, **attributes: object) -> str:
        name = output or f"value{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], **attributes))
        return name

    def constant(self, value: object, dtype: type = np.float32) -> str:
        name = f"constant{len(self.constants)}"
        self.constants[name] = np.array(value, dtype)
        return name

    def list(self, *values: int) -> str:
        return self.constant(values, np.int64)

    def convolve(self, x: str, block: int) -> str:
        rng = np.random.default_rng(PREFILL_SEED + block)
        count = CHANNELS if block == 0 else FEATURES
        kernel = rng.normal(0.02, 1 / np.sqrt(9 * count), (FEATURES, count, 3, 3))
        return self.node("Conv", [x, self.constant(kernel)], pads=[1, 1, 1, 1])

    def mean(self, x: str) -> str:
        """[1], by what rows and columns count for."""
        rows = self.node("MatMul", [self.node("MatMul", [x, "share_x"]), "share_y"])
        return self.node("Reshape", [self.node("ReduceMean", [rows]), self.list(1)])

    def normalise(self, x: str, moments: str, output: str | None = None) -> str:
        """By moments [2, 1, 1]."""
        mean, variance = (
            self.node("Slice", [moments, self.list(index), self.list(index + 1), self.list(0)]) for index in (0, 1)
        )
        root = self.node("Sqrt", [self.node("Add", [variance, self.constant(1e-3)])])
        # A kink, or the second convolution's moments would follow from the first one's.
        return self.node("Relu", [self.node("Div", [self.node("Sub", [x, mean]), root])], output)


def trunk_graph() -> bytes:
    """Features, enlarged by repetition and convolved."""
    rng = np.random.default_rng(5)
    build = _Builder()
    repeated = build.node("Resize", ["features", "", build.constant([1, 1, PATCH, PATCH])], mode="nearest")
    kernel = build.constant(rng.normal(0, 0.2, (FINE, FEATURES, 5, 5)))
    build.node("Conv", [repeated, kernel], "fine", pads=[2] * 4)
    outputs = {"fine": [1, FINE, f"{PATCH}*h", f"{PATCH}*w"]}
    return _model(build.nodes, build.constants, {"features": [1, FEATURES, "h", "w"]}, outputs)


def refine_graph(enlargement: Enlargement = ONE, trunk: bool = False) -> bytes:
    """With a trunk, its result is folded into cells, and its reach of a cell leaves one less for this graph."""
    rng = np.random.default_rng(4 + 10 * (enlargement.factor or 0))
    count, halo = (FEATURES + FINE * PATCH**2, enlargement.halo - TRUNK) if trunk else (FEATURES, enlargement.halo)
    side, channels = 2 * halo + 1, enlargement.channels
    kernel = rng.normal(0, 2.0 / np.sqrt(count * side * side), (channels, count, side, side))
    nodes = [
        helper.make_node("SpaceToDepth", ["fine"], ["folded"], blocksize=PATCH),
        helper.make_node("Concat", ["features", "folded"], ["both"], axis=1),
    ]
    nodes = [
        *(nodes if trunk else []),
        helper.make_node("Tanh", ["both" if trunk else "features"], ["bent"]),
        helper.make_node("Conv", ["bent", "kernel"], ["context"], pads=[halo] * 4),
    ]
    inputs, outputs = {"features": [1, FEATURES, "h", "w"]}, {"context": [1, channels, "h", "w"]}
    if trunk:
        inputs["fine"] = [1, FINE, f"{PATCH}*h", f"{PATCH}*w"]
    return _model(nodes, {"kernel": kernel.astype(np.float32)}, inputs, outputs)


def decode_graph(enlargement: Enlargement = ONE) -> bytes:
    rng = np.random.default_rng(2 + 10 * (enlargement.factor or 0))
    nodes, constants = [], {}

    def node(op: str, inputs: list[str], output: str, **attributes: object) -> str:
        nodes.append(helper.make_node(op, inputs, [output], **attributes))
        return output

    def constant(name: str, value: object, dtype: type = np.float32) -> str:
        constants[name] = np.array(value, dtype)
        return name

    zero, half, one = constant("zero", 0.0), constant("half", 0.5), constant("one", 1.0)
    index = {"y": constant("first", [0], np.int64), "x": constant("second", [1], np.int64)}
    samples = []
    for offset in range(-RADIUS, RADIUS + 1):
        sample = "context"
        for axis, number in (("y", 2), ("x", 3)):
            # The cell that the token lies in, some cells on, kept inside the latent, counted in the crop.
            shift = constant(f"shift{offset}{axis}", offset * (1 if axis == "y" else -1))
            length = node("Gather", ["extent", index[axis]], f"length{offset}{axis}")
            last = node("Sub", [length, one], f"last{offset}{axis}")
            cell = node("Floor", [node("Add", [f"token_{axis}", shift], f"at{offset}{axis}")], f"cell{offset}{axis}")
            kept = node("Min", [node("Max", [cell, zero], f"low{offset}{axis}"), last], f"kept{offset}{axis}")
            origin = node(
                "Sub",
                [node("Gather", [f"key_{axis}", index["y"]], f"key{offset}{axis}"), half],
                f"o{offset}{axis}",
            )
            local = node("Sub", [kept, origin], f"local{offset}{axis}")
            # A crop that lacks the cell gives its nearest, and so another picture.
            crop = node("Shape", [f"key_{axis}"], f"shape{offset}{axis}")
            count = node("Cast", [crop], f"count{offset}{axis}", to=FLOAT)
            end = node("Sub", [count, one], f"end{offset}{axis}")
            inside = node("Max", [node("Min", [local, end], f"min{offset}{axis}"), zero], f"in{offset}{axis}")
            whole = node("Cast", [inside], f"whole{offset}{axis}", to=TensorProto.INT64)
            sample = node("Gather", [sample, whole], f"sample{offset}{axis}", axis=number)
        samples.append(sample)
    cells = node("Concat", samples, "cells", axis=1)

    waves = []
    for axis, number in (("y", [0, 1, 3]), ("x", [0, 1, 2])):
        scale = node("Gather", ["scale", index[axis]], f"scale_{axis}")
        phase = node("Mul", [f"token_{axis}", scale], f"phase_{axis}")
        wave = node("Sin", [phase], f"sin_{axis}")
        waves.append(node("Unsqueeze", [wave, constant(f"axes_{axis}", number, np.int64)], f"wave_{axis}"))
    position = node("Mul", waves, "position")
    features = node("Add", [cells, position], "features")

    def kernel(name: str, count_out: int, count_in: int, side: int) -> str:
        deviation = 1.0 / np.sqrt(count_in * side * side)
        return constant(name, rng.normal(0, deviation, (count_out, count_in, side, side)))

    count = enlargement.channels * (2 * RADIUS + 1)
    hidden = node("Conv", [features, kernel("k1", 16, count, 3)], "hidden", pads=[1, 1, 1, 1])
    bent = node("Tanh", [hidden], "bent")
    blocks = node("Conv", [bent, kernel("k2", 4 * PATCH * PATCH, 16, 1)], "blocks")
    pixels = node("DepthToSpace", [blocks], "pixels", blocksize=PATCH)
    smooth = node("Conv", [pixels, kernel("k3", 3, 4, 3)], "smooth", pads=[1, 1, 1, 1])
    node("Sigmoid", [smooth], "image")
    inputs = {
        "context": [1, enlargement.channels, "hk", "wk"],
        "key_y": ["hk"],
        "key_x": ["wk"],
        "token_y": ["ht"],
        "token_x": ["wt"],
        "extent": [2],
        "scale": [2],
    }
    return _model(nodes, constants, inputs, {"image": [1, 3, "H", "W"]})


def encode_graph() -> bytes:
    rng = np.random.default_rng(3)
    nodes = [
        helper.make_node("Conv", ["image", "k1"], ["pixels"], pads=[1, 1, 1, 1]),
        helper.make_node("Tanh", ["pixels"], ["bent"]),
        helper.make_node("SpaceToDepth", ["bent"], ["blocks"], blocksize=PATCH),
        helper.make_node("Conv", ["blocks", "k2"], ["latent"], pads=[1, 1, 1, 1]),
    ]
    constants = {
        "k1": rng.normal(0, 0.5, (4, 3, 3, 3)).astype(np.float32),
        "k2": rng.normal(0, 0.05, (CHANNELS, 4 * PATCH * PATCH, 3, 3)).astype(np.float32),
    }
    return _model(nodes, constants, {"image": [1, 3, "8*h", "8*w"]}, {"latent": [1, CHANNELS, "h", "w"]})


def session(content: bytes) -> ort.InferenceSession:
    """A session with one thread, because test processes have a processor each."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(content, options)


def decode_whole(
    latent: FloatArray, size: tuple[int, int], enlargement: Enlargement = ONE, trunk: bool = True
) -> FloatArray:
    """Decode at once, straight from the contract's formulas and none of the runtime's code: [H, W, 3]."""
    trunk = trunk and enlargement.factor is not None
    width, height = size
    h, w = latent.shape[1:]
    statistics, prefill, refine, decode = map(
        session,
        (statistics_graph(), prefill_graph(), refine_graph(enlargement, trunk), decode_graph(enlargement)),
    )
    shares = {"share_y": np.full(h, 1 / h, np.float32), "share_x": np.full(w, 1 / w, np.float32)}
    unknown = np.full((2, BLOCKS, 1), -1, np.float32)
    (moments,) = statistics.run(None, {"latent": latent[None], "known": unknown, **shares})
    (features,) = prefill.run(None, {"latent": latent[None], "moments": moments})
    refined = {"features": features}
    if trunk:
        (refined["fine"],) = session(trunk_graph()).run(None, refined)
    rows, columns = (height + 7) // 8, (width + 7) // 8
    image = decode.run(
        None,
        {
            "context": refine.run(None, refined)[0],
            "key_y": np.arange(h, dtype=np.float32) + 0.5,
            "key_x": np.arange(w, dtype=np.float32) + 0.5,
            "token_y": np.float32([(a + 0.5) * 8 * h / height for a in range(rows)]),
            "token_x": np.float32([(a + 0.5) * 8 * w / width for a in range(columns)]),
            "extent": np.float32([h, w]),
            "scale": np.float32([height / (8 * h), width / (8 * w)]),
        },
    )[0]
    return image[0, :, :height, :width].transpose(1, 2, 0)


def decode_stages(latent: FloatArray, sizes: list[tuple[int, int]]) -> FloatArray:
    """Decode to each size in turn, encoding the whole picture in between: the last one, [H, W, 3]."""
    encode = session(encode_graph())
    for size in sizes[:-1]:
        image = decode_whole(latent, size).clip(0, 1).transpose(2, 0, 1)
        latent = encode.run(None, {"image": np.ascontiguousarray(image[None])})[0][0]
    return decode_whole(latent, sizes[-1])


def random_latent(height: int, width: int, seed: int = 0) -> FloatArray:
    return np.random.default_rng(seed).normal(0, 0.8, (CHANNELS, height, width)).astype(np.float32)


def _model(nodes: list, constants: dict, inputs: dict, outputs: dict) -> bytes:
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(name, FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, FLOAT, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.checker.check_model(model)
    return model.SerializeToString()
