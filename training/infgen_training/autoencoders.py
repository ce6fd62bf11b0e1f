"""Loads autoencoders from weights in the format of diffusers, or of TAESD and the tiny autoencoders related to it.

Loading never runs code that a pickled file may hold.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from infgen_model.layers import PooledBranch
from infgen_rt.errors import InputError

_TINY, _FLUX2 = "AutoencoderTiny", "AutoencoderKLFlux2"
CLASSES = ("AutoencoderKL", _FLUX2, _TINY)
"""The classes of diffusers that can be loaded."""
_CONFIG = "config.json"
_WEIGHTS = "diffusion_pytorch_model.safetensors"
_PARTS = ("encoder", "decoder")
_CELL = 8
"""Pixels per cell."""


def load_autoencoder(path: Path) -> tuple[nn.Module, nn.Module]:
    """Loads an encoder and a decoder, which are frozen.

    The encoder takes images [B, 3, 8h, 8w] in [0, 1] and returns latents [B, C, h, w], normalised as the diffusion
    model expects them. The decoder takes such latents and returns images, whose values may lie slightly outside [0, 1].
    All tensors are float32.

    Args:
        path: One of three: a folder of diffusers with a ``config.json``; a file of weights in the same folder as such
            a ``config.json``; or either file of a pair of TAESD's family. The two names of such a pair are the same
            except for the word "encoder" or "decoder".

    Returns:
        The encoder and the decoder, in evaluation mode.

    Raises:
        InputError: A file is missing, cannot be read or does not hold such an autoencoder.
    """
    folder = path if path.is_dir() else path.parent
    if (folder / _CONFIG).is_file():
        encoder, decoder = _from_diffusers(folder, _weights_in(folder) if path.is_dir() else path)
    elif path.is_dir():
        raise InputError(
            f"{path} has no {_CONFIG}: pass the folder of the autoencoder itself, which a pipeline of diffusers has as "
            "vae/, or one file of a pair of weights of TAESD's family"
        )
    else:
        files = {part: _of_pair(path, part) for part in _PARTS}
        encoder, decoder = (tiny(read_weights(file), part, file) for part, file in files.items())
    return encoder.eval().requires_grad_(False), decoder.eval().requires_grad_(False)


def read_weights(file: Path) -> dict[str, Tensor]:
    """Reads the tensors of a ``.safetensors`` or ``.pth`` file as float32, without running code that it may hold.

    Raises:
        InputError: The file is missing, cannot be read, or holds other things than tensors by name.
    """
    try:
        if file.suffix == ".safetensors":
            state: Any = load_file(file)
        elif file.suffix == ".pth":
            state = torch.load(file, map_location="cpu", weights_only=True)
        else:
            raise InputError(f"{file} has an unknown ending: expected .py, .safetensors or .pth")
    except InputError:
        raise
    except Exception as error:  # a damaged file may raise any exception
        raise InputError(f"{file} cannot be read as weights: {error}") from error
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"{file} does not hold weights: expected tensors by name")
    return {name: value.float() for name, value in state.items()}


def _of_pair(file: Path, part: str) -> Path:
    """The file of one part (encoder or decoder) of a pair, given the file of either part."""
    named = [each for each in _PARTS if each in file.stem]
    if len(named) != 1:
        raise InputError(
            f"{file} has no {_CONFIG} beside it, and its name does not say whether it is the encoder or the decoder of "
            f"TAESD's family: put the {_CONFIG} of diffusers beside it, or name the files NAME_encoder and NAME_decoder"
        )
    found = file.with_stem(file.stem.replace(named[0], part))
    if not found.is_file():
        raise InputError(f"{file} has no {part}: expected {found.name} beside it")
    return found


class _Clamp(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 3 * torch.tanh(x / 3)


class _Block(nn.Module):
    """The residual block of TAESD's family. Its parameters have the same names as there."""

    def __init__(self, width: int, pooled: bool) -> None:
        super().__init__()
        first, second, last = (nn.Conv2d(width, width, 3, padding=1) for _ in range(3))
        self.conv = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), last)
        self.pool = PooledBranch(width) if pooled else None

    def forward(self, x: Tensor) -> Tensor:
        if self.pool is not None:
            x = x + self.pool(x)
        return F.relu(x + self.conv(x))


def tiny(state: Mapping[str, Tensor], part: str, file: Path) -> nn.Sequential:
    """Builds an encoder or a decoder of TAESD's family from its weights.

    Args:
        state: Weights with the names of TAESD: ``N.weight`` for a convolution, ``N.conv.M.weight`` for a block.
        part: ``"encoder"`` or ``"decoder"``.
        file: The file that the weights come from. It is named in error messages.

    Raises:
        InputError: The weights belong to another network, or the network does not have 8 pixels per cell.
    """
    places = {int(name.partition(".")[0]) for name in state if name.partition(".")[0].isdecimal()}
    layers: list[nn.Module] = []
    for place in range(max(places, default=-1) + 1):
        weight, block = state.get(f"{place}.weight"), state.get(f"{place}.conv.0.weight")
        if block is not None:
            layers.append(_Block(len(block), f"{place}.pool.0.weight" in state))
        elif weight is not None and weight.ndim == 4:
            bias = f"{place}.bias" in state  # only the layers that change the resolution have no bias
            stride = 1 if bias or part == "decoder" else 2
            layers.append(nn.Conv2d(weight.shape[1], len(weight), 3, stride, padding=1, bias=bias))
        elif part == "decoder":
            layers.append({0: _Clamp, 2: nn.ReLU}.get(place, lambda: nn.Upsample(scale_factor=2))())
    network = nn.Sequential(*layers)
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise InputError(f"{file} does not hold the {part} of an autoencoder of TAESD's family: {reason}") from error
    steps = sum(isinstance(layer, nn.Conv2d) and layer.bias is None for layer in layers)
    _check_cell(2**steps, file)
    return network


def _check_cell(pixels: int, file: Path) -> None:
    if pixels != _CELL:
        raise InputError(f"{file} has {pixels} pixels per cell: this training needs {_CELL}")


def _weights_in(folder: Path) -> Path:
    """The file of weights in a folder of diffusers: the one with the usual name, or else the only one."""
    files = sorted(folder.glob("*.safetensors"))
    if folder / _WEIGHTS in files:
        return folder / _WEIGHTS
    if len(files) != 1:
        raise InputError(f"{folder} has no {_WEIGHTS} and {len(files)} other safetensors files: pass the file itself")
    return files[0]


def _from_diffusers(folder: Path, file: Path) -> tuple[nn.Module, nn.Module]:
    try:
        config = json.loads((folder / _CONFIG).read_text())
        kind = config.get("_class_name")
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"{folder / _CONFIG} is not a config of diffusers: {error}") from error
    if kind not in CLASSES:
        raise InputError(f"{folder / _CONFIG} is of a {kind}: expected one of {', '.join(CLASSES)}")
    state = read_weights(file)
    if kind == _TINY:
        if (config.get("scaling_factor", 1), config.get("shift_factor", 0)) != (1, 0):
            raise InputError(f"{folder} scales the latents of a {_TINY}, which no model of TAESD's family does")
        encoder, decoder = (
            {name.removeprefix(f"{part}.layers."): value for name, value in state.items() if name.startswith(part)}
            for part in _PARTS
        )
        decoder = {_one_later(name): value for name, value in decoder.items()}  # TAESD counts the clamp as a layer
        return tiny(encoder, "encoder", file), tiny(decoder, "decoder", file)
    return _full(kind, config, state, file)


def _one_later(name: str) -> str:
    """The name that a tensor has after one layer is inserted before the first."""
    place, _, rest = name.partition(".")
    return f"{int(place) + 1}.{rest}" if place.isdecimal() else name


def _full(kind: str, config: dict[str, Any], state: dict[str, Tensor], file: Path) -> tuple[nn.Module, nn.Module]:
    """The encoder and decoder of an ``AutoencoderKL`` or ``AutoencoderKLFlux2``, with its normalisation of latents."""
    try:
        import diffusers
    except ImportError as error:
        raise InputError(f'{file} needs diffusers to be read: pip install "diffusers>=0.37"') from error
    try:
        vae: nn.Module = getattr(diffusers, kind).from_config(config)
        vae.load_state_dict(state)
    except Exception as error:  # diffusers raises exceptions of many types for invalid configs
        reason = str(error).splitlines()[-1].strip()
        raise InputError(f"{file} does not hold the {kind} that its {_CONFIG} describes: {reason}") from error
    own: Any = vae.config
    _check_cell(2 ** (len(own.block_out_channels) - 1), file)
    if kind == _FLUX2:
        bn: Any = vae.bn
        side = math.isqrt(len(bn.running_mean) // own.latent_channels)
        # In the order that pixel unshuffling gives: channel, row, column.
        mean, std = (
            each.reshape(own.latent_channels, side, side)
            for each in (bn.running_mean, torch.sqrt(bn.running_var + own.batch_norm_eps))
        )
    else:
        shift = own.get("shift_factor") or 0.0
        means, stds = own.get("latents_mean") or (shift,), own.get("latents_std") or (1.0,)
        mean, std = (torch.tensor(each).float().reshape(-1, 1, 1) for each in (means, stds))
        std = std / own.scaling_factor
    return _Encoder(vae, mean, std), _Decoder(vae, mean, std)


class _Normalised(nn.Module):
    """Base of an encoder and a decoder that normalise latents with a mean and a standard deviation.

    Args:
        vae: The autoencoder of diffusers.
        mean: Mean of the latents, float32 [C, n, n] or [1, n, n]. It is repeated over the latent in blocks of n x n
            cells.
        std: Standard deviation of the latents, in the same form.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, vae: nn.Module, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.vae: Any = vae
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def over(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """The mean and standard deviation of every cell of a latent [B, C, h, w], each [C or 1, h, w]."""
        height, width = latent.shape[-2:]
        side = self.mean.shape[-1]
        times = (1, -(-height // side), -(-width // side))
        mean, std = (each.repeat(times)[:, :height, :width] for each in (self.mean, self.std))
        return mean, std


class _Encoder(_Normalised):
    def forward(self, image: Tensor) -> Tensor:
        latent: Tensor = self.vae.encode(2 * image - 1).latent_dist.mode()
        mean, std = self.over(latent)
        return (latent - mean) / std


class _Decoder(_Normalised):
    def forward(self, latent: Tensor) -> Tensor:
        mean, std = self.over(latent)
        image: Tensor = self.vae.decode(latent * std + mean).sample
        return (image + 1) / 2
