"""Shows previews that InfGen decodes while a sampler works."""

import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import comfy.patcher_extension
import comfy.utils
from PIL import Image

from infgen_rt import InfGenError, InfGenWarning

from .decoders import SPACES, Model

_KEY = "infgen_preview"


@dataclass(frozen=True)
class Previewer:
    """A wrapper of a sampler. ComfyUI passes a callback to samplers, which they call after each step.

    Attributes:
        model: the opened model.
        space: the space of the sampler's latents. None to infer it from their channels.
        longest: the longer side of the preview in pixels.
        every: the number of steps between two previews. There is always one after the last step.
    """

    model: Model
    space: str | None
    longest: int
    every: int

    def __call__(
        self,
        sample: Callable[..., Any],
        noise: Any,
        latent_image: Any,
        sampler: Any,
        sigmas: Any,
        denoise_mask: Any = None,
        callback: Callable[..., Any] | None = None,
        *rest: Any,
        **options: Any,
    ) -> Any:
        """Run the sampler, and show previews."""

        def told(step: int, x0: Any, x: Any, total: int) -> None:
            if callback is not None:
                callback(step, x0, x, total)
            if step % self.every == 0 or step == total - 1:
                self._show(step, x0, total)

        return sample(noise, latent_image, sampler, sigmas, denoise_mask, told, *rest, **options)

    def _show(self, step: int, x0: Any, total: int) -> None:
        """Show the first latent of a batch. A failure of the preview does not end the sampling."""
        try:
            with warnings.catch_warnings():
                # Latents after the first steps are noisy, so warnings about unusual latents would be wrong.
                warnings.simplefilter("ignore", InfGenWarning)
                pictures = self.model.pictures({"samples": x0[:1]}, "1x", self.space, scaled=True)
                image = Image.fromarray(pictures[0].preview(self.longest))
        except InfGenError as error:
            logging.warning("InfGen Preview shows nothing for step %d: %s", step + 1, error)
            return
        comfy.utils.ProgressBar(total).update_absolute(step + 1, total, ("JPEG", image, self.longest))


def with_previews(diffusion: Any, model: Model, longest: int, every: int) -> Any:
    """Copy ComfyUI's MODEL, so that samplers of the copy show previews.

    Args:
        diffusion: ComfyUI's MODEL. Its latent format names the space.
        model: the opened model.
        longest: as for `Previewer`.
        every: as for `Previewer`.
    """
    form = type(diffusion.get_model_object("latent_format")).__name__
    copy = diffusion.clone()
    previewer = Previewer(model, SPACES.get(form, model.space), longest, every)
    copy.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.OUTER_SAMPLE, _KEY, previewer)
    return copy
