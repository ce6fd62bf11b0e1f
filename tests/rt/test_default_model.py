"""What the model that ships promises: right pictures of its samples, the same however they are tiled."""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

import infgen_rt
from infgen_rt.bundle.folder import Bundle
from infgen_rt.common.memory import MIB
from infgen_rt.geometry.grid import Grid
from infgen_rt.geometry.shapes import Size
from infgen_rt.plan.making import Limits, TooLittleMemory, make_plan

DATA = Path(__file__).parent.parent / "data"


@pytest.fixture(scope="module")
def decoder() -> Iterator[infgen_rt.Decoder]:
    with infgen_rt.open(backend="onnxruntime") as opened:
        yield opened


def psnr(picture: np.ndarray, truth: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.square(picture.astype(float) - truth).mean()))


SCALES: tuple[str | tuple[int, int], ...] = ("1x", (1001, 569), (480, 272), "2x")
QUICK = {("osprey", (1001, 569)), ("osprey", (480, 272))}


@pytest.mark.parametrize(
    ("name", "scale"),
    [
        pytest.param(name, scale, marks=() if scale == "1x" or (name, scale) in QUICK else pytest.mark.slow)
        for name in infgen_rt.sample_names()
        for scale in SCALES
    ],
    ids=str,
)
def test_samples_look_like_their_photographs(
    decoder: infgen_rt.Decoder, name: str, scale: str | tuple[int, int]
) -> None:
    picture = decoder.picture(infgen_rt.load_sample(name).latent, scale)
    thumbnail = np.asarray(Image.open(DATA / f"{name}.png"))
    shrunk = np.asarray(picture.image().resize(thumbnail.shape[1::-1], Image.Resampling.BOX))
    assert psnr(shrunk, thumbnail) > 30
    # No colour cast: channel by channel, the mean is right to four levels of 255.
    assert np.abs(shrunk.mean((0, 1)) - thumbnail.mean((0, 1))).max() < 4


@pytest.mark.parametrize("scale", ["1x", "2x", pytest.param((801, 603), marks=pytest.mark.slow), "4x"], ids=str)
@pytest.mark.parametrize("space", ["sd15", "sdxl", "sd3", "flux1"])
def test_latents_of_every_space_look_like_their_photograph(space: str, scale: str | tuple[int, int]) -> None:
    latent = load_file(DATA / "spaces.safetensors")[space]
    thumbnail = np.asarray(Image.open(DATA / "spaces.png"))
    with infgen_rt.open(space=space, backend="onnxruntime") as decoder:
        picture = decoder.picture(latent, scale, normalisation="model")
        shrunk = np.asarray(picture.image().resize(thumbnail.shape[1::-1], Image.Resampling.BOX))
    assert psnr(shrunk, thumbnail) > 26
    assert np.abs(shrunk.mean((0, 1)) - thumbnail.mean((0, 1))).max() < 4


@pytest.mark.parametrize("space", ["flux2", "sdxl"])
def test_an_encoded_picture_comes_back(decoder: infgen_rt.Decoder, space: str) -> None:
    photo = decoder.picture(infgen_rt.load_sample("osprey").latent[:, 15:49, 30:90]).read()
    with infgen_rt.open(space=space, backend="onnxruntime") as own:
        latent = own.encode(photo)
        assert psnr(own.picture(latent, normalisation="model").read(), photo) > 25


def test_every_space_has_a_model() -> None:
    assert Bundle.open().spaces == ("flux2", "flux1", "sd3", "sdxl", "sd15")


@pytest.mark.parametrize("size", [(224, 160), (421, 301), (661, 471)], ids=lambda size: f"{size[0]}x{size[1]}")
def test_pixels_do_not_depend_on_the_tiling(decoder: infgen_rt.Decoder, size: tuple[int, int]) -> None:
    """With each of the enlargements."""
    latent = infgen_rt.load_sample("osprey").latent[:, :20, :28]
    whole = decoder.picture(latent, size, tile=1024)
    assert whole.plan.stages[0].count == 1
    expected = whole.read(None, np.float32)
    tiled = decoder.picture(latent, size, tile=64)
    assert tiled.plan.stages[0].count == -(-size[0] // 64) * -(-size[1] // 64)
    assert np.abs(tiled.read(None, np.float32) - expected).max() < 1e-4
    assert np.abs(tiled.read().astype(int) - whole.read()).max() <= 1
    right, bottom = size[0] - 1, size[1] - 1
    for x, y, width, height in [(0, 0, 1, 1), (right, bottom, 1, 1), (85, 41, 130, 77), (5, 125, right - 9, 30)]:
        region = decoder.picture(latent, size).read((x, y, width, height), np.float32)
        assert np.abs(region - expected[y : y + height, x : x + width]).max() < 1e-4


def test_pixels_of_several_stages_do_not_depend_on_the_tiling(decoder: infgen_rt.Decoder) -> None:
    latent = infgen_rt.load_sample("osprey").latent[:, :30, :40]
    pictures = [decoder.picture(latent, (720, 541), stages=(1.5, 1.5), tile=tile) for tile in (512, 160)]
    assert [picture.plan.encodings[0].tiling.count for picture in pictures] == [1, 4]
    whole, tiled = (picture.read().astype(int) for picture in pictures)
    assert np.abs(tiled - whole).max() <= 1


def test_openvino_gives_the_pixels_that_onnx_runtime_gives(decoder: infgen_rt.Decoder) -> None:
    pytest.importorskip("openvino")
    latent, size = infgen_rt.load_sample("harbour").latent[:, 20:50, 30:70], (601, 443)
    with infgen_rt.open(backend="openvino", precision="exact") as other:
        assert (other.backend.name, other.backend.arithmetic) == ("openvino", "fp32")
        pixels = other.picture(latent, size, tile=128).read().astype(int)
    assert np.abs(pixels - decoder.picture(latent, size).read()).max() <= 1


def test_a_precision_that_was_not_checked_has_no_psnr(decoder: infgen_rt.Decoder) -> None:
    manifest = decoder.manifest
    for recipe in ("torch-fp16", "openvino-fp16"):
        assert manifest.psnr(recipe, "fp16") is None  # the graphs' weights have 16 bits, but were computed with 32
        assert (manifest.psnr(recipe, "fp32") or 0) > 60
    assert (manifest.psnr("coreml-fp16", "fp16") or 0) > 45


def test_the_manifest_says_what_the_model_is(decoder: infgen_rt.Decoder) -> None:
    manifest = decoder.manifest
    assert manifest.latent_space == "flux2" and manifest.scale_range == (1.0, 4.0)
    assert manifest.model.licence == "Apache-2.0 AND MIT AND BSD-3-Clause"
    assert [each.factor for each in manifest.enlargements] == [1, 2, 4]
    kinds = {each.graph(kind) for each in manifest.enlargements for kind in ("refine", "decode")}
    kinds |= {"decode_cells2", "decode_cells4"}
    graphs = {"statistics", "prefill", "trunk", "encode", "encode_statistics", "encode_latent", *kinds}
    assert {entry["graph"] for entry in manifest.verification} == graphs
    assert all(recipe.graphs.keys() == graphs for recipe in manifest.recipes)
    works = [each.work for each in manifest.enlargements]
    assert works == sorted(works) and works[0] > 0
    assert [recipe.name for recipe in manifest.recipes] == ["onnx-fp32", "openvino-fp16", "coreml-fp16", "torch-fp16"]
    for entry in manifest.verification:
        checks = entry["checks"]
        assert len(checks) >= 6 and all(check["passed"] for check in checks)
        if entry["precision"] == "fp32":
            assert 0 < max(check["max_error"] for check in checks) <= 1e-4
    for recipe in manifest.recipes:
        assert recipe.memory is None or all(amount > 0 for amount in vars(recipe.memory).values())


def test_the_least_memory_that_the_documentation_names_is_enough_and_hardly_more(decoder: infgen_rt.Decoder) -> None:
    page = (Path(__file__).parents[2] / "docs/command-line.md").read_text(encoding="utf-8")
    (sentence,) = re.findall(r"For 3840x2160 pixels, the least is\s+about ([^.]*)\.", page)
    amounts = {backend: int(number) for number, backend in re.findall(r"(\d+) MiB with (\w+(?: Runtime)?)", sentence)}
    recipes = {"ONNX Runtime": "onnx-fp32", "PyTorch": "torch-fp16", "OpenVINO": "openvino-fp16"}
    assert amounts.keys() == recipes.keys()
    manifest, grid = decoder.manifest, Grid(Size(120, 68), Size(3840, 2160), 8)
    for backend, amount in amounts.items():
        recipe = next(each for each in manifest.recipes if each.name == recipes[backend])
        with pytest.raises(TooLittleMemory) as caught:
            make_plan((grid,), manifest, recipe, decoder.backend, Limits(MIB, scales=manifest.scale_range))
        assert caught.value.needed <= amount * MIB <= 1.1 * caught.value.needed


def test_samples_are_compared_by_identity() -> None:
    """Comparing their arrays would be an error."""
    first, second = (infgen_rt.load_sample("osprey") for _ in range(2))
    assert first == first and first != second and len({first, second}) == 2
