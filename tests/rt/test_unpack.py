"""Files that a bundle stores as parts of its weights, and packages that are written in full."""

import dataclasses
import hashlib
import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import infgen_rt
from infgen_rt.bundle.assembly import PARTS, Assembly
from infgen_rt.bundle.folder import Bundle
from infgen_rt.bundle.graphs import WEIGHTS
from infgen_rt.bundle.manifest import FileInfo, Recipe
from infgen_rt.cli import main
from infgen_rt.errors import BundleError, OutputError

from . import tiny

STORED = np.random.default_rng(0).bytes(4096)
FILE = b"head" + bytes(60) + STORED[1024:2048] + bytes(100) + b"\1" + bytes(20) + b"\2" + STORED[:512] + bytes(7)
PLACES = {64: (1024, 1024), 1210: (0, 512)}
PACKAGE = "coreml-fp16.{}.mlpackage"
WEIGHT = "Data/com.apple.CoreML/weights/weight.bin"


def test_a_file_is_put_together_from_its_parts() -> None:
    assembly = Assembly.of(FILE, PLACES)
    assert [at for at, _ in assembly.literals] == [0, 1188, 1209] and len(assembly.to_json()) < 250
    for weights in (STORED, memoryview(STORED)):
        assert Assembly.from_json(assembly.to_json().encode()).make(weights) == FILE


@pytest.mark.parametrize(
    "changes",
    [
        {"sha256": "0" * 64},
        {"length": len(FILE) + 1},
        {"length": -1},
        {"copies": ((64, 4000, 1024), (1210, 0, 512))},
        {"copies": ((64, 1024, 1024), (1210, 0, 600))},
        {"literals": ((0, "head"),)},
    ],
)
def test_a_file_that_would_be_another_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        dataclasses.replace(Assembly.of(FILE, PLACES), **changes).make(STORED)


@pytest.fixture
def packages(bundle: Path, tmp_path: Path) -> Path:
    """A bundle with Core ML packages whose weights are parts of the bundle's."""
    folder = Path(shutil.copytree(bundle, tmp_path / "packages"))
    manifest = Bundle.open(bundle).manifest
    graphs = {graph: PACKAGE.format(graph) for graph in manifest.recipes[0].graphs}
    contents = {WEIGHTS: STORED}
    for package in graphs.values():
        contents[f"{package}/Manifest.json"] = b"{}"
        contents[f"{package}/{WEIGHT}{PARTS}"] = Assembly.of(FILE, PLACES).to_json().encode()
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    files = {name: FileInfo(hashlib.sha256(each).hexdigest(), len(each)) for name, each in contents.items()}
    units = dict.fromkeys(graphs, "cpuAndGPU")
    recipe = Recipe("coreml-fp16", "coreml", "fp16", graphs, None, weights=WEIGHTS, compute_units=units)
    checks = tuple({"recipe": name, "graph": "decode"} for name in ("onnx-fp32", "coreml-fp16"))
    both = dataclasses.replace(
        manifest, recipes=(*manifest.recipes, recipe), files=manifest.files | files, verification=checks
    )
    (folder / "manifest.json").write_text(both.to_json())
    return folder


def zipped(folder: Path) -> Path:
    with zipfile.ZipFile(folder.with_suffix(".zip"), "w") as archive:
        for file in (each for each in folder.rglob("*") if each.is_file()):
            archive.write(file, file.relative_to(folder))
    return folder.with_suffix(".zip")


@pytest.mark.parametrize("archive", [False, True])
def test_a_graph_has_its_whole_files(packages: Path, archive: bool) -> None:
    opened = Bundle.open(zipped(packages) if archive else packages)
    files = opened.read_graph(opened.manifest.recipes[1], "decode")
    assert files == {"Manifest.json": b"{}", WEIGHT: FILE, WEIGHTS: STORED}


@pytest.mark.parametrize("text", ["{", "[]", "[" * 100_000, '{"length": 1}', "other weights", '{"length": 1e400}'])
def test_parts_that_do_not_fit_are_refused(packages: Path, text: str) -> None:
    if text == "other weights":
        text = Assembly.of(b"x" + FILE, {at + 1: place for at, place in PLACES.items()}).to_json()
        text = text.replace("[65,1024,", "[65,1000,")
    file = packages / PACKAGE.format("decode") / f"{WEIGHT}{PARTS}"
    file.write_text(text)
    manifest = json.loads((packages / "manifest.json").read_text())
    info = {"sha256": hashlib.sha256(text.encode()).hexdigest(), "bytes": len(text)}
    manifest["files"][file.relative_to(packages).as_posix()] = info
    (packages / "manifest.json").write_text(json.dumps(manifest))
    opened = Bundle.open(packages)
    with pytest.raises(BundleError, match=r"is damaged: .*weight\.bin\.parts\.json does not fit its weights: .*; copy"):
        opened.read_graph(opened.manifest.recipes[1], "decode")


@pytest.mark.parametrize("archive", [False, True])
def test_unpacked_packages_are_a_bundle_without_shared_weights(packages: Path, archive: bool) -> None:
    output = packages.parent / "new" / "model"
    source = zipped(packages) if archive else packages
    assert main(["unpack", str(source), "-o", str(output), "--no-encoder", "--space", "flux2-klein"]) == 0
    opened = Bundle.open(output)
    (recipe,) = opened.manifest.recipes
    graphs = {graph: PACKAGE.format(graph) for graph in tiny.GRAPHS if not graph.startswith("encode")}
    assert (recipe.graphs, recipe.weights, recipe.compute_units.keys()) == (graphs, None, graphs.keys())
    assert opened.read_graph(recipe, "decode") == {"Manifest.json": b"{}", WEIGHT: FILE}
    files = {each.relative_to(output).as_posix() for each in output.rglob("*") if each.is_file()}
    assert files == {"manifest.json", *opened.manifest.files} and list(output.parent.iterdir()) == [output]
    assert opened.manifest.model.parameters.keys() == Bundle.open(packages).manifest.model.parameters.keys() - {
        "encode"
    }
    assert opened.manifest.verification == ({"recipe": "coreml-fp16", "graph": "decode"},)
    # What is complete already can be unpacked again, for example without other spaces.
    assert main(["unpack", str(output), "-o", str(output.with_name("again"))]) == 0
    assert (output.with_name("again") / "manifest.json").read_text() == (output / "manifest.json").read_text()


def test_a_folder_that_appears_meanwhile_gets_nothing(
    packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For example because two processes unpack to one name."""
    from infgen_rt.bundle import unpacking

    write_models = unpacking.write_models

    def appear(*arguments: Any) -> str:
        (tmp_path / "there").mkdir()
        (tmp_path / "there" / "file").touch()
        return write_models(*arguments)

    monkeypatch.setattr(unpacking, "write_models", appear)
    with pytest.raises(OutputError, match="there exists: choose another folder, or remove it"):
        unpacking.unpack(tmp_path / "there", packages)
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["file"]


def test_what_cannot_be_unpacked(
    packages: Path, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from infgen_rt.bundle.unpacking import unpack

    (tmp_path / "there").mkdir()
    with pytest.raises(OutputError, match="there exists: choose another folder, or remove it"):
        unpack(tmp_path / "there", packages)
    with pytest.raises(OutputError, match="cannot be written"):
        unpack(packages / "manifest.json" / "model", packages)
    with pytest.raises(OutputError, match="cannot be a file's name"):
        unpack("\0", packages)
    with pytest.raises(BundleError, match="has no Core ML packages: export its checkpoint with --target coreml"):
        unpack(tmp_path / "model", bundle)
    with pytest.raises(BundleError, match="has no model for sdxl latents"):
        unpack(tmp_path / "model", packages, ["sdxl"])
    (packages / PACKAGE.format("decode") / "Manifest.json").write_bytes(b"[]")
    assert main(["unpack", str(packages), "-o", str(tmp_path / "model")]) == 2
    assert "the sha256 of" in capsys.readouterr().err
    assert not [each for each in tmp_path.iterdir() if "model" in each.name]


def test_a_bundle_decodes_whatever_packages_it_has(packages: Path) -> None:
    with infgen_rt.open(packages) as decoder:
        assert decoder.picture(tiny.random_latent(5, 5)).read().any()
