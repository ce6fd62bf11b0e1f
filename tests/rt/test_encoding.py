"""Pictures that are given are encoded in tiles, into the latent that the encoder makes of the whole."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

import infgen_rt
from infgen_rt.errors import DecodeError, InputError, PlanError
from infgen_rt.plan.encoding import plan_encoding

from . import tiny


def pixels(width: int = 320, height: int = 240) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def whole(picture: np.ndarray) -> np.ndarray:
    image = np.ascontiguousarray(picture.transpose(2, 0, 1)[None]).astype(np.float32) / 255
    return tiny.session(tiny.encode_graph()).run(None, {"image": image})[0][0]


def test_a_latent_does_not_depend_on_the_tiles(decoder: infgen_rt.Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = whole(pixels())
    assert np.abs(decoder.encode(pixels()) - expected).max() < 1e-5
    # The least memory that is enough for the smallest tiles.
    manifest, recipe = decoder.manifest, decoder.manifest.recipes[0]
    size = infgen_rt.Size(320, 240)
    least = next(n for n in range(2_000_000, 2**26, 100_000) if tiles_within(size, manifest, recipe, n))
    monkeypatch.setattr(decoder, "_budget", least)
    assert plan_encoding(size, manifest, recipe, least).tiling.count > 10
    assert np.abs(decoder.encode(pixels()) - expected).max() < 1e-5


def test_a_recipe_without_an_encoder_names_those_that_have_one(decoder: infgen_rt.Decoder) -> None:
    recipe = decoder.manifest.recipes[0]
    graphs = {name: graph for name, graph in recipe.graphs.items() if name != "encode"}
    without = dataclasses.replace(recipe, name="openvino-fp16", graphs=graphs)
    size, more = infgen_rt.Size(32, 32), 2**30
    with pytest.raises(PlanError, match=f"has no encode graph, but {recipe.name} has: open the model with"):
        plan_encoding(size, dataclasses.replace(decoder.manifest, recipes=(without, recipe)), without, more)
    with pytest.raises(PlanError, match="has no encode graph: encode the picture with the VAE"):
        plan_encoding(size, dataclasses.replace(decoder.manifest, recipes=(without,)), without, more)


def tiles_within(size: infgen_rt.Size, manifest: object, recipe: object, budget: int) -> bool:
    try:
        plan_encoding(size, manifest, recipe, budget)  # type: ignore[arg-type]
    except PlanError as error:
        assert "encoding a 320x240 picture needs at least" in str(error)
        return False
    return True


def test_bytes_floats_and_pillow_pictures_are_the_same_latent(decoder: infgen_rt.Decoder) -> None:
    picture = pixels(64, 48)
    latent = decoder.encode(picture)
    assert latent.shape == (32, 6, 8) and latent.dtype == np.float32
    assert np.abs(decoder.encode(picture / 255) - latent).max() < 1e-5
    assert np.array_equal(decoder.encode(Image.fromarray(picture)), latent)


@pytest.mark.parametrize(
    ("picture", "error", "text"),
    [
        (pixels(20, 16), PlanError, "picture of 20x16 is not whole cells: expected sides that are multiples of 8"),
        (np.zeros((16, 8 * 129, 3), np.uint8), PlanError, "latent of 129x2 cells, and the model takes 1 to 128"),
        (pixels(16, 16)[..., :1], InputError, r"uint8 \[16, 16, 1\] are not pixels"),
        ("picture.png", InputError, r"not the name of a file: open it first, as PIL\.Image\.open does"),
        (
            Image.fromarray(pixels(16, 16)).convert("LAB"),
            InputError,
            r"of mode LAB is not in sRGB: pass image\.convert",
        ),
        (Image.fromarray(pixels(16, 16)).convert("YCbCr"), InputError, "of mode YCbCr"),
        (Image.fromarray(pixels(16, 16)).convert("RGBA"), InputError, "of mode RGBA"),
        (pixels(16, 16).astype(int), InputError, "int64 .* are not pixels"),
        (np.zeros((0, 16, 3)), InputError, "are not pixels"),
        (np.full((16, 16, 3), np.inf), InputError, "NaN or infinite"),
        (np.full((16, 16, 3), 1e300), InputError, "NaN or infinite"),
        (np.linspace(0, 255, 768).reshape(16, 16, 3), InputError, r"from 0 to 255, .*: divide them by 255"),
        (np.linspace(-1, 1, 768).reshape(16, 16, 3), InputError, r"from -1 to 1.*: pass \(x \+ 1\) / 2"),
        ([[[0.0, 0.0, 0.0]], [[0.0, 0.0]]], InputError, "the picture's parts have different shapes"),
        (np.ma.masked_equal(pixels(16, 16), 0), InputError, "some of the picture's numbers are masked"),
    ],
)
def test_what_cannot_be_encoded_is_refused(
    decoder: infgen_rt.Decoder, picture: np.ndarray, error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        decoder.encode(picture)


def test_tensors_are_pictures_too(decoder: infgen_rt.Decoder) -> None:
    torch = pytest.importorskip("torch")
    values = torch.rand(16, 24, 3)
    expected = decoder.encode(values.numpy())
    assert np.array_equal(decoder.encode(values.clone().requires_grad_()), expected)
    assert np.array_equal(decoder.encode(values.bfloat16()), decoder.encode(values.bfloat16().float().numpy()))
    with pytest.raises(InputError, match="the Tensor cannot be converted to an array"):
        decoder.encode(values.to("meta"))


def test_a_closed_decoder_encodes_nothing(decoder: infgen_rt.Decoder) -> None:
    decoder.close()
    with pytest.raises(DecodeError, match="closed"):
        decoder.encode(pixels(16, 16))
