"""The model that InfGen Load opens, and the pictures of ComfyUI's latents."""

from dataclasses import dataclass, field
from threading import Lock
from typing import Any

import infgen_rt
from infgen_rt.errors import LatentError
from infgen_rt.spaces import latent_space, space_of

from .host import Bar, interruptible

AUTO = "auto"
# The names of ComfyUI's latent formats (comfy/latent_formats.py), and this package's names of the spaces.
SPACES = {"SD15": "sd15", "SDXL": "sdxl", "SD3": "sd3", "Flux": "flux1", "Flux2": "flux2"}


@dataclass(frozen=True)
class Model:
    """A bundle and how to run it. It is opened once for each latent space, when a latent of the space comes.

    Attributes:
        path: the bundle. None for the one that ships with infgen-rt.
        space: this package's name of the latent space. None to tell it from each latent's channels.
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
        """The names of the spaces that the bundle has a model for.

        Raises:
            BundleError: there is no bundle, or it is damaged.
        """
        return tuple(infgen_rt.Bundle.open(self.path).spaces)

    def decoder(self, space: str) -> infgen_rt.Decoder:
        """The decoder for a latent space, with ComfyUI's progress bar if the ways of running it are measured.

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
        """Open what can be opened before there is a latent, so that errors come first.

        Raises:
            InputError: as for `decoder`.
        """
        if self.space is not None or len(self.spaces) == 1:
            self.decoder(self.space or self.spaces[0])

    def pictures(
        self, latent: dict[str, Any], size: str | float, space: str | None = None, scaled: bool = False
    ) -> list[infgen_rt.Picture]:
        """Plan the picture of each latent in a batch.

        Args:
            latent: ComfyUI's LATENT, whose `samples` are float [B, C, h, w].
            size: as for `Decoder.picture`.
            space: the space of the latent. None for that of the node, or for what its channels tell.
            scaled: whether the numbers are those inside of a sampler, which are the diffusion model's.

        Raises:
            InputError: the latent or the size is not usable.
        """
        samples = latent["samples"]
        if getattr(samples, "is_nested", False):
            raise LatentError("the latent holds several tensors, such as a video and its sound: separate them first")
        name = space or self.space or self._space_of(samples)
        # Outside of samplers, ComfyUI's numbers are the VAE's own, except for FLUX.2.
        own = latent_space(name).comfyui_raw and not scaled
        return self.decoder(name).pictures(samples, size, normalisation="vae" if own else "model")

    def _space_of(self, samples: Any) -> str:
        if len(self.spaces) == 1:
            return self.spaces[0]
        try:
            return space_of(samples, self.spaces).name
        except LatentError as error:
            raise LatentError(f"{error}; the node InfGen Load has the choice 'space'") from None
