"""The worked numbers of the bundle in the package, which authors in other languages check their code against."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import infgen_rt
from infgen_export import worked
from infgen_rt.bundle.folder import Bundle

DOCS = Path(__file__).parents[2] / "docs"
OUTSIDE_PICTURES = ("statistics", "encode", "encode_statistics", "encode_latent")
COMMAND = "python -m infgen_export.worked -o docs/bundle.json"


@pytest.fixture(scope="module")
def written() -> dict[str, Any]:
    numbers: dict[str, Any] = json.loads((DOCS / "bundle.json").read_text())
    return numbers


def tensors(part: Any) -> Iterator[dict[str, Any]]:
    """All descriptions of arrays in a part of the file."""
    for value in part.values() if isinstance(part, dict) else part if isinstance(part, list) else ():
        if isinstance(value, dict) and value.get("dtype") == "float32":
            yield value
        yield from tensors(value)


def assert_same(found: Any, expected: Any, place: str = "") -> None:
    """Floats are compared with the tolerance of the file, and everything else must be equal."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), f"{place}: run {COMMAND}"
        for name, value in expected.items():
            assert_same(found[name], value, f"{place}/{name}")
    elif isinstance(expected, list) and expected and not isinstance(expected[0], dict):
        most = worked.TOLERANCE * max(1, *np.abs(expected)) if isinstance(expected[0], float) else 1
        assert len(found) == len(expected) and np.abs(np.subtract(found, expected)).max() <= most, (
            f"{place}: {found} and not {expected}: run {COMMAND}"
        )
    elif isinstance(expected, list):
        assert len(found) == len(expected), f"{place}: run {COMMAND}"
        for number, (one, other) in enumerate(zip(found, expected, strict=True)):
            assert_same(one, other, f"{place}/{number}")
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=worked.TOLERANCE, abs=worked.TOLERANCE), f"{place}: run {COMMAND}"
    else:
        assert found == expected, f"{place}: run {COMMAND}"


def test_the_numbers_are_what_the_graphs_compute(written: dict[str, Any]) -> None:
    assert_same(json.loads(worked.as_text(worked.worked())), written)


def test_every_graph_of_every_model_is_there(written: dict[str, Any]) -> None:
    assert [model["space"] for model in written["models"]] == list(Bundle.open().spaces)
    ran, there = set(), set()
    for model in written["models"]:
        steps = [step for picture in model["pictures"] for step in picture["steps"]]
        steps += [picture["decode_cells"] for picture in model["pictures"] if "decode_cells" in picture]
        steps += [model[name] for name in OUTSIDE_PICTURES if name in model]
        recipe = Bundle.open(space=model["space"]).manifest.recipes[0]
        ran |= {recipe.graphs[step["graph"]] for step in steps}
        there |= set(recipe.graphs.values())
    assert ran == there


def test_shapes_are_those_that_the_page_states(written: dict[str, Any]) -> None:
    for tensor in tensors(written):
        if "values" in tensor:
            assert len(tensor["values"]) == np.prod(tensor["shape"])
        else:
            assert len(tensor["first"]) == len(tensor["last"]) == 8 < np.prod(tensor["shape"])


def test_coordinates_are_those_of_the_page(written: dict[str, Any]) -> None:
    """Written out again here, because the command uses the runtime's own code."""
    height, width = worked.CELLS.height, worked.CELLS.width
    for picture in (picture for model in written["models"] for picture in model["pictures"]):
        inputs = {name: tensor.get("values") for name, tensor in picture["steps"][-1]["inputs"].items()}
        cells, tokens, size = picture["cells"], picture["tokens"], picture["size"]
        rows = [(tokens["y"] + a + 0.5) * 8 * height / size[1] for a in range(tokens["height"])]
        columns = [(tokens["x"] + a + 0.5) * 8 * width / size[0] for a in range(tokens["width"])]
        for name, centres in (("token_y", rows), ("token_x", columns)):
            assert np.abs(np.subtract(inputs[name], centres)).max() <= 4e-6
        assert inputs["key_y"] == [cells["y"] + i + 0.5 for i in range(cells["height"])]
        assert inputs["key_x"] == [cells["x"] + i + 0.5 for i in range(cells["width"])]
        assert inputs["extent"] == [height, width]
        assert inputs["scale"] == pytest.approx([size[1] / (8 * height), size[0] / (8 * width)])


def test_statistics_in_tiles_are_those_of_the_whole_latent(written: dict[str, Any]) -> None:
    (model,) = [model for model in written["models"] if "statistics" in model]
    whole = model["statistics"]["outputs"]["moments"]["values"]
    passes = model["statistics_in_tiles"]["passes"]
    assert passes[-1]["known_afterwards"]["values"] == pytest.approx(whole, abs=1e-5)
    assert all(sum(run["inputs"]["share_x"]["values"]) == pytest.approx(1) for run in passes[0]["runs"])


def test_pixels_are_those_of_the_runtime(written: dict[str, Any]) -> None:
    model = written["models"][0]
    with infgen_rt.open(backend="onnxruntime") as decoder:
        latent = worked.latent_of(decoder.manifest.latent_channels, worked.CELLS)
        for each in model["pictures"]:
            picture = decoder.picture(latent, tuple(each["size"]), normalisation="model")
            pixels = picture.read(tuple(each["pixels"]["box"].values())).transpose(2, 0, 1)
            assert list(pixels.shape) == each["pixels"]["shape"]
            for part, own in (("first", pixels.ravel()[:8]), ("last", pixels.ravel()[-8:])):
                assert np.abs(np.subtract(each["pixels"][part], own.astype(int))).max() <= 1


def test_a_bundle_without_statistics_or_trunk_has_numbers_too(bundle: Path, tmp_path: Path) -> None:
    output = tmp_path / "numbers.json"
    result = CliRunner().invoke(worked.main, [str(bundle), "-o", str(output)])
    assert result.exit_code == 0, result.output
    (model,) = json.loads(output.read_text())["models"]
    assert [step["graph"] for step in model["pictures"][0]["steps"]] == ["prefill", "refine", "decode"]


def test_what_cannot_be_run_is_refused(bundle: Path, tmp_path: Path) -> None:
    arguments = [str(bundle), "--backend", "openvino", "-o", str(tmp_path / "numbers.json")]
    result = CliRunner().invoke(worked.main, arguments)
    assert result.exit_code == 1 and "needs graphs for 'openvino'" in result.output
    result = CliRunner().invoke(worked.main, [str(tmp_path), "-o", str(tmp_path / "numbers.json")])
    assert result.exit_code == 1 and "is not a bundle" in result.output
    assert not (tmp_path / "numbers.json").exists()
