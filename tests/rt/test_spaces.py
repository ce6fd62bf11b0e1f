"""The table of latent spaces, and what tells the space of a latent that comes without a name."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from infgen_rt import spaces
from infgen_rt.cli.main import main
from infgen_rt.errors import InfGenWarning, LatentError
from infgen_rt.latent.arrays import load_latents
from infgen_rt.latent.distribution import covariance_of
from infgen_rt.spaces import LatentSpace, as_latent, as_latents, latent_space, likely_space, normalisation_of, space_of

ALL = list(spaces.latent_spaces().values())
MEASURED = ("sd15", "sdxl", "sd3", "flux1")


def latent_of(space: LatentSpace, side: int = 64, seed: int = 0) -> np.ndarray:
    """A stand-in for a real latent: smooth fields and fine noise with the statistics of a space's channels."""
    random = np.random.default_rng(seed)
    fields = random.normal(size=(space.channels, side, side))
    for axis in (1, 2):
        fields = sum(np.roll(fields, shift, axis) for shift in range(6))
    fields = fields.reshape(space.channels, -1)
    fields = np.linalg.solve(np.linalg.cholesky(np.cov(fields)), fields - fields.mean(axis=1, keepdims=True))
    # Of white noise, the differences of cells from the means of four others have 1.25 times the variance.
    noise = covariance_of(space.detail_std, space.detail_correlations) / 1.25
    values, vectors = np.linalg.eigh(covariance_of(space.channel_std, space.correlations) - noise)
    smooth = vectors * np.sqrt(np.maximum(values, 0.01))
    cells = smooth @ fields + np.linalg.cholesky(noise) @ random.normal(size=fields.shape)
    cells += np.array(space.channel_mean)[:, None]
    return cells.reshape(space.channels, side, side).astype(np.float32)


@pytest.mark.parametrize("space", ALL, ids=lambda space: space.name)
def test_a_space_has_the_names_of_its_models_and_says_where_each_is_from(space: LatentSpace) -> None:
    assert space.models and space.source and space.title
    for model in space.models:
        assert model.source
        for name in model.names:
            for written in (name, name.upper(), name.replace("-", " "), name.replace("-", "_"), name.replace(".", "")):
                assert latent_space(written) == space


def test_no_name_is_that_of_two_spaces() -> None:
    names = [name for space in ALL for name in {space.name, *(n for model in space.models for n in model.names)}]
    plain = {name: "".join(filter(str.isalnum, name)) for name in names}
    for name in names:
        assert len({latent_space(other).name for other in names if plain[other] == plain[name]}) == 1


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("SD 1.5", "sd15"),
        ("sd2", "sd15"),
        ("SDXL", "sdxl"),
        ("sd3.5", "sd3"),
        ("flux", "flux1"),
        ("FLUX.1-dev", "flux1"),
        ("Z-Image", "flux1"),
        ("hidream", "flux1"),
        ("FLUX.2-klein", "flux2"),
        ("ERNIE_Image", "flux2"),
        ("sd-turbo", "sd15"),
        ("sd21-base", "sd15"),
        ("stabilityai/stable-diffusion-2-base", "sd15"),
        ("stabilityai/sdxl-turbo", "sdxl"),
        ("ByteDance/SDXL-Lightning", "sdxl"),
        ("black-forest-labs/FLUX.1-Kontext-dev", "flux1"),
        ("flux1-krea-dev", "flux1"),
        ("lodestones/Chroma1-HD", "flux1"),
        ("black-forest-labs/FLUX.2-klein-4B", "flux2"),
    ],
)
def test_models_are_named_as_people_know_them(name: str, expected: str) -> None:
    assert latent_space(name).name == expected


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("sdx", "did you mean sdxl"),
        ("sdx1", "did you mean sdxl"),
        ("qwen-image", "is unknown to this version: known are"),
        ("z-imag", "did you mean z-image, of the space flux1"),
        ("sdxl-lightnin", "did you mean sdxl-lightning, of the space sdxl"),
        ("cogvideo", "known are sd15, sdxl, sd3, flux1"),
    ],
)
def test_an_unknown_name_is_told_the_nearest_and_what_there_is(name: str, text: str) -> None:
    with pytest.raises(LatentError, match=text) as caught:
        latent_space(name)
    assert "infgen-rt spaces" in str(caught.value)


def test_no_name_is_suggested_if_near_ones_are_of_several_spaces() -> None:
    with pytest.raises(LatentError) as caught:
        latent_space("sdy-turbo")  # as near to sd-turbo as to sdxl-turbo
    assert "did you mean" not in str(caught.value)


def test_the_command_lists_every_space(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["spaces"]) == 0
    text = capsys.readouterr().out
    for space in ALL:
        assert f"{space.name}: {space.title}\n  latents: {space.channels} channels, 8 pixels per cell" in text
        assert space.source in text and all(model.title in text for model in space.models)
    assert "minus 0.1159, then times 0.3611" in text and "each of 128 channels" in text


def test_the_command_finds_a_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["spaces", "Z-Image", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out).items()
    assert found[0] == "flux1" and found[1]["shapes"] == "[16, h, w] or [tokens, 64]"
    assert main(["spaces", "z-imag"]) == 2
    assert "did you mean z-image" in capsys.readouterr().err


@pytest.mark.parametrize("name", MEASURED)
@pytest.mark.parametrize("scale", [0.8, 1.0, 1.2])
def test_a_latent_tells_its_space_in_either_normalisation(name: str, scale: float) -> None:
    space = latent_space(name)
    latent = latent_of(space) * np.float32(scale)
    assert likely_space(latent, ALL) == space
    assert likely_space(space.denormalise(latent), ALL) == space


@pytest.mark.parametrize("name", MEASURED)
def test_a_latent_tells_its_normalisation(name: str) -> None:
    space = latent_space(name)
    latent = latent_of(space)
    assert normalisation_of(latent, space) == "model"
    assert normalisation_of(space.denormalise(latent), space) == "vae"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        as_latent(latent, space)
        as_latent(space.denormalise(latent), space, normalisation="vae")
    with pytest.warns(InfGenWarning, match="ComfyUI's files hold, pass normalisation='vae'"):
        as_latent(space.denormalise(latent) * np.float32(0.5 if name == "sdxl" else 0.8), space)
    with pytest.warns(InfGenWarning, match="pass normalisation='model'"):
        as_latent(latent, space, normalisation="vae")


def test_nothing_is_told_of_what_is_no_picture_or_too_small_or_between_two() -> None:
    sd15, sdxl = latent_space("sd15"), latent_space("sdxl")
    noise = np.random.default_rng(0).normal(size=(4, 64, 64)).astype(np.float32)
    assert likely_space(noise, ALL) is None
    assert likely_space(np.zeros((4, 64, 64), np.float32), ALL) is None
    assert likely_space(latent_of(sd15, 16), ALL) is None
    between = np.concatenate([latent_of(sd15), latent_of(sdxl)], axis=2)
    assert likely_space(between, ALL) is None


@pytest.mark.parametrize(("name", "other"), [("sd15", "sdxl"), ("sdxl", "sd15"), ("sd3", "flux1"), ("flux1", "sd3")])
def test_a_latent_of_the_space_with_as_many_channels_is_warned_of(name: str, other: str) -> None:
    with pytest.warns(InfGenWarning) as caught:
        as_latent(latent_of(latent_space(other)), latent_space(name), normalisation="model")
    assert any(f"but like those of {other} (" in str(each.message) for each in caught)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((32, 8, 8), "flux2"),
        ((1, 32, 8, 8), "flux2"),
        ((2, 128, 4, 4), "flux2"),
        ((16, 128), "flux2"),
        ((2, 16, 128), "flux2"),
        ((1, 24, 64), "flux1"),
        ((24, 64), "flux1"),
    ],
)
def test_a_shape_that_leaves_no_choice_names_its_space(shape: tuple[int, ...], expected: str) -> None:
    assert space_of(np.zeros(shape, np.float32)).name == expected
    assert space_of(np.zeros((4, 8, 8), np.float32), ["sdxl", "flux2"]).name == "sdxl"


@pytest.mark.parametrize("name", MEASURED)
@pytest.mark.parametrize("batch", [False, True])
def test_a_shape_of_two_spaces_is_an_error_that_suggests_the_one_that_the_numbers_tell(name: str, batch: bool) -> None:
    latent = latent_of(latent_space(name), 48)
    both = "sd15 or sdxl" if len(latent) == 4 else "sd3 or flux1"
    text = rf"may be of {both}: its numbers look like {name}'s: say which it is, as space='{name}' \(--space {name}\)"
    with pytest.raises(LatentError, match=text):
        space_of(latent[None] if batch else latent)
    with pytest.raises(LatentError, match=rf"may be of {both}: say which it is"):
        space_of(np.random.default_rng(0).normal(size=latent.shape))


def test_a_shape_of_no_space_is_told_all_shapes() -> None:
    with pytest.raises(
        LatentError, match=r"\[7, 8, 8\] is not a latent's: .*sdxl \[4, h, w\]; .*flux1 \[16, h, w\] or"
    ):
        space_of(np.zeros((7, 8, 8), np.float32))
    with pytest.raises(LatentError, match=r"expected, with or without a batch axis, flux2 \[32, h, w\]"):
        space_of(np.zeros((4, 8, 8), np.float32), ["flux2"])


@pytest.mark.parametrize(
    ("name", "shape", "text"),
    [
        ("sd15", (16, 8, 8), "expected .4, h, w., with .* 16 channels are those of sd3 or flux1"),
        ("sd3", (64, 8, 8), "expected .16, h, w., with"),
        ("sd3", (1, 24, 64), "expected .16, h, w., with"),
        ("flux1", (64, 8, 8), "expected .16, h, w. or .tokens, 64., with"),
    ],
)
def test_only_layouts_that_programs_return_are_taken(name: str, shape: tuple[int, ...], text: str) -> None:
    with pytest.raises(LatentError, match=text):
        as_latents(np.zeros(shape, np.float32), latent_space(name))


def test_a_plain_latent_of_flux1_that_is_as_wide_as_a_token_is_one_picture() -> None:
    """512 pixels, which most people try first: [16, 64, 64] could also be 16 packed pictures."""
    space = latent_space("flux1")
    for seed in range(4):
        latent = latent_of(space, 64, seed)
        assert np.array_equal(as_latent(latent, space, normalisation="model"), latent)


@pytest.mark.filterwarnings("ignore::infgen_rt.InfGenWarning")
def test_what_comfyuis_files_hold_depends_on_the_space(tmp_path: Path) -> None:
    mark = {"latent_format_version_0": np.zeros(0, np.float32)}
    patchified = np.random.default_rng(0).normal(size=(2, 128, 4, 6)).astype(np.float32)
    save_file({"latent_tensor": patchified, **mark}, tmp_path / "flux2.latent")
    normalised = as_latents(patchified, latent_space("flux2"), normalisation="model")
    assert np.array_equal(load_latents(tmp_path / "flux2.latent"), normalised)

    sdxl = latent_space("sdxl")
    latent = latent_of(sdxl)
    save_file({"latent_tensor": sdxl.denormalise(latent)[None], **mark}, tmp_path / "sdxl.latent")
    assert np.allclose(load_latents(tmp_path / "sdxl.latent", space="sdxl")[0], latent, atol=1e-5)
    said = load_latents(tmp_path / "sdxl.latent", space="sdxl", normalisation="vae")
    assert np.allclose(said[0], latent, atol=1e-5)
    # Without ComfyUI's mark, a file does not say, and the model's normalisation is taken.
    save_file({"latent_tensor": latent[None]}, tmp_path / "other.latent")
    assert np.array_equal(load_latents(tmp_path / "other.latent", space="sdxl")[0], latent)


def test_info_takes_a_models_name_and_knows_comfyuis_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    space = latent_space("sd3")
    content = {"latent_tensor": space.denormalise(latent_of(space))[None], "latent_format_version_0": np.zeros(0)}
    save_file({name: value.astype(np.float32) for name, value in content.items()}, tmp_path / "a.latent")
    assert main(["info", str(tmp_path / "a.latent"), "--space", "sd3.5", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["latent_space"] == "sd3" and facts["likely_normalisation"] == "vae"
