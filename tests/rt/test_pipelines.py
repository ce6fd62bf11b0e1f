"""What the pipelines that the documentation names return: run for real, with tiny random networks."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from infgen_rt.errors import InfGenWarning
from infgen_rt.latent.arrays import as_latents
from infgen_rt.latent.spaces import latent_space

from .pipelines import HEIGHT, WIDTH, diffusers, flux2_transformer, flux2_vae, torch, without_transformers

FLUX2 = latent_space("flux2")
# Module, class, and whether the batch norm is undone in what it returns.
PIPELINES = {
    "Flux2Pipeline": ("pipeline_flux2", False),
    "Flux2KleinPipeline": ("pipeline_flux2_klein", True),
    "Flux2KleinKVPipeline": ("pipeline_flux2_klein_kv", True),
}


@pytest.fixture(scope="module")
def transformers() -> Iterator[None]:
    with without_transformers():
        yield


@pytest.fixture(scope="module", params=PIPELINES)
def pipeline(request: pytest.FixtureRequest, transformers: None) -> Any:
    import importlib

    module, _ = PIPELINES[request.param]
    kind = getattr(importlib.import_module(f"diffusers.pipelines.flux2.{module}"), request.param)
    pipe = kind(diffusers.FlowMatchEulerDiscreteScheduler(), flux2_vae(), None, None, flux2_transformer())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def run(pipeline: Any, output_type: str, count: int = 1) -> Any:
    return pipeline(
        prompt_embeds=torch.zeros(1, 4, 16),
        width=WIDTH,
        height=HEIGHT,
        num_inference_steps=2,
        **({"guidance_scale": 1.0} if type(pipeline).__name__ == "Flux2KleinPipeline" else {}),  # needs no other prompt
        num_images_per_prompt=count,
        generator=torch.Generator().manual_seed(2),
        output_type=output_type,
        return_dict=False,
    )[0]


def is_raw(pipeline: Any) -> bool:
    return PIPELINES[type(pipeline).__name__][1]


@pytest.mark.filterwarnings("ignore::infgen_rt.InfGenWarning")
def test_what_a_pipeline_returns_is_decoded_into_the_pipelines_own_picture(pipeline: Any) -> None:
    returned = run(pipeline, "latent", count=2)
    raw = is_raw(pipeline)
    assert tuple(returned.shape) == ((2, 32, HEIGHT // 8, WIDTH // 8) if raw else (2, 24, 128))
    latents = as_latents(
        returned, FLUX2, normalisation="vae" if raw else "model", latent_size=None if raw else (WIDTH, HEIGHT)
    )
    own = torch.from_numpy(np.stack([FLUX2.denormalise(latent) for latent in latents]))
    with torch.no_grad():
        decoded = (pipeline.vae.decode(own).sample / 2 + 0.5).clamp(0, 1)
    assert torch.allclose(decoded, run(pipeline, "pt", count=2), atol=1e-4)


def test_the_other_normalisation_is_warned_of(pipeline: Any) -> None:
    # Numbers of unit variance, as the transformer's are, through the pipeline's own packing and batch norm.
    torch.manual_seed(3)
    patchified = pipeline._patchify_latents(0.7 * torch.randn(1, 32, HEIGHT // 8, WIDTH // 8))
    if not is_raw(pipeline):
        tokens = pipeline._pack_latents(patchified)
        with pytest.warns(InfGenWarning, match="normalised already"):
            as_latents(tokens, FLUX2, normalisation="vae", latent_size=(WIDTH, HEIGHT))
        (latent,) = as_latents(tokens, FLUX2, latent_size=(WIDTH, HEIGHT))
        unpacked = pipeline._unpack_latents_with_ids(tokens, pipeline._prepare_latent_ids(patchified))
        assert np.array_equal(latent, pipeline._unpatchify_latents(unpacked)[0].numpy())
        return
    bn = pipeline.vae.bn
    std = torch.sqrt(bn.running_var + pipeline.vae.config.batch_norm_eps).view(1, -1, 1, 1)
    raw = pipeline._unpatchify_latents(patchified * std + bn.running_mean.view(1, -1, 1, 1))
    with pytest.warns(InfGenWarning, match="Flux2KleinPipeline returns, pass normalisation='vae'"):
        as_latents(raw, FLUX2)
    (latent,) = as_latents(raw, FLUX2, normalisation="vae")
    assert np.abs(latent - pipeline._unpatchify_latents(patchified)[0].numpy()).max() < 1e-5
