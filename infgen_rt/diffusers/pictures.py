"""Checks arguments before a pipeline starts, and says in which parts a picture is read."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import torch

from infgen_rt.decoder import Decoder
from infgen_rt.errors import InputError, LatentError, PlanError
from infgen_rt.geometry.grid import Grid
from infgen_rt.geometry.shapes import Box, Size, parse_size
from infgen_rt.geometry.stages import chain
from infgen_rt.picture import Picture

# A usual picture, for checking what does not depend on the latent.
_USUAL = Grid(Size(64, 64), Size(512, 512), 8)
_BEYOND = 1.5
"""The largest absolute value of a pixel. Resampling a picture gives values a little beyond 1."""
_TWICE = Size(1024, 1024)
_SMALL = 8
"""The side, in cells, of a latent that can be decoded with any options that are possible for a larger one."""


def picture_options(
    scale: float | None,
    size: str | tuple[int, int] | None,
    stages: Sequence[float] | None,
    max_scale: float | None,
    tile: int | None,
) -> dict[str, Any]:
    """The arguments of `Decoder.picture`, checked as far as is possible without a latent.

    Raises:
        PlanError: an argument is not possible, or two exclude each other.
    """
    if scale is not None and size is not None:
        raise PlanError("scale and size exclude each other: expected one of them")
    wanted = size if scale is None else scale
    picture = parse_size(wanted, _USUAL.picture)
    if stages is None or _is_relative(wanted):
        chain(Grid(_USUAL.cells, picture, _USUAL.patch), stages, max_scale)
    return {"size": wanted, "stages": stages, "max_scale": max_scale, "tile": tile}


def check_plan(decoder: Decoder, options: dict[str, Any]) -> None:
    """Check the options of pictures with a model, by planning the picture of a small latent.

    Raises:
        PlanError: no latent can be decoded with these options.
    """
    small = np.zeros((decoder.manifest.latent_channels, _SMALL, _SMALL), np.float32)
    usable = options if _is_relative(options["size"]) else {"tile": options["tile"]}
    with decoder.notices.silence():  # its warnings would be about this latent
        decoder.picture(small, normalisation="model", **usable)


def _is_relative(size: Any) -> bool:
    """Whether a size is relative to the VAE's picture, so that the scale is the same for every latent."""
    once, twice = (parse_size(size, each) for each in (_USUAL.picture, _TWICE))
    return twice == (2 * once.width, 2 * once.height)


def check_batch(values: object, what: str, expected: str) -> None:
    """Check a batch from a pipeline, apart from what the runtime checks.

    Raises:
        LatentError: the values are not a tensor with four axes, or a gradient is expected to flow through them.
    """
    if not isinstance(values, torch.Tensor) or values.ndim != 4 or 0 in values.shape:
        found = f"shape {list(values.shape)}" if isinstance(values, torch.Tensor) else type(values).__name__
        raise LatentError(f"{what} are {found}: expected a torch tensor {expected}")
    if values.requires_grad and torch.is_grad_enabled():
        raise LatentError(f"{what} require a gradient, which InfGen does not compute: use torch.no_grad()")


def check_pixels(pixels: torch.Tensor) -> None:
    """Check the pixels of a pipeline. Their range has some room, because pipelines resample pictures.

    Raises:
        InputError: they are not RGB in [-1, 1].
    """
    expected = "expected a torch tensor of floats [N, 3, H, W] in [-1, 1]"
    if not pixels.is_floating_point() or pixels.shape[1] != 3:
        raise InputError(f"pixels are {pixels.dtype} of the shape {list(pixels.shape)}: {expected}")
    if not pixels.isfinite().all():
        raise InputError(f"pixels hold NaN or infinity: {expected}")
    low, high = pixels.min().item(), pixels.max().item()
    if low < -_BEYOND or high > _BEYOND:
        raise InputError(f"pixels are from {low:.3g} to {high:.3g}: {expected}")


def bands(picture: Picture) -> Iterator[Box]:
    """The rows of a picture's tiles, so that no more of it is held twice."""
    for _, row in groupby(picture.parts(picture.size.box), key=lambda part: part.y):
        first, *others = row
        last = others[-1] if others else first
        yield first._replace(width=last.right - first.x)
