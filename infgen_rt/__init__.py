"""InfGen's runtime: decodes a diffusion model's latent into a picture of any size.

import infgen_rt

with infgen_rt.open() as decoder:
    picture = decoder.picture(infgen_rt.load_latent("harbour.safetensors"), size=(3840, 2160))
    print(picture.plan)
    picture.save("harbour.png", progress=print)
    pixels = picture.read((100, 200, 640, 480))
"""

from .bundle import Bundle, Manifest
from .choice import Choice
from .decoder import Decoder, open
from .displays import Display, display_size, named_displays
from .errors import (
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
from .geometry import Box, Fit, Size, fit
from .latents import load_latent
from .picture import Picture, Progress
from .plan import Plan
from .samples import Sample, load_sample, sample_names

__version__ = "0.1.0"

__all__ = [
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
    "load_sample",
    "named_displays",
    "open",
    "sample_names",
]
