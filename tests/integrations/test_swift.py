"""The Swift file that decodes a tile with Core ML.

Core ML exists only on Apple's systems. Elsewhere, these tests compare the names and the formulas in the file with the
bundle and its worked numbers. With a Swift compiler, they also compile all of the file but Core ML's part, and run it.
"""

import base64
import dataclasses
import json
import math
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infgen_export.recipes import RECIPES
from infgen_export.worked import CELLS, latent_of
from infgen_rt.bundle.folder import DEFAULT_BUNDLE, Bundle
from infgen_rt.bundle.graphs import KINDS
from infgen_rt.bundle.manifest import Enlargement, FixedShape, Halo, Manifest, Recipe
from infgen_rt.common.pixels import fetch

ROOT = Path(__file__).parents[2]
SWIFT = (ROOT / "integrations" / "swift" / "InfGen.swift").read_text()
WORKED: dict[str, Any] = json.loads((ROOT / "docs" / "bundle.json").read_text())
PICTURES = [(model["space"], picture) for model in WORKED["models"] for picture in model["pictures"]]
SWIFTC = shutil.which("swiftc")


def formulas() -> dict[str, Callable[..., Any]]:
    """The functions of the file that are one formula. They are written so that Python reads them too."""
    scope: dict[str, Any] = {"Double": float, "Float": np.float32, "Int": int, "floor": math.floor, "ceil": math.ceil}
    found = re.findall(r"^func (\w+)\((.*?)\) -> \w+ \{\n    return (.*)\n\}", SWIFT, re.MULTILINE)
    for name, arguments, formula in found:
        names = ", ".join(re.findall(r"_ (\w+):", arguments))
        scope[name] = eval(f"lambda {names}: {formula}", scope)
    return {name: scope[name] for name, _, _ in found}


def runs() -> list[tuple[str, set[str], str]]:
    """Every run of a graph in the file: the kind, the names of the inputs and that of the output."""
    found = re.findall(r'run\(\s*"(\w+)",\s*(?:\[(.*?)\]|inputs),\s*output: (.*?)\)', SWIFT, re.DOTALL)
    tile = re.search(r"var inputs = \[(.*?)\n        \]", SWIFT, re.DOTALL)
    assert tile is not None
    return [(kind, set(re.findall(r'"(\w+)":', given or tile[1])), output) for kind, given, output in found]


def test_graphs_inputs_and_outputs_have_the_names_of_the_bundle() -> None:
    kinds = {kind.name: kind for kind in KINDS}
    found = runs()
    assert {kind for kind, _, _ in found} == {
        name for name, kind in kinds.items() if kind.picture and not kind.optional
    }
    for kind, inputs, output in found:
        known = {spec.name for spec in kinds[kind].inputs}
        # Models without statistics or a trunk have graphs that take fewer inputs.
        assert inputs == known or (kind in ("prefill", "refine") and inputs == known - {"moments", "fine"})
        assert kinds[kind].output.name in re.findall(r'"(\w+)"', output)
    full = {kind: inputs for kind, inputs, _ in sorted(found, key=lambda run: len(run[1]))}
    assert full == {name: {spec.name for spec in kinds[name].inputs} for name in full}


def test_fields_of_the_manifest_have_the_names_of_the_file() -> None:
    fields = set(re.findall(r"public let (\w+):", SWIFT[: SWIFT.index("public static func of")]))
    snakes = {re.sub("([A-Z])", lambda found: "_" + found[1].lower(), field) for field in fields}
    known = {
        field.name for kind in (Manifest, Recipe, Halo, Enlargement, FixedShape) for field in dataclasses.fields(kind)
    }
    assert snakes <= known


def test_compute_units_of_the_exporter_are_known() -> None:
    cases = set(re.findall(r'case "(\w+)": return \.\1\b', SWIFT)) | {"cpuAndGPU"}
    assert {recipe.compute_units(kind) for recipe in RECIPES for kind in KINDS} - {None} <= cases


@pytest.mark.parametrize(("space", "picture"), PICTURES, ids=[f"{s}-{p['enlargement']}" for s, p in PICTURES])
def test_formulas_give_the_worked_coordinates(space: str, picture: dict[str, Any]) -> None:
    swift = formulas()
    inputs = {name: tensor.get("values") for name, tensor in picture["steps"][-1]["inputs"].items()}
    halo = Bundle.open(space=space).manifest.halo
    sides = zip("yx", ("height", "width"), reversed(picture["size"]), (CELLS.height, CELLS.width), strict=True)
    for axis, side, pixels, count in sides:
        step = swift["stepOf"](pixels, count, 8)
        first, length = picture["tokens"][axis], picture["tokens"][side]
        assert [swift["centreOf"](first + index, step) for index in range(length)] == np.float32(
            inputs[f"token_{axis}"]
        ).tolist()
        assert swift["firstCell"](first, step, halo.cells, count) == picture["cells"][axis]
        end = picture["cells"][axis] + picture["cells"][side]
        assert swift["endCell"](first + length, step, halo.cells, count) == end
        cells = range(picture["cells"][axis], end)
        assert [swift["centreOf"](cell, 1) for cell in cells] == inputs[f"key_{axis}"]
        assert np.float32(swift["scaleOf"](pixels, count, 8)) == np.float32(inputs["scale"]["yx".index(axis)])


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file with a main program, compiled."""
    assert SWIFTC is not None
    folder = tmp_path_factory.mktemp("swift")
    (folder / "InfGen.swift").write_text(SWIFT)
    shutil.copy(Path(__file__).parent / "chain.swift", folder / "main.swift")
    command = [SWIFTC, str(folder / "InfGen.swift"), str(folder / "main.swift"), "-o", str(folder / "chain")]
    subprocess.run(command, check=True, capture_output=True)
    return folder / "chain"


def packed(array: Any) -> dict[str, Any]:
    values = np.ascontiguousarray(array, np.float32)
    return {"shape": list(values.shape), "values": base64.b64encode(values.tobytes()).decode()}


def unpacked(value: dict[str, Any]) -> Any:
    return np.frombuffer(base64.b64decode(value["values"]), np.float32).reshape(value["shape"])


def answer(manifest: Manifest, request: dict[str, Any]) -> dict[str, Any]:
    """The output of the graph in ONNX Runtime, whose graphs have the same names as those of Core ML."""
    import onnxruntime

    path = DEFAULT_BUNDLE / manifest.recipes[0].graphs[request["graph"]]
    inputs = {name: unpacked(value) for name, value in request["inputs"].items()}
    (output,) = onnxruntime.InferenceSession(str(path)).run([request["output"]], inputs)
    return packed(output)


@pytest.mark.slow
@pytest.mark.skipif(SWIFTC is None, reason="there is no Swift compiler")
@pytest.mark.parametrize(("space", "picture"), PICTURES, ids=[f"{s}-{p['enlargement']}" for s, p in PICTURES])
def test_the_compiled_file_decodes_the_worked_tile(space: str, picture: dict[str, Any], program: Path) -> None:
    manifest = Bundle.open(space=space).manifest
    latent = latent_of(manifest.latent_channels, CELLS)[None]
    job = {"manifest": str(DEFAULT_BUNDLE / "manifest.json"), "space": space, "latent": packed(latent)}
    job |= {"size": picture["size"], "tile": list(picture["tile"].values())}
    with subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        said = json.loads(_exchange(process, job))
        while "graph" in said:
            said = json.loads(_exchange(process, answer(manifest, said)))
    assert said["enlargement"] == picture["enlargement"]
    assert said["box"] == list(picture["pixels"]["box"].values())
    levels = fetch(unpacked(said["planes"])[0].copy(), np.uint8)
    assert np.array(said["levels"]).reshape(*levels.shape[1:], 3).transpose(2, 0, 1).tolist() == levels.tolist()
    for part, own in (("first", levels.ravel()[:8]), ("last", levels.ravel()[-8:])):
        assert np.abs(np.subtract(picture["pixels"][part], own.astype(int))).max() <= 1
    assert levels.mean() == pytest.approx(picture["pixels"]["mean"], abs=0.01)


def _exchange(process: "subprocess.Popen[str]", value: dict[str, Any]) -> str:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(json.dumps(value) + "\n")
    process.stdin.flush()
    return process.stdout.readline()
