"""The model that the node InfGen Load opens. It plans pictures of ComfyUI's latents."""

from dataclasses import dataclass, field
from math import inf
from threading import Lock
from typing import Any

import infgen_rt
from infgen_rt.errors import LatentError
from infgen_rt.spaces import latent_space, space_of

from .host import Bar, interruptible

AUTO = "auto"
# The latent spaces: ComfyUI's names of its latent formats (comfy/latent_formats.py), with this package's names.
SPACES = {"SD15": "sd15", "SDXL": "sdxl", "SD3": "sd3", "Flux": "flux1", "Flux2": "flux2"}


@dataclass(frozen=True)
class Model:
    """A bundle, and the options to run it with. It is opened for each latent space when the first latent comes.

    Attributes:
        path: the path of the bundle. None for the one that ships with infgen-rt.
        space: this package's name of the latent space. None to infer it from the channels of each latent.
        backend: as for `infgen_rt.open`.
        device: as for `infgen_rt.open`.
        precision: as for `infgen_rt.open`.
        memory: as for `infgen_rt.open`.
    """

    path: str | None = None
    space: str | None = None
    backend: str = AUTO
    device: str | None = None
    precision: str = "fast"
    memory: str | None = None
    _opened: dict[str, infgen_rt.Decoder] = field(default_factory=dict, repr=False, compare=False)
    _lock: Lock = field(default_factory=Lock, repr=False, compare=False)

    @property
    def spaces(self) -> tuple[str, ...]:
        """The names of the latent spaces that the bundle has a model for.

        Raises:
            BundleError: there is no bundle, or it is damaged.
        """
        return tuple(infgen_rt.Bundle.open(self.path).spaces)

    def decoder(self, space: str) -> infgen_rt.Decoder:
        """The decoder for a latent space. If candidates are measured to choose one, ComfyUI shows a progress bar.

        Raises:
            InputError: the bundle, the backend or the memory is not usable.
            InterruptProcessingException: the user has cancelled.
        """
        with self._lock:
            if space not in self._opened:
                with interruptible() as cancelled:
                    self._opened[space] = infgen_rt.open(
                        self.path,
                        self.backend,
                        space=space,
                        device=self.device,
                        precision=self.precision,  # type: ignore[arg-type]
                        memory=self.memory,
                        progress=Bar().of(0),
                        cancel=cancelled,
                    )
            return self._opened[space]

    def check(self) -> None:
        """Open the bundle if its latent space is known without a latent, so that errors are found early.

        Raises:
            InputError: as for `decoder`.
        """
        if self.space is not None or len(self.spaces) == 1:
            self.decoder(self.space or self.spaces[0])

    def pictures(
        self,
        latent: dict[str, Any],
        size: str | float,
        space: str | None = None,
        scaled: bool = False,
        one_stage: bool = False,
    ) -> list[infgen_rt.Picture]:
        """Plan the picture of each latent in a batch.

        Args:
            latent: ComfyUI's LATENT, whose `samples` are float [B, C, h, w].
            size: as for `Decoder.picture`.
            space: the latent's space. None for the space of the node, or else the one with the latent's channels.
            scaled: whether the latent is from inside of a sampler, and has the diffusion model's normalisation.
            one_stage: whether to decode in one stage where two are the default.

        Raises:
            InputError: the latent or the size is not usable.
        """
        samples = latent["samples"]
        if getattr(samples, "is_nested", False):
            raise LatentError("the latent holds several tensors, such as a video and its sound: separate them first")
        name = space or self.space or self._space_of(samples)
        # Outside of samplers, ComfyUI's latents have the VAE's own normalisation, except for FLUX.2.
        own = latent_space(name).comfyui_raw and not scaled
        normalisation: infgen_rt.spaces.Normalisation = "vae" if own else "model"
        return self.decoder(name).pictures(
            samples, size, max_scale=inf if one_stage else None, normalisation=normalisation
        )

    def _space_of(self, samples: Any) -> str:
        if len(self.spaces) == 1:
            return self.spaces[0]
        try:
            return space_of(samples, self.spaces).name
        except LatentError as error:
            raise LatentError(f"{error}; choose it in the input 'space' of the node InfGen Load") from None
