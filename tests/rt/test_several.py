"""A bundle with models of several latent spaces: which one decodes a latent, and what they share."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import infgen_rt
from infgen_rt.bundle.folder import Bundle
from infgen_rt.bundle.manifest import Manifest
from infgen_rt.bundle.several import read_models, write_models
from infgen_rt.cli.main import main
from infgen_rt.common.memory import format_bytes
from infgen_rt.errors import BundleError, LatentError

from . import tiny

pytestmark = pytest.mark.filterwarnings("ignore::infgen_rt.InfGenWarning")
SPACES = {"flux2": 32, "sd15": 4, "sdxl": 4}


def latent_of(space: str) -> np.ndarray:
    return np.random.default_rng(1).normal(0, 0.8, (SPACES[space], 9, 12)).astype(np.float32)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A bundle of each space by itself. Those of four channels differ in the weights of prefill."""
    folders = {}
    for space, channels in SPACES.items():
        folders[space] = tmp_path_factory.mktemp(space)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tiny, "CHANNELS", channels)
            if space == "sdxl":
                patch.setattr(tiny, "PREFILL_SEED", 20)
            tiny.write_bundle(folders[space])
        tiny.edit_manifest(folders[space], latent_space=space)
    return folders


@pytest.fixture(scope="module")
def bundle(parts: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All of them in one, which has each file once; not to be changed."""
    folder, models = tmp_path_factory.mktemp("several"), []
    for space, part in parts.items():
        manifest = Bundle.open(part).manifest
        names = {}
        for name in manifest.files:
            shared = "refine" in name or "decode" in name
            names[name] = name if shared else f"{space}/{name}"
            target = folder / names[name]
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((part / name).read_bytes())
        (recipe,) = manifest.recipes
        graphs = {graph: names[name] for graph, name in recipe.graphs.items()}
        files = {names[name]: info for name, info in manifest.files.items()}
        models.append(replace(manifest, recipes=(replace(recipe, graphs=graphs),), files=files))
    (folder / "manifest.json").write_text(write_models(models))
    return folder


@pytest.mark.parametrize("space", SPACES)
def test_each_space_has_the_picture_of_its_own_bundle(bundle: Path, parts: dict[str, Path], space: str) -> None:
    pictures = []
    for path in (bundle, parts[space]):
        with infgen_rt.open(path, space=space) as decoder:
            assert decoder.manifest.latent_space == space
            pictures.append(decoder.picture(latent_of(space), "2x", normalisation="model").read())
    assert np.array_equal(*pictures)


def test_the_spaces_have_different_pictures(bundle: Path) -> None:
    """Without this the test above could pass on a bundle that opens any of them."""
    with infgen_rt.open(bundle, space="sd15") as one, infgen_rt.open(bundle, space="sdxl") as other:
        pictures = [each.picture(latent_of("sdxl"), normalisation="model").read() for each in (one, other)]
    assert np.abs(pictures[0].astype(int) - pictures[1]).mean() > 1


def test_without_a_space_the_first_is_opened_and_a_models_name_is_understood(bundle: Path) -> None:
    with infgen_rt.open(bundle) as first, infgen_rt.open(bundle, space="Stable Diffusion XL") as named:
        assert (first.manifest.latent_space, named.manifest.latent_space) == ("flux2", "sdxl")
        assert first.spaces == named.spaces == tuple(SPACES)


def test_a_shared_file_is_listed_and_stored_once(bundle: Path) -> None:
    described = json.loads((bundle / "manifest.json").read_text())
    stored = {file.relative_to(bundle).as_posix() for file in bundle.rglob("*.onnx")}
    assert set(described["files"]) == stored and len(stored) == 2 + 3 * len(SPACES)
    for space in SPACES:
        files = Bundle.open(bundle, space).manifest.files
        assert len(files) == 5 and all(name in stored for name in files)


def test_a_latent_of_another_space_is_refused_with_what_to_do(bundle: Path) -> None:
    with infgen_rt.open(bundle) as decoder:
        for make in (decoder.picture, decoder.pictures):
            with pytest.raises(
                LatentError, match=r"not that of flux2 .* sd15 or sdxl: open the model with space='sd15'"
            ):
                make(latent_of("sdxl"))


def test_a_space_that_the_bundle_lacks_is_refused_with_those_that_it_has(bundle: Path) -> None:
    with pytest.raises(BundleError, match="no model for sd3 latents: it has one for flux2, sd15, sdxl"):
        infgen_rt.open(bundle, space="sd3.5")
    with pytest.raises(LatentError, match="sdx"):
        infgen_rt.open(bundle, space="sdx1000")


def test_the_command_takes_the_only_space_of_a_shape_and_asks_otherwise(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for space in ("flux2", "sdxl"):
        np.save(tmp_path / f"{space}.npy", latent_of(space))
    command = ["decode", "--model", str(bundle), "--quiet", "--normalisation", "model"]
    assert main([*command, str(tmp_path / "flux2.npy"), "-o", str(tmp_path / "a.png")]) == 0
    assert main([*command, str(tmp_path / "sdxl.npy"), "-o", str(tmp_path / "b.png")]) != 0
    assert "may be of sd15 or sdxl" in capsys.readouterr().err and not (tmp_path / "b.png").exists()
    assert main([*command, str(tmp_path / "sdxl.npy"), "-o", str(tmp_path / "b.png"), "--space", "sdxl"]) == 0
    assert (tmp_path / "b.png").exists()


def test_a_folder_may_hold_latents_of_several_spaces(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "latents").mkdir()
    for name in ("flux2", "sdxl"):
        np.save(tmp_path / "latents" / f"{name}.npy", latent_of(name))
    command = ["decode", "--model", str(bundle), "--quiet", "--normalisation", "model", str(tmp_path / "latents")]
    assert main([*command, "-o", str(tmp_path / "pictures")]) == 1  # one of them is ambiguous, the other is not
    assert [file.name for file in (tmp_path / "pictures").iterdir()] == ["flux2.png"]


def test_info_describes_every_model(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(bundle), "--json"]) == 0
    models = json.loads(capsys.readouterr().out)["models"]
    assert {space: each["latent_space"] for space, each in models.items()} == {space: space for space in SPACES}
    assert main(["info", str(bundle), "--verbose"]) == 0 and "latent_space: sdxl" in capsys.readouterr().out


def test_info_is_short_and_tells_once_what_all_models_share(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifests = [Bundle.open(bundle, space).manifest for space in SPACES]
    files = {name: file.bytes for manifest in manifests for name, file in manifest.files.items()}
    assert main(["info", str(bundle)]) == 0
    short = capsys.readouterr().out
    assert f"size: {format_bytes(sum(files.values()))}\n" in short and "training" not in short
    assert all(f"\n  {space}: {each.model.name} " in short for space, each in zip(SPACES, manifests, strict=True))
    assert main(["info", str(bundle), "--verbose"]) == 0
    assert capsys.readouterr().out.count("training: ") == 1


def test_a_damaged_file_of_any_model_is_noticed(bundle: Path, tmp_path: Path) -> None:
    for file in bundle.rglob("*"):
        if file.is_file():
            copy = tmp_path / file.relative_to(bundle)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(file.read_bytes())
    (tmp_path / "sdxl" / "onnx-fp32" / "prefill.onnx").unlink()
    with pytest.raises(BundleError, match=r"sdxl/onnx-fp32/prefill.onnx is missing"):
        Bundle.open(tmp_path, "flux2")


@pytest.mark.parametrize(
    ("models", "text"),
    [
        ([], "not a list of one model"),
        ("sdxl", "not a list of one model"),
        ([1], "not a list of one model"),
        ([{}], "lacks"),
    ],
)
def test_a_list_that_is_none_of_models_is_refused(bundle: Path, models: object, text: str) -> None:
    described = json.loads((bundle / "manifest.json").read_text()) | {"models": models}
    with pytest.raises(BundleError, match=text):
        read_models(json.dumps(described))


def test_two_models_of_a_space_are_refused(bundle: Path) -> None:
    described = json.loads((bundle / "manifest.json").read_text())
    described["models"].append(described["models"][0])
    with pytest.raises(BundleError, match="two models are for 'flux2' latents"):
        read_models(json.dumps(described))


def test_different_files_of_one_name_cannot_be_shared(parts: dict[str, Path]) -> None:
    models: list[Manifest] = [Bundle.open(path).manifest for path in parts.values()]
    with pytest.raises(ValueError, match="different files 'onnx-fp32/statistics.onnx'"):
        write_models(models)
