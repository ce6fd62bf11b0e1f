import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest

import infgen_rt
from infgen_rt.bundle.folder import Bundle
from infgen_rt.bundle.several import read_models
from infgen_rt.errors import BundleError, DecodeError

from . import tiny

DECODE = "onnx-fp32/decode.onnx"


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle, tmp_path / "copy"))


def zip_of(folder: Path) -> Path:
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in folder.rglob("*.*"):
            archive.write(file, file.relative_to(folder))
    return path


def test_a_manifest_survives_json(bundle: Path) -> None:
    manifest = Bundle.open(bundle).manifest
    assert read_models(manifest.to_json()) == (manifest,)


def test_a_zip_is_as_good_as_a_folder(copy: Path) -> None:
    latent = tiny.random_latent(5, 5)
    pixels = []
    for path in (copy, zip_of(copy)):
        with infgen_rt.open(path) as decoder:
            pixels.append(np.asarray(decoder.picture(latent)))
    assert np.array_equal(*pixels)


def test_closing_releases_the_weights(copy: Path) -> None:
    zipped = Path(shutil.make_archive(str(copy.parent / "zipped"), "zip", copy))
    with infgen_rt.open(zipped, "onnxruntime") as decoder:
        before = decoder.picture(tiny.random_latent(4, 4)).read()
        bundle = decoder._engine._bundle
    assert not bundle._kept
    with infgen_rt.open(zipped, "onnxruntime") as decoder:
        assert np.array_equal(decoder.picture(tiny.random_latent(4, 4)).read(), before)


def test_additions_of_newer_writers_are_ignored(copy: Path) -> None:
    tiny.edit_manifest(copy, news={"a": 1})
    assert Bundle.open(copy).manifest.model.name == "tiny"


@pytest.mark.parametrize("zipped", [False, True])
def test_a_changed_graph_is_refused(copy: Path, zipped: bool) -> None:
    content = bytearray((copy / DECODE).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / DECODE).write_bytes(content)
    with pytest.raises(BundleError, match="sha256 of onnx-fp32/decode.onnx does not match"):
        infgen_rt.open(zip_of(copy) if zipped else copy)


@pytest.mark.parametrize("zipped", [False, True])
def test_a_truncated_or_missing_graph_is_refused_at_once(copy: Path, zipped: bool) -> None:
    (copy / DECODE).write_bytes(b"short")
    with pytest.raises(BundleError, match="has 5 bytes, expected"):
        Bundle.open(zip_of(copy) if zipped else copy)
    (copy / DECODE).unlink()
    with pytest.raises(BundleError, match="decode.onnx is missing"):
        Bundle.open(zip_of(copy) if zipped else copy)


def changed(manifest: dict, path: str, value: object) -> dict:
    *parents, last = path.split("/")
    place = manifest
    for key in parents:
        place = place[int(key) if isinstance(place, list) else key]
    place[last] = value
    return manifest


@pytest.mark.parametrize(
    ("path", "value", "text"),
    [
        ("format", 7, "has format 7, this version reads 1 to 6: upgrade infgen-rt"),
        ("format", None, "this manifest.json is not that of a bundle, .*: pass another folder or zip"),
        ("latent_channels", "32", "manifest.latent_channels is str, expected int"),
        ("latent_channels", True, "is bool, expected int"),
        ("patch", 0, "above 0"),
        ("scale_range", [4, 0.5], "ascend"),
        ("scale_range", [0.5], "has 1 items, expected 2"),
        ("halo/tokens", -1, "negative"),
        ("halo", [], "manifest.halo is list, expected dict"),
        ("shapes", {}, "manifest.shapes lacks 'latent'"),
        ("recipes/0/graphs", {"prefill": DECODE}, "lacks the graph 'decode'"),
        ("recipes/0/graphs", {"prefill": "a", "decode": "b"}, "not in 'files'"),
        ("moments", None, "recipe 'onnx-fp32' has statistics, and 'moments' gives no shape"),
        ("moments", [2, 0], "'moments' gives no shape"),
        ("encoder_moments", [2, 1], "'encoder_channels' and 'encoder_moments' give no shape"),
        ("recipes/0/memory/base", 1.5, r"recipes\[0\].memory.base is float"),
        ("files", {"../../etc/passwd": {"sha256": "0" * 64, "bytes": 1}}, "does not stay inside"),
        ("files", {"/etc/passwd": {"sha256": "0" * 64, "bytes": 1}}, "does not stay inside"),
        ("files", {"c:\\x": {"sha256": "0" * 64, "bytes": 1}}, "does not stay inside"),
        ("files", {"a": {"sha256": "xyz", "bytes": 1}}, "no valid sha256"),
    ],
)
def test_bad_manifests_are_refused(bundle: Path, path: str, value: object, text: str) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    with pytest.raises(BundleError, match=text):
        read_models(json.dumps(changed(manifest, path, value)))


def test_a_recipe_has_all_graphs_of_an_encoder_with_statistics_or_none(bundle: Path) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text()) | {"encoder_moments": [2, 1], "encoder_channels": 5}
    with pytest.raises(BundleError, match="'onnx-fp32' lacks the graph 'encode_latent'"):
        read_models(json.dumps(manifest))
    del manifest["recipes"][0]["graphs"]["encode"]
    assert read_models(json.dumps(manifest))[0].encoder_channels == 5


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"a": 1}', "[" * 100_000])
def test_manifests_that_are_none_are_refused(content: str) -> None:
    with pytest.raises(BundleError):
        read_models(content)


def test_what_is_no_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="does not exist"):
        Bundle.open(tmp_path / "none")
    with pytest.raises(BundleError, match="has no manifest.json"):
        Bundle.open(tmp_path)
    (tmp_path / "file").write_bytes(b"PK rubbish")
    with pytest.raises(BundleError, match="is not a bundle"):
        Bundle.open(tmp_path / "file")


def test_an_installation_without_a_model_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infgen_rt.bundle.folder.DEFAULT_BUNDLE", tmp_path / "model")
    with pytest.raises(BundleError, match="ships no model"):
        infgen_rt.open()


def test_a_manifest_that_does_not_fit_its_graphs_is_noticed(copy: Path) -> None:
    tiny.edit_manifest(copy, context_channels=7)
    text = "the backend or the export is at fault; export the model again, or "
    with infgen_rt.open(copy) as decoder, pytest.raises(DecodeError, match=text):
        decoder.picture(tiny.random_latent(4, 4)).read()
