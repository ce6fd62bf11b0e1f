"""A trunk that starts as the first layers of a decoder that exists."""

from __future__ import annotations

from torch import Tensor, nn

from infgen_export.model import InfGen
from infgen_export.model.trunk import Trunk
from infgen_rt.errors import InputError

_PARTS = {"convolve": "conv", "pool": "pool"}
"""Names of a block's branches here and there."""


def copy_trunk(decoder: nn.Module, model: InfGen) -> None:
    """Copies the layers of a TAESD decoder (github.com/madebyollin/taesd) into a model's trunk, in place.

    Such decoders exist for many latent spaces: TAESD, TAESDXL, TAESD3, TAEF1, TAEF2. What they do at the resolutions of
    the trunk is what the trunk is for, so training starts with features that are right. Of these only TAEF2's has
    branches with global statistics; for the others, the trunk's start at zero.

    Args:
        decoder: A sequence of modules: soft clamp, convolution, ReLU, then blocks, an upsampling and a convolution for
            every resolution. Layers beyond the trunk's last resolution are left out.
        model: Its ``prefill.trunk`` has the same widths.

    Raises:
        InputError: The decoder is built in another way or has other widths.
    """
    trunk = model.prefill.trunk
    if trunk is None:
        return
    state = decoder.state_dict()
    names, expected = _names(trunk), trunk.state_dict()
    if not any(".pool." in name for name in state):
        names = {ours: theirs for ours, theirs in names.items() if ".pool." not in ours}
    for ours, theirs in names.items():
        found = state.get(theirs)
        if found is None or found.shape != expected[ours].shape:
            shape = "lacks it" if found is None else f"has shape {list(found.shape)}"
            raise InputError(
                f"the teacher's decoder is not one that the trunk can start from: {theirs} should have shape "
                f"{list(expected[ours].shape)}, the decoder {shape}; set trunk_from_teacher=false to start at random"
            )
    copied: dict[str, Tensor] = {ours: state[theirs] for ours, theirs in names.items()}
    silent = {
        name: 0 * value for name, value in expected.items() if name not in names and name.endswith(".pool.3.weight")
    }
    trunk.load_state_dict(expected | silent | copied)


def _names(trunk: Trunk) -> dict[str, str]:
    """Every tensor of the trunk, and the tensor of the decoder that it starts as."""
    names, place = {}, 1  # the soft clamp has no tensors
    for name in trunk.enter.state_dict():
        names[f"enter.{name}"] = f"{place}.{name}"
    place += 2  # and a ReLU
    for level, blocks in enumerate(trunk.levels):
        assert isinstance(blocks, nn.Sequential)
        if level:
            place += 1  # the upsampling
            names[f"grow.{level - 1}.weight"] = f"{place}.weight"
            place += 1
        for index, block in enumerate(blocks):
            for name in block.state_dict():
                part, _, rest = name.partition(".")
                names[f"levels.{level}.{index}.{name}"] = f"{place}.{_PARTS[part]}.{rest}"
            place += 1
    return names
