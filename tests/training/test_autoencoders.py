"""Autoencoders are read from weights without a Python file, and do what their own code does."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from infgen_rt.errors import InputError
from infgen_training.autoencoders import read_weights
from infgen_training.teacher import Teacher

from .test_warmstart import Block
from .test_warmstart import decoder as tiny_decoder

diffusers = pytest.importorskip("diffusers")

IMAGE = torch.rand(1, 3, 32, 48, generator=torch.Generator().manual_seed(1))
SMALL: dict[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (4, 4, 4, 4),
    "norm_num_groups": 2,
    "layers_per_block": 1,
    "mid_block_add_attention": False,
}


def encoder(width: int = 8) -> nn.Sequential:
    """TAESD's encoder, as its authors write it."""
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1), Block(width, False)]
    for level in range(3):
        layers += [nn.Conv2d(width, width, 3, stride=2, padding=1, bias=False), Block(width, level == 2)]
    return nn.Sequential(*layers, nn.Conv2d(width, 32, 3, padding=1))


@pytest.mark.parametrize("ending", [".safetensors", ".pth"])
@pytest.mark.parametrize("named", ["encoder", "decoder"])
def test_a_pair_of_weights_is_an_autoencoder(tmp_path: Path, ending: str, named: str) -> None:
    pair = {"encoder": encoder(), "decoder": tiny_decoder()}
    for name, network in pair.items():
        file = tmp_path / f"taex_{name}{ending}"
        if ending == ".pth":
            torch.save(network.state_dict(), file)
        else:
            save_file(network.state_dict(), file)
    teacher = Teacher.load(tmp_path / f"taex_{named}{ending}")
    latent = teacher.encode(IMAGE)
    assert teacher.channels == 32 and latent.shape == (1, 32, 4, 6)
    with torch.inference_mode():
        assert torch.allclose(latent, pair["encoder"](IMAGE), atol=1e-5)
        assert torch.allclose(teacher.decode(latent), pair["decoder"](latent).clamp(0, 1), atol=1e-5)
    assert not any(value.requires_grad for value in teacher.decoder.parameters())


@pytest.mark.parametrize("whole", [True, False], ids=["folder", "file"])
def test_a_tiny_autoencoder_of_diffusers(tmp_path: Path, whole: bool) -> None:
    widths = (8, 8, 8, 8)
    vae = diffusers.AutoencoderTiny(
        encoder_block_out_channels=widths, decoder_block_out_channels=widths, latent_channels=16
    ).eval()
    vae.save_pretrained(tmp_path)
    teacher = Teacher.load(tmp_path if whole else tmp_path / "diffusion_pytorch_model.safetensors")
    with torch.inference_mode():
        latent = vae.encode(2 * IMAGE - 1).latents
        assert torch.allclose(teacher.encode(IMAGE), latent, atol=1e-5)
        assert torch.allclose(teacher.decode(latent), (vae.decode(latent).sample / 2 + 0.5).clamp(0, 1), atol=1e-5)


@pytest.mark.parametrize(
    "scaling",
    [
        {"scaling_factor": 0.18215},
        {"scaling_factor": 0.36, "shift_factor": 0.12},
        {"scaling_factor": 0.5, "latents_mean": [-1.0, 2.0, 0.5, 0.0], "latents_std": [1.0, 2.0, 3.0, 4.0]},
    ],
    ids=["sd", "flux", "means"],
)
def test_a_full_autoencoder_of_diffusers_gives_latents_as_its_pipelines_do(
    tmp_path: Path, scaling: dict[str, Any]
) -> None:
    vae = diffusers.AutoencoderKL(**SMALL, latent_channels=4, **scaling).eval()
    vae.save_pretrained(tmp_path)
    teacher = Teacher.load(tmp_path)
    mean, std = (
        torch.tensor(scaling.get(name, [other])).reshape(1, -1, 1, 1)
        for name, other in (("latents_mean", scaling.get("shift_factor", 0.0)), ("latents_std", 1.0))
    )
    with torch.inference_mode():
        raw = vae.encode(2 * IMAGE - 1).latent_dist.mode()
        latent = (raw - mean) / std * scaling["scaling_factor"]
        assert torch.allclose(teacher.encode(IMAGE), latent, atol=1e-5)
        assert torch.allclose(teacher.decode(latent), (vae.decode(raw).sample / 2 + 0.5).clamp(0, 1), atol=1e-5)


def test_flux2s_autoencoder_normalises_patches_of_two_cells(tmp_path: Path) -> None:
    vae = diffusers.AutoencoderKLFlux2(**SMALL, latent_channels=2).eval()
    vae.bn.running_mean.normal_()
    vae.bn.running_var.uniform_(0.5, 2.0)
    vae.save_pretrained(tmp_path)
    teacher = Teacher.load(tmp_path)
    with torch.inference_mode():
        raw = vae.encode(2 * IMAGE - 1).latent_dist.mode()
        # As its pipelines do: 2x2 cells become channels, which are normalised and become cells again.
        split = raw.view(1, 2, 2, 2, 3, 2).permute(0, 1, 3, 5, 2, 4)
        patches: Tensor = vae.bn(split.reshape(1, 8, 2, 3))
        latent = patches.view(split.shape).permute(0, 1, 4, 2, 5, 3).reshape(raw.shape)
        assert torch.allclose(teacher.encode(IMAGE), latent, atol=1e-4)
        assert torch.allclose(teacher.decode(latent), (vae.decode(raw).sample / 2 + 0.5).clamp(0, 1), atol=1e-4)
        assert teacher.encode(IMAGE[..., :24, :24]).shape == (1, 2, 3, 3)


def test_pickled_code_is_not_run(tmp_path: Path) -> None:
    class Harmful:
        def __reduce__(self) -> Any:
            return (Path(tmp_path / "touched").touch, ())

    torch.save({"0.weight": Harmful()}, tmp_path / "x_encoder.pth")
    with pytest.raises(InputError, match=r"x_encoder.pth cannot be read as weights"):
        read_weights(tmp_path / "x_encoder.pth")
    assert not (tmp_path / "touched").exists()


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    weights = tmp_path / "vae.safetensors"
    save_file({"0.weight": torch.zeros(8, 3, 3, 3)}, weights)

    def refused(path: Path, text: str) -> None:
        with pytest.raises(InputError) as caught:
            Teacher.load(path)
        assert text in str(caught.value) and "\n" not in str(caught.value)

    refused(tmp_path, "pass the folder of the autoencoder itself, which a pipeline of diffusers has as vae/")
    refused(weights, "its name does not say whether it is the encoder or the decoder")
    one = weights.rename(tmp_path / "x_encoder.safetensors")
    save_file({"other.weight": torch.zeros(2)}, tmp_path / "x_decoder.safetensors")
    refused(one, "x_encoder.safetensors has 2 pixels per cell: this training needs 8")
    for ending in ("pt", "ckpt", "bin"):
        for part in ("encoder", "decoder"):
            (tmp_path / f"y_{part}.{ending}").write_bytes(b"pickled")
        refused(tmp_path / f"y_encoder.{ending}", "expected .py, .safetensors or .pth")
    (tmp_path / "x_decoder.safetensors").unlink()
    refused(one, "x_encoder.safetensors has no decoder: expected x_decoder.safetensors beside it")
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "UNet2DModel"}))
    refused(tmp_path, "config.json is of a UNet2DModel: expected one of AutoencoderKL, AutoencoderKLFlux2")
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "AutoencoderKL"}))
    refused(one, "does not hold the AutoencoderKL that its config.json describes")
    (tmp_path / "config.json").write_text("{")
    refused(tmp_path, "config.json is not a config of diffusers")
