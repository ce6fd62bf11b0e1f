"""The alternatives to this project: a tiny decoder, a full VAE's decoder, and a classic super-resolution network.

The tiny decoder and the super-resolution network have trained weights if files with them are given. The full VAE has
random weights, because only its cost is measured.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from infgen_export.work import multiply_adds
from infgen_model.layers import TripleBlock
from infgen_training.teacher import Teacher, load_function

CHANNELS = 32
_WIDTH, _GROWTH, _BLOCKS = 64, 32, 23
"""Real-ESRGAN's channels, how many each convolution adds to them, and the number of groups of three blocks."""


def tiny_decoder(teacher: Path | None) -> nn.Module:
    """Makes TAEF2's decoder, which takes 271 thousand multiply-adds per pixel.

    Args:
        teacher: Python file that loads its weights. If ``None``, they are random.
    """
    torch.manual_seed(0)
    if teacher is not None:
        return Teacher.load(teacher).decoder.eval()
    layers: list[nn.Module] = [nn.Conv2d(CHANNELS, 64, 3, padding=1), nn.ReLU()]
    for level in range(3):
        layers += [TripleBlock(64, pooled=level == 0) for _ in range(3)]
        layers += [nn.Upsample(scale_factor=2), nn.Conv2d(64, 64, 3, padding=1, bias=False)]
    return nn.Sequential(*layers, TripleBlock(64), nn.Conv2d(64, 3, 3, padding=1)).eval()


class FullDecoder(nn.Module):
    """The decoder of FLUX.2's VAE in ``diffusers``, with random weights. Its latents are [1, 32, h, w]."""

    def __init__(self) -> None:
        super().__init__()
        from diffusers import AutoencoderKLFlux2

        torch.manual_seed(0)
        self.vae: Any = AutoencoderKLFlux2()  # type: ignore[no-untyped-call]

    def forward(self, latent: Tensor) -> Tensor:
        """Decodes a latent; see the class."""
        image: Tensor = self.vae.decode(latent, return_dict=False)[0]
        return image


class _Dense(nn.Module):
    """Five convolutions, each of which sees the outputs of all before it (ESRGAN, Wang et al. 2018)."""

    def __init__(self) -> None:
        super().__init__()
        outputs = (_GROWTH, _GROWTH, _GROWTH, _GROWTH, _WIDTH)
        self.convolve = nn.ModuleList(
            nn.Conv2d(_WIDTH + index * _GROWTH, out, 3, padding=1) for index, out in enumerate(outputs)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Returns a tensor of x's shape [B, 64, H, W]."""
        seen = x
        for conv in self.convolve[:-1]:
            seen = torch.cat([seen, F.leaky_relu(conv(seen), 0.2)], 1)
        out: Tensor = x + 0.2 * self.convolve[-1](seen)
        return out


class SuperResolution(nn.Module):
    """Real-ESRGAN's network (RRDBNet, 16.7 M parameters) with random weights. It enlarges [1, 3, h, w] 4 times."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.enter = nn.Conv2d(3, _WIDTH, 3, padding=1)
        self.blocks = nn.ModuleList(nn.Sequential(*(_Dense() for _ in range(3))) for _ in range(_BLOCKS))
        self.body, self.up1, self.up2, self.high = (nn.Conv2d(_WIDTH, _WIDTH, 3, padding=1) for _ in range(4))
        self.leave = nn.Conv2d(_WIDTH, 3, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        """Enlarges an image; see the class."""
        x = features = self.enter(image)
        for block in self.blocks:
            x = x + 0.2 * block(x)
        x = features + self.body(x)
        for up in (self.up1, self.up2):
            x = F.leaky_relu(up(F.interpolate(x, scale_factor=2)), 0.2)
        out: Tensor = self.leave(F.leaky_relu(self.high(x), 0.2))
        return out


def enlarger(file: Path | None) -> nn.Module:
    """Makes Real-ESRGAN's network.

    Args:
        file: Python file with ``load_x4plus()``, which loads it. If ``None``, its weights are random.
    """
    if file is None:
        return SuperResolution().eval()
    network: nn.Module = load_function(file, "load_x4plus")()
    return network.eval()


PEERS: dict[str, Callable[[Path | None], nn.Module]] = {
    "taef2": tiny_decoder,
    "vae": lambda _: FullDecoder().eval(),
    "esrgan": enlarger,
}
"""Functions that make the networks, by name. They take a Python file that loads the weights, or ``None``."""


def write_peer(name: str, weights: Path | None, file: Path) -> float:
    """Writes a network as an ONNX graph with dynamic height and width.

    Args:
        name: Name of the network in ``PEERS``.
        weights: Python file that loads the network. If omitted, it has random weights.
        file: The file to write.

    Returns:
        Multiply-adds per input position (a latent cell, or a pixel), counted at 16x24.
    """
    module = PEERS[name](weights).requires_grad_(False)
    example = torch.zeros(1, 3 if name == "esrgan" else CHANNELS, 16, 24)
    height, width = (torch.export.Dim(side, min=2, max=4096) for side in "hw")
    torch.onnx.export(
        module,
        (example,),
        file,
        dynamo=True,
        input_names=["input"],
        dynamic_shapes=({2: height, 3: width},),
        external_data=False,
        verbose=False,
    )
    return multiply_adds(lambda: module(example)) / (16 * 24)
