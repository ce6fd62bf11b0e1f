"""A model that starts as parts of a tiny autoencoder that exists.

Such autoencoders (github.com/madebyollin/taesd) exist for many latent spaces: TAESD, TAESDXL, TAESD3, TAEF1, TAEF2.
What they do at the resolutions of the trunk and of the encoder is what those are for, so training starts with features
that are right.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from infgen_export.model import InfGen
from infgen_rt.errors import InputError

COPIED = (
    *("prefill.enter.", "prefill.blocks.", "refine.grow.", "refine.levels.", "refine.enlarger.to_picture."),
    *("encode.levels.", "encode.shrink.", "encode.leave."),
)
"""How the names of the parameters begin that are copied from a tiny autoencoder."""
_PARTS = {"convolve": "conv", "pool": "pool"}
"""Names of a block's branches here and there."""


def copy_trunk(decoder: nn.Module, model: InfGen) -> None:
    """Copies the first layers of a tiny autoencoder's decoder into a model's trunk, in place.

    Of the decoders named above only TAEF2's has branches with global statistics; for the others, the trunk's start at
    zero.

    Args:
        decoder: A sequence of modules: soft clamp, convolution, ReLU, then blocks, an upsampling and a convolution for
            every resolution. Layers beyond the trunk's last resolution are left out.
        model: Its trunk, in ``prefill`` and ``refine``, has the same widths.

    Raises:
        InputError: The decoder is built in another way or has other widths.
    """
    if model.prefill.enter is None:
        return
    names = {f"prefill.enter.{name}": f"1.{name}" for name in model.prefill.enter.state_dict()}  # after the soft clamp
    place = 3  # and a ReLU
    names.update(_names(model.prefill.blocks, "prefill.blocks", place))
    place += len(model.prefill.blocks)
    for index, level in enumerate(model.refine.levels if model.refine is not None else ()):
        names[f"refine.grow.{index}.weight"] = f"{place + 1}.weight"  # after the upsampling
        place += 2
        names.update(_names(level, f"refine.levels.{index}", place))
        place += len(list(level.children()))
    if model.refine is not None:
        for name in ("weight", "bias"):
            names[f"refine.enlarger.to_picture.{name}"] = f"{place}.{name}"
    if not any(".pool." in name for name in decoder.state_dict()):
        names = {ours: theirs for ours, theirs in names.items() if ".pool." not in ours}
    silent = {
        name: 0 * value
        for name, value in model.prefill.state_dict(prefix="prefill.").items()
        if name not in names and name.endswith(".pool.3.weight")
    }
    _copy(decoder, model, names, silent)


def copy_encoder(encoder: nn.Module, model: InfGen) -> None:
    """Copies the last layers of a tiny autoencoder's encoder into a model's encoder, in place.

    What comes before the encoder's first resolution is left out, and so are branches with global statistics: an
    encoder that must give the same latent for any tile cannot have them, and has to learn to do without.

    Args:
        encoder: A sequence of modules that ends with, for every resolution, a convolution that halves the picture and
            blocks, and last of all one convolution.
        model: Its ``encode`` has the same widths.

    Raises:
        InputError: The encoder is built in another way or has other widths.
    """
    place = len(encoder) - 1 if isinstance(encoder, nn.Sequential) else 0
    names = {f"leave.{name}": f"{place}.{name}" for name in model.encode.leave.state_dict()}
    for index, level in reversed(list(enumerate(model.encode.levels))):
        place -= len(list(level.children()))
        names.update(_names(level, f"levels.{index}", place))
        if index:
            place -= 1
            names[f"shrink.{index - 1}.weight"] = f"{place}.weight"
    _copy(encoder, model.encode, names, {})


def copy_enlarger(network: nn.Module, model: InfGen) -> None:
    """Copies Real-ESRGAN's smallest network into a model's enlarger, in place, as far as it goes.

    What leaves the enlarger is not copied: a shorter chain has its own, and learns it in a few hundred steps.

    Args:
        network: ``SRVGGNetCompact``: in ``body``, convolutions of 64 channels with PReLUs between them.
        model: Its enlarger has the same width, and no more convolutions.

    Raises:
        InputError: The network is built in another way.
    """
    if model.refine is None:
        return
    enlarger = model.refine.enlarger
    body = getattr(network, "body", None)
    if not isinstance(body, nn.Sequential) or len(body) < 2 + 2 * len(enlarger.blocks):
        raise InputError("the enlarger's network is not SRVGGNetCompact: expected its convolutions in `body`")
    ours = [enlarger.enter, enlarger.activate, *(layer for block in enlarger.blocks for layer in block)]
    try:
        for layer, theirs in zip(ours, body, strict=False):
            layer.load_state_dict(theirs.state_dict())
    except RuntimeError as error:
        raise InputError(f"the enlarger's network does not fit: {' '.join(str(error).split())}") from error
    with torch.no_grad():
        # At first it sees the picture alone, as it always did.
        for parameter in enlarger.mix.parameters():
            parameter.zero_()


def _names(level: nn.Module, prefix: str, place: int) -> Iterator[tuple[str, str]]:
    """Every tensor of a level's blocks, and the teacher's that it starts as; its first block is at ``place``."""
    for index, block in enumerate(level.children()):
        for name in block.state_dict():
            part, _, rest = name.partition(".")
            yield f"{prefix}.{index}.{name}", f"{place + index}.{_PARTS[part]}.{rest}"


def _copy(teacher: nn.Module, module: nn.Module, names: dict[str, str], other: dict[str, Tensor]) -> None:
    state, expected = teacher.state_dict(), module.state_dict()
    for ours, theirs in names.items():
        found = state.get(theirs)
        if found is None or found.shape != expected[ours].shape:
            shape = "lacks it" if found is None else f"has shape {list(found.shape)}"
            raise InputError(
                f"the teacher is not one that this model can start from: {theirs} should have shape "
                f"{list(expected[ours].shape)}, the teacher {shape}; set warm_start=false to start at random"
            )
    module.load_state_dict(expected | other | {ours: state[theirs] for ours, theirs in names.items()})
