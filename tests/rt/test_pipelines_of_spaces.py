"""The numbers that the pipelines of the other spaces return: what is made of them is what their VAE would be given.

The pipelines are diffusers' own, with tiny random networks.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from infgen_rt.latent.arrays import as_latents, load_latents
from infgen_rt.latent.spaces import latent_space

from .pipelines import HEIGHT, PIPELINES, WIDTH, generated, made, without_transformers

pytestmark = pytest.mark.filterwarnings("ignore::infgen_rt.InfGenWarning")


class Run:
    """What a pipeline returned for two pictures, and what it gave to its VAE for the same two."""

    def __init__(self, name: str) -> None:
        self.space = latent_space(name)
        self.pipeline, self._prompts = made(name)
        self.returned = self._run("latent")
        given: list[Any] = []
        decode = self.pipeline.vae.decode
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(self.pipeline.vae, "decode", lambda *a, **k: given.append(a[0]) or decode(*a, **k))
            self._run("pt")
        (self.given,) = given

    def _run(self, output_type: str) -> Any:
        return generated(self.pipeline, self._prompts, output_type)


@pytest.fixture(scope="module", params=[name for name in PIPELINES if name != "flux2"])
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
