"""The VAE for diffusers in diffusers' own pipelines, with tiny random networks and the tiny model."""

import copy
import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import infgen_rt
from infgen_rt.errors import BackendError, BundleError, DecodeError, InputError, LatentError, PlanError
from infgen_rt.latent.spaces import latent_space

from ..rt import test_several, tiny
from ..rt.pipelines import HEIGHT, PIPELINES, WIDTH, diffusers, generated, made, torch, without_transformers

InfGenVAE = pytest.importorskip("infgen_rt.diffusers").InfGenVAE
pytestmark = pytest.mark.filterwarnings("ignore::infgen_rt.InfGenWarning")
# Nothing is measured if the backend is named.
RUNS = {"backend": "onnxruntime", "threads": 1}

parts, several = test_several.parts, test_several.bundle


@pytest.fixture(scope="module")
def bundles(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Bundles with models of every space: one of three spaces, and one each of the others."""
    found = dict.fromkeys(test_several.SPACES, bundle)
    for space in ("sd3", "flux1"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tiny, "CHANNELS", 16)
            found[space] = tiny.write_bundle(tmp_path_factory.mktemp(space))
        tiny.edit_manifest(found[space], latent_space=space)
    return found


# The name by which fixtures of the other module ask for it.
bundle = several


@pytest.fixture(scope="module")
def transformers() -> Iterator[None]:
    with without_transformers():
        yield


@pytest.fixture
def vae(bundles: dict[str, Path]) -> Iterator[Any]:
    vae = InfGenVAE(bundles["flux2"], scale=2, **RUNS)
    yield vae
    vae.close()


def raw_latents(count: int = 2, channels: int = 32, height: int = 6, width: int = 8) -> Any:
    return torch.randn(count, channels, height, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", PIPELINES)
def test_a_pipelines_picture_is_that_of_its_latent(name: str, bundles: dict[str, Path], transformers: None) -> None:
    pipe, prompts = made(name)
    pipe.vae = InfGenVAE.replacing(pipe.vae, bundles[name], scale=2, **RUNS)
    assert pipe.vae.config.space == name
    packed = {"latent_size": (WIDTH, HEIGHT)} if name == "flux1" else {}
    with infgen_rt.open(bundles[name], space=name, **RUNS) as decoder:
        # FLUX.2 klein's pipeline undoes the batch norm, and the others return what the transformer gave.
        normalisation = "vae" if name == "flux2" else "model"
        returned = generated(pipe, prompts, "latent")
        pictures = decoder.pictures(returned, "2x", normalisation=normalisation, **packed)
        direct = np.stack([picture.read() for picture in pictures])
    found = generated(pipe, prompts, "np")
    assert found.shape == direct.shape == (2, 2 * HEIGHT, 2 * WIDTH, 3)
    assert np.abs(np.round(255 * found) - direct).max() <= 1 and direct.std() > 5
    pipe.vae.close()


def test_pillow_and_torch_pictures_are_as_large_as_was_asked(vae: Any, transformers: None) -> None:
    pipe, prompts = made("flux2")
    pipe.vae = vae
    pillow, tensor = generated(pipe, prompts, "pil"), generated(pipe, prompts, "pt")
    assert [image.size for image in pillow] == [(2 * WIDTH, 2 * HEIGHT)] * 2
    assert tensor.shape == (2, 3, 2 * HEIGHT, 2 * WIDTH) and 0 <= tensor.min() <= tensor.max() <= 1
    assert np.abs(np.asarray(pillow[1], np.float32) - 255 * tensor[1].permute(1, 2, 0).numpy()).max() <= 0.51


def test_a_picture_guides_a_pipeline_through_the_bundles_encoder(vae: Any, transformers: None) -> None:
    pipe, prompts = made("flux2")
    pipe.vae = vae
    pixels = torch.rand(1, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(3))
    guided = generated(pipe, prompts, "np", image=pipe.image_processor.postprocess(2 * pixels - 1))
    assert (
        guided.shape == (2, 2 * HEIGHT, 2 * WIDTH, 3) and np.abs(guided - generated(pipe, prompts, "np")).max() > 1e-3
    )


def test_the_own_encoder_of_a_pipeline_can_be_kept(bundles: dict[str, Path], transformers: None) -> None:
    pipe, prompts = made("flux2")
    own = pipe.vae
    pipe.vae = InfGenVAE.replacing(own, bundles["flux2"], scale=2, **RUNS)
    pixels = torch.rand(1, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(3))
    image = pipe.image_processor.postprocess(2 * pixels - 1)
    bundled = generated(pipe, prompts, "latent", image=image)
    pipe.vae.encode = own.encode
    kept = generated(pipe, prompts, "latent", image=image)
    pipe.vae.close()
    pipe.vae = own
    assert torch.allclose(kept, generated(pipe, prompts, "latent", image=image), atol=1e-3)
    assert not torch.allclose(kept, bundled, atol=1e-2)


@pytest.mark.parametrize("offload", ["enable_model_cpu_offload", "enable_sequential_cpu_offload"])
def test_offloading_and_moving_change_no_pixel(vae: Any, transformers: None, offload: str) -> None:
    pytest.importorskip("accelerate")
    pipe, prompts = made("flux2")
    pipe.vae = vae
    before = generated(pipe.to("cpu", torch.float32), prompts, "np")
    # On a processor, accelerate's sequential offload fails with any weights. Here it is only about the VAE.
    pipe._exclude_from_cpu_offload = ["transformer"]
    getattr(pipe, offload)(device="cpu")
    assert hasattr(pipe.vae, "_hf_hook")
    assert np.array_equal(generated(pipe, prompts, "np"), before)
    # Again, after what was moved back and forth.
    assert np.array_equal(generated(pipe, prompts, "np"), before)


def test_a_saved_pipeline_is_loaded_with_the_same_vae(vae: Any, transformers: None, tmp_path: Path) -> None:
    pipe, _ = made("flux2")
    pipe.vae = vae
    pipe.save_pretrained(tmp_path)
    assert [file.name for file in (tmp_path / "vae").iterdir()] == ["config.json"]
    loaded = type(pipe).from_pretrained(tmp_path, tokenizer=None, text_encoder=None)
    assert isinstance(loaded.vae, InfGenVAE) and loaded.vae.config.scale == 2
    assert torch.equal(loaded.vae.decode(raw_latents()).sample, vae.decode(raw_latents()).sample)
    loaded.vae.close()


def test_a_saved_vae_is_loaded_with_other_options_and_in_a_type(vae: Any, tmp_path: Path) -> None:
    vae.save_pretrained(tmp_path)
    loaded = InfGenVAE.from_pretrained(tmp_path, scale=3, torch_dtype=torch.bfloat16)
    assert loaded.dtype == torch.bfloat16 and loaded.config.space == "flux2"
    assert loaded.decode(raw_latents()).sample.shape == (2, 3, 144, 192)
    loaded.close()
    (tmp_path / "config.json").write_text('{"_class_name": "AutoencoderKL", "latent_channels": 4}')
    with pytest.raises(InputError, match="config of AutoencoderKL, expected InfGenVAE"):
        InfGenVAE.from_pretrained(tmp_path)


def test_numbers_of_numpy_and_pytorch_are_saved(bundles: dict[str, Path], tmp_path: Path) -> None:
    options = {"size": (np.int64(64), torch.tensor(48)), "threads": np.int32(1), "tile": np.int64(64)}
    InfGenVAE(bundles["flux2"], **RUNS | {"scale": None} | options).save_pretrained(tmp_path)
    loaded = InfGenVAE.from_pretrained(tmp_path)
    assert [loaded.config[name] for name in options] == [[64, 48], 1, 64]


@pytest.mark.parametrize("other", [{"size": "320x"}, {"scale": 1.0}])
def test_another_size_replaces_the_saved_one(vae: Any, bundles: dict[str, Path], tmp_path: Path, other: Any) -> None:
    with_size = InfGenVAE(bundles["flux2"], **RUNS | {"scale": None, "size": (64, 48)})
    for number, saved in enumerate((vae, with_size)):
        saved.save_pretrained(tmp_path / str(number))
        loaded = InfGenVAE.from_pretrained(tmp_path / str(number), **other)
        assert {name: loaded.config[name] for name in ("size", "scale")} == {"size": None, "scale": None} | other


def test_copies_share_the_model_and_pickles_open_their_own(vae: Any) -> None:
    latents = raw_latents()
    copied, pickled = copy.deepcopy(vae), pickle.loads(pickle.dumps(vae))
    assert copied.decoder is vae.decoder is not pickled.decoder
    for each in (copied, pickled):
        assert torch.equal(each.decode(latents).sample, vae.decode(latents).sample)
    pickled.close()


def test_closing_an_unused_copy_opens_nothing(vae: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pickled = pickle.loads(pickle.dumps(vae))
    monkeypatch.setattr("infgen_rt.diffusers.opened.open", lambda **_: pytest.fail("opened"))
    pickled.close()
    with pytest.raises(DecodeError, match="the decoder is closed"):
        pickled.decode(raw_latents())


def test_pictures_have_the_type_of_the_latents_and_range_from_minus_one_to_one(vae: Any) -> None:
    latents = raw_latents()
    with infgen_rt.open(vae.config.path, **RUNS) as decoder:
        direct = [each.read(dtype=np.float32) for each in decoder.pictures(latents, 2.0, normalisation="vae")]
    expected = torch.from_numpy(np.stack(direct)).permute(0, 3, 1, 2) * 2 - 1
    assert torch.equal(vae.decode(latents).sample, expected) and expected.min() < 0 < expected.max()
    (same,) = vae.decode(latents, return_dict=False, generator=None, num_frames=1)
    assert torch.equal(same, expected)
    half = vae.decode(latents.half()).sample
    assert half.dtype == torch.float16 and (half - expected).abs().max() < 0.01


def test_a_picture_of_several_tiles_and_a_fixed_size_is_decoded_whole(bundles: dict[str, Path]) -> None:
    vae = InfGenVAE(bundles["flux2"], size=(200, 150), tile=64, memory="64MiB", **RUNS)
    with infgen_rt.open(bundles["flux2"], **RUNS) as decoder:
        whole = decoder.picture(raw_latents(1), (200, 150), normalisation="vae").read(dtype=np.float32)
    found = vae.decode(raw_latents(1)).sample[0].permute(1, 2, 0).numpy() / 2 + 0.5
    assert np.abs(found - whole).max() < 1e-4
    vae.close()


def test_a_pictures_latent_is_that_of_the_bundles_encoder(vae: Any) -> None:
    pixels = torch.rand(2, 3, 48, 64, generator=torch.Generator().manual_seed(4))
    distribution = vae.encode(2 * pixels - 1).latent_dist
    latents = distribution.mode()
    assert latents.shape == (2, 32, 6, 8) and torch.equal(distribution.sample(), latents)
    space = latent_space("flux2")
    for pictured, latent in zip(pixels, latents, strict=True):
        direct = space.denormalise(vae.decoder.encode(pictured.permute(1, 2, 0).numpy()))
        assert np.allclose(direct, latent.numpy(), atol=1e-4)
    assert vae(2 * pixels - 1).sample.shape == (2, 3, 96, 128)


def test_a_bundle_without_an_encoder_says_so(tmp_path: Path) -> None:
    tiny.write_bundle(tmp_path)
    (recipe,) = tiny.json.loads((tmp_path / "manifest.json").read_text())["recipes"]
    recipe["graphs"].pop("encode")
    tiny.edit_manifest(tmp_path, recipes=[recipe])
    vae = InfGenVAE(tmp_path, **RUNS)
    with pytest.raises(PlanError, match="for flux2 latents has no encode graph"):
        vae.encode(torch.zeros(1, 3, 16, 16))
    vae.close()


def test_what_pipelines_switch_on_is_harmless(vae: Any) -> None:
    before = vae.decode(raw_latents()).sample
    vae.enable_tiling()
    vae.enable_slicing()
    assert vae.use_tiling and vae.use_slicing and torch.equal(vae.decode(raw_latents()).sample, before)
    vae.disable_tiling()
    vae.disable_slicing()
    assert not vae.use_tiling and not vae.use_slicing


def test_a_compiled_decode_is_the_same(vae: Any) -> None:
    compiled = torch.compile(vae.decode, backend="eager")
    assert torch.equal(compiled(raw_latents()).sample, vae.decode(raw_latents()).sample)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"scale": 0}, PlanError, "size factor 0"),
        ({"scale": 2, "size": "4k"}, PlanError, "scale and size exclude each other"),
        ({"size": "huge"}, PlanError, "size 'huge' is not understood"),
        ({"scale": 4, "stages": (2, 3)}, PlanError, "multiply to 6"),
        ({"max_scale": 1}, PlanError, "max_scale 1 is not usable"),
        ({"scale": None, "size": "4x", "stages": (2, 3)}, PlanError, "multiply to 6"),
        ({"tile": 7}, PlanError, "tile of 7 pixels is not possible"),
        ({"tile": 7, "scale": None, "size": (640, 480)}, PlanError, "tile of 7 pixels is not possible"),
        ({"memory": "1MiB"}, PlanError, "memory"),
        ({"memory": "much"}, PlanError, "much"),
        ({"backend": "nonsense"}, BackendError, "nonsense"),
        ({"space": "sd3"}, BundleError, "no model for sd3 latents"),
        ({"space": "nonsense"}, LatentError, "nonsense"),
    ],
)
def test_a_wrong_option_is_refused_before_a_pipeline_runs(
    bundles: dict[str, Path], options: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        InfGenVAE(bundles["flux2"], **RUNS | options)


@pytest.mark.parametrize(
    ("latents", "text"),
    [
        (raw_latents(channels=4), "open the model with space='sd15'"),
        (raw_latents(channels=16), "16 channels are those of sd3 or flux1"),
        (raw_latents()[0], r"latents are shape \[32, 6, 8\]: expected a torch tensor \[N, 32, h, w\]"),
        (raw_latents().numpy(), "latents are ndarray: expected a torch tensor"),
        (raw_latents().to(torch.complex64), "complex64"),
        (raw_latents().long(), "int64"),
        (raw_latents() / 0, "NaN or infinite"),
        (raw_latents().requires_grad_(), "require a gradient"),
    ],
)
def test_what_is_no_latent_is_refused(vae: Any, latents: Any, text: str) -> None:
    with pytest.raises(LatentError, match=text):
        vae.decode(latents)


@pytest.mark.parametrize(
    ("pixels", "error", "text"),
    [
        (torch.zeros(1, 4, 16, 16), InputError, r"pixels are torch.float32 of the shape \[1, 4, 16, 16\]: expected"),
        (torch.zeros(1, 3, 16, 16, dtype=torch.uint8), InputError, r"pixels are torch.uint8 of the shape"),
        (255 * torch.rand(1, 3, 16, 16), InputError, r"pixels are from .* to .*: expected .* in \[-1, 1\]"),
        (torch.zeros(1, 3, 16, 20), PlanError, "picture of 20x16 is not whole cells"),
        (torch.full((1, 3, 16, 16), torch.nan), InputError, "NaN"),
        (torch.zeros(3, 16, 16), LatentError, "expected a torch tensor"),
    ],
)
def test_what_is_no_picture_is_refused(vae: Any, pixels: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        vae.encode(pixels)


def test_a_closed_model_is_refused(bundles: dict[str, Path]) -> None:
    vae = InfGenVAE(bundles["flux2"], **RUNS)
    vae.close()
    with pytest.raises(DecodeError, match="the decoder is closed"):
        vae.decode(raw_latents())


def test_a_vae_of_no_known_space_is_refused() -> None:
    config = SimpleNamespace(latent_channels=4, scaling_factor=0.5, shift_factor=None)
    with pytest.raises(LatentError, match="no known space .4 channels, scaling_factor 0.5"):
        InfGenVAE.replacing(SimpleNamespace(config=config))


@pytest.mark.parametrize("wrong", [None, "stabilityai/sdxl-vae", {"latent_channels": 4}])
def test_what_is_no_vae_is_named(wrong: Any) -> None:
    from infgen_rt.diffusers import space_of_vae

    for call in (space_of_vae, InfGenVAE.replacing, lambda vae: InfGenVAE.replacing(vae, space="sdxl")):
        with pytest.raises(TypeError, match=r"^vae is .*: expected a VAE of diffusers, such as pipe\.vae$"):
            call(wrong)


@pytest.mark.filterwarnings("error::infgen_rt.InfGenWarning")
@pytest.mark.parametrize("options", [{}, {"scale": 2}, {"scale": 0.6}, {"size": "4k"}, {"scale": 12}], ids=str)
@pytest.mark.parametrize("space", ["sd15", "sdxl", "sd3", "flux1", "flux2"])
def test_nothing_is_warned_of_before_there_is_a_latent(
    bundles: dict[str, Path], space: str, options: dict[str, Any]
) -> None:
    InfGenVAE(bundles[space], space=space, **options, **RUNS).close()


@pytest.mark.parametrize("largest", ["inf", float("inf")])
def test_one_stage_is_saved_as_json_that_every_program_reads(
    bundles: dict[str, Path], tmp_path: Path, largest: Any
) -> None:
    vae = InfGenVAE(bundles["flux2"], scale=6, max_scale=largest, **RUNS)
    vae.save_pretrained(tmp_path)
    vae.close()

    def refuse(text: str) -> None:
        raise AssertionError(f"{text} is no JSON")

    json.loads((tmp_path / "config.json").read_text(), parse_constant=refuse)
    vae = InfGenVAE.from_pretrained(tmp_path)
    assert vae._picture["max_scale"] == float("inf")
    vae.close()


def test_an_option_that_is_set_later_is_refused(vae: Any) -> None:
    for name, value in (("scale", 4), ("size", "4k"), ("memory", "1GiB")):
        with pytest.raises(AttributeError, match=f"^{name} cannot be changed: make another InfGenVAE with {name}="):
            setattr(vae, name, value)
    vae.use_tiling = True
    assert vae.decode(raw_latents(1)).sample.shape[-2:] == (96, 128)


def test_a_space_that_the_config_does_not_show_is_given_and_an_offloaded_vae_is_replaced(
    bundles: dict[str, Path],
) -> None:
    unknown = SimpleNamespace(scaling_factor=None, latent_channels=None)
    own = SimpleNamespace(config=unknown, device=torch.device("meta"), dtype=torch.float16)
    vae = InfGenVAE.replacing(own, bundles["flux2"], space="flux2", **RUNS)
    assert vae.dtype == torch.float16 and vae.device.type == "cpu"
    assert vae.bn is not None and vae.bn.running_mean is not None and vae.bn.running_mean.isfinite().all()


def test_the_module_is_found_without_being_imported_and_is_no_stand_in_for_the_library() -> None:
    assert infgen_rt.diffusers.InfGenVAE is InfGenVAE
    assert infgen_rt.diffusers is not diffusers and issubclass(InfGenVAE, diffusers.ModelMixin)
