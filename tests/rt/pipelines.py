"""The pipelines of diffusers with tiny random networks, imported without transformers.

They only annotate with its text encoders. Their VAEs have the factors of the real ones' configs.
"""

import importlib
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from typing import Any

import pytest

from infgen_rt.latent.spaces import latent_space

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
pytest.importorskip("diffusers.loaders")

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


def flux2_vae() -> Any:
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKLFlux2(
        block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4, mid_block_add_attention=False
    ).eval()
    # The batch norm of FLUX.2's, as the table has it.
    space = latent_space("flux2")
    vae.bn.running_mean.copy_(torch.tensor(space.vae_mean))
    vae.bn.running_var.copy_(torch.tensor(space.vae_std) ** 2 - vae.config.batch_norm_eps)
    return vae


def flux2_transformer() -> Any:
    torch.manual_seed(1)
    return diffusers.Flux2Transformer2DModel(
        in_channels=128,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        timestep_guidance_channels=16,
        axes_dims_rope=(4, 4, 4, 4),
    ).eval()


def flux2(pipeline: Any) -> tuple[Any, dict[str, Any]]:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    pipe = pipeline(scheduler, flux2_vae(), None, None, flux2_transformer())
    # With this scale, no other prompt is needed.
    return pipe, {"prompt_embeds": torch.zeros(2, 4, 16), "guidance_scale": 1.0}


# Module, class and what makes it, of each space's own pipeline.
PIPELINES: dict[str, tuple[str, str, Callable[[Any], tuple[Any, dict[str, Any]]]]] = {
    "sd15": ("stable_diffusion.pipeline_stable_diffusion", "StableDiffusionPipeline", sd15),
    "sdxl": ("stable_diffusion_xl.pipeline_stable_diffusion_xl", "StableDiffusionXLPipeline", sdxl),
    "sd3": ("stable_diffusion_3.pipeline_stable_diffusion_3", "StableDiffusion3Pipeline", sd3),
    "flux1": ("flux.pipeline_flux", "FluxPipeline", flux1),
    "flux2": ("flux2.pipeline_flux2_klein", "Flux2KleinPipeline", flux2),
}


def made(name: str) -> tuple[Any, dict[str, Any]]:
    """The pipeline of a space with tiny random networks, and the prompts of two pictures, inside the stub below."""
    module, kind, make = PIPELINES[name]
    pipe, prompts = make(getattr(importlib.import_module(f"diffusers.pipelines.{module}"), kind))
    pipe.set_progress_bar_config(disable=True)
    return pipe, prompts


# What the pipelines inherit from `diffusers.loaders`, which lacks these without transformers. It only loads weights.
LOADERS = (
    "FluxIPAdapterMixin",
    "Flux2LoraLoaderMixin",
    "FluxLoraLoaderMixin",
    "FromSingleFileMixin",
    "IPAdapterMixin",
    "SD3IPAdapterMixin",
    "SD3LoraLoaderMixin",
    "StableDiffusionLoraLoaderMixin",
    "StableDiffusionXLLoraLoaderMixin",
    "TextualInversionLoaderMixin",
)


class _Stub(types.ModuleType):
    """Stands for transformers. Prompts are given embedded."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


@contextmanager
def without_transformers() -> Iterator[None]:
    """Replace transformers by a stub if it is not installed. The pipelines that were imported meanwhile are removed."""
    import diffusers.loaders

    if "transformers" in sys.modules:
        yield
        return
    stub = _Stub("transformers")
    stub.__spec__ = ModuleSpec("transformers", None)
    before = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "transformers", stub)
        for name in LOADERS:
            patch.setattr(diffusers.loaders, name, type(name, (), {}), raising=False)
        yield
    for name in set(sys.modules) - before:
        if name.startswith("diffusers.pipelines."):
            del sys.modules[name]


def generated(pipeline: Any, prompts: dict[str, Any], output_type: str, **options: Any) -> Any:
    """What a pipeline returns for two steps of denoising, always from the same noise."""
    return pipeline(
        **prompts,
        **options,
        width=WIDTH,
        height=HEIGHT,
        num_inference_steps=2,
        generator=torch.Generator().manual_seed(2),
        output_type=output_type,
        return_dict=False,
    )[0]
