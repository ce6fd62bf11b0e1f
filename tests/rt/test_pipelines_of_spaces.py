"""The numbers that the pipelines of the other spaces return: what is made of them is what their VAE would be given.

The pipelines are diffusers' own, with tiny random networks. Their VAEs have the factors of the real ones' configs.
"""

import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from infgen_rt.latent.arrays import as_latents, load_latents
from infgen_rt.latent.spaces import latent_space

from .pipelines import without_transformers

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
pytest.importorskip("diffusers.loaders")
pytestmark = pytest.mark.filterwarnings("ignore::infgen_rt.InfGenWarning")

WIDTH, HEIGHT = 96, 64
# Embedded prompts for two pictures.
TOKENS, POOLED = torch.zeros(2, 3, 16), torch.zeros(2, 16)
TINY = {"num_attention_heads": 2, "attention_head_dim": 16, "joint_attention_dim": 16, "num_layers": 1}


def vae(channels: int, scaling: float, shift: float | None = None) -> Any:
    """A VAE whose widths are tiny, with 8 pixels a cell and the factors of a real config."""
    torch.manual_seed(0)
    return diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        mid_block_add_attention=False,
        latent_channels=channels,
        scaling_factor=scaling,
        shift_factor=shift,
    ).eval()


def unet(**options: Any) -> Any:
    torch.manual_seed(1)
    return diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=16,
        attention_head_dim=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        **options,
    ).eval()


GUIDED = {
    "prompt_embeds": TOKENS,
    "negative_prompt_embeds": TOKENS,
    "pooled_prompt_embeds": POOLED,
    "negative_pooled_prompt_embeds": POOLED,
}
"""Embeddings of a prompt and of a negative one."""


def sd15(pipeline: Any) -> tuple[Any, dict[str, Any]]:
    # The scaling factor of stable-diffusion-v1-5 and stable-diffusion-2-1.
    scheduler = diffusers.DDIMScheduler(clip_sample=False, steps_offset=1)
    pipe = pipeline(vae(4, 0.18215), None, None, unet(), scheduler, None, None, None, False)
    return pipe, {"prompt_embeds": TOKENS, "negative_prompt_embeds": TOKENS}


def sdxl(pipeline: Any) -> tuple[Any, dict[str, Any]]:
    scheduler = diffusers.DDIMScheduler(clip_sample=False, steps_offset=1)
    added = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8}
    network = unet(**added, projection_class_embeddings_input_dim=6 * 8 + 16)
    pipe = pipeline(vae(4, 0.13025), None, None, None, None, network, scheduler)
    return pipe, GUIDED


def sd3(pipeline: Any) -> tuple[Any, dict[str, Any]]:
    torch.manual_seed(1)
    network = diffusers.SD3Transformer2DModel(
        **TINY, sample_size=16, caption_projection_dim=32, pooled_projection_dim=16, pos_embed_max_size=16
    ).eval()
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    pipe = pipeline(network, scheduler, vae(16, 1.5305, 0.0609), None, None, None, None, None, None)
    return pipe, GUIDED


def flux1(pipeline: Any) -> tuple[Any, dict[str, Any]]:
    torch.manual_seed(1)
    network = diffusers.FluxTransformer2DModel(
        **TINY, num_single_layers=1, pooled_projection_dim=16, axes_dims_rope=(4, 4, 8)
    ).eval()
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    pipe = pipeline(scheduler, vae(16, 0.3611, 0.1159), None, None, None, None, network)
    return pipe, {"prompt_embeds": TOKENS, "pooled_prompt_embeds": POOLED}


# Module, class and what makes it, of each space's own pipeline.
PIPELINES: dict[str, tuple[str, str, Callable[[Any], tuple[Any, dict[str, Any]]]]] = {
    "sd15": ("stable_diffusion.pipeline_stable_diffusion", "StableDiffusionPipeline", sd15),
    "sdxl": ("stable_diffusion_xl.pipeline_stable_diffusion_xl", "StableDiffusionXLPipeline", sdxl),
    "sd3": ("stable_diffusion_3.pipeline_stable_diffusion_3", "StableDiffusion3Pipeline", sd3),
    "flux1": ("flux.pipeline_flux", "FluxPipeline", flux1),
}


class Run:
    """What a pipeline returned for two pictures, and what it gave to its VAE for the same two."""

    def __init__(self, name: str) -> None:
        module, kind, make = PIPELINES[name]
        self.space = latent_space(name)
        self.pipeline, prompts = make(getattr(importlib.import_module(f"diffusers.pipelines.{module}"), kind))
        self.pipeline.set_progress_bar_config(disable=True)
        self._prompts = prompts
        self.returned = self._run("latent")
        given: list[Any] = []
        decode = self.pipeline.vae.decode
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(self.pipeline.vae, "decode", lambda *a, **k: given.append(a[0]) or decode(*a, **k))
            self._run("pt")
        (self.given,) = given

    def _run(self, output_type: str) -> Any:
        return self.pipeline(
            **self._prompts,
            width=WIDTH,
            height=HEIGHT,
            num_inference_steps=2,
            generator=torch.Generator().manual_seed(2),
            output_type=output_type,
            return_dict=False,
        )[0]


@pytest.fixture(scope="module", params=PIPELINES)
def run(request: pytest.FixtureRequest) -> Iterator[Run]:
    with without_transformers():
        yield Run(request.param)


def test_a_returned_latent_becomes_what_the_pipelines_own_vae_is_given(run: Run) -> None:
    packed = run.space.name == "flux1"
    shape = (2, 24, 64) if packed else (2, run.space.channels, HEIGHT // 8, WIDTH // 8)
    assert tuple(run.returned.shape) == shape
    latents = as_latents(run.returned, run.space, latent_size=(WIDTH, HEIGHT) if packed else None)
    raw = np.stack([run.space.denormalise(latent) for latent in latents])
    assert raw.shape == tuple(run.given.shape)
    assert np.allclose(raw, run.given.numpy(), rtol=1e-5, atol=1e-5)


def test_what_the_vae_is_given_becomes_the_same_latent(run: Run) -> None:
    packed = run.space.name == "flux1"
    latents = as_latents(run.returned, run.space, latent_size=(WIDTH, HEIGHT) if packed else None)
    assert np.allclose(as_latents(run.given, run.space, normalisation="vae"), latents, rtol=1e-5, atol=1e-5)


def test_comfyuis_file_of_it_becomes_the_same_latent(run: Run, tmp_path: Path) -> None:
    """ComfyUI's latents between two nodes, and those that SaveLatent writes, are what the VAE is given."""
    content = {"latent_tensor": run.given.numpy(), "latent_format_version_0": np.zeros(0, np.float32)}
    save_file(content, tmp_path / "ComfyUI_00001_.latent")
    loaded = load_latents(tmp_path / "ComfyUI_00001_.latent", space=run.space.name)
    assert np.allclose(loaded, as_latents(run.given, run.space, normalisation="vae"))
