"""InfGen's runtime: decodes a diffusion model's latent into a picture of any size.

Examples:
    >>> import infgen_rt
    >>> latent = infgen_rt.load_sample("harbour").latent  # or load_latent("harbour.safetensors")
    >>> with infgen_rt.open() as decoder:
    ...     picture = decoder.picture(latent, size=(640, 360))
    ...     picture.save("harbour.png")
    ...     pixels = picture.read((100, 200, 320, 120))
    >>> pixels.shape
    (120, 320, 3)
"""

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

from infgen_rt import spaces as spaces
from infgen_rt.backend.choice import Choice
from infgen_rt.batch import save_pictures
from infgen_rt.bundle.folder import Bundle
from infgen_rt.bundle.manifest import Manifest
from infgen_rt.common.progress import Progress
from infgen_rt.decoder import Decoder, open
from infgen_rt.display.named import Display, display_size, named_displays
from infgen_rt.errors import (
    BackendError,
    BundleError,
    Cancelled,
    DecodeError,
    InfGenError,
    InfGenWarning,
    InputError,
    LatentError,
    OutputError,
    PlanError,
    WriteError,
)
from infgen_rt.geometry.shapes import Box, Fit, Size, fit
from infgen_rt.latent.arrays import load_latent, load_latents
from infgen_rt.latent.samples import Sample, load_sample, sample_names
from infgen_rt.picture import Picture
from infgen_rt.plan.plan import Plan
from infgen_rt.version import __version__

# PyInstaller collects what is imported here too. `infgen_rt.qt` is not, because PySide6 would then be in every app.
if TYPE_CHECKING:
    from infgen_rt import diffusers as diffusers
    from infgen_rt import ray as ray
    from infgen_rt import viewing as viewing

__all__ = [
    "__version__",
    "BackendError",
    "Box",
    "Bundle",
    "BundleError",
    "Cancelled",
    "Choice",
    "DecodeError",
    "Decoder",
    "Display",
    "Fit",
    "InfGenError",
    "InfGenWarning",
    "InputError",
    "LatentError",
    "Manifest",
    "OutputError",
    "Picture",
    "Plan",
    "PlanError",
    "Progress",
    "Sample",
    "Size",
    "WriteError",
    "display_size",
    "fit",
    "load_latent",
    "load_latents",
    "load_sample",
    "named_displays",
    "open",
    "sample_names",
    "save_pictures",
]

# Modules that not every program needs. They are imported when they are first used. Most need further libraries.
_LATER = ("diffusers", "qt", "ray", "viewing")


if not TYPE_CHECKING:

    def __getattr__(name: str) -> ModuleType:
        if name in _LATER:
            return import_module(f"{__name__}.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
