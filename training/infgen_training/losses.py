"""Losses of decoded pictures: on pixels, on features of VGG16 (LPIPS), and adversarial.

The published recipe is L1 + 0.1 LPIPS + 0.1 adversarial (arXiv 2509.10441, section 4). Here the adversary uses the
features that LPIPS computes anyway (a "projected" discriminator, Sauer et al. 2021). This is cheap and stable enough
for two CPU cores.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from infgen_rt.errors import InputError
from infgen_training.precision import mixed

_WIDTHS = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512)
"""Channels of VGG16's convolutions. 0 is a max pooling."""
_TAPS = (3, 8, 15, 22, 29)
"""Layers whose outputs are compared."""
_JUDGED = slice(0, 4)
"""Those of the compared layers that the adversary sees. They contain edges and texture, not objects."""
_JUDGED_WIDTHS = (64, 128, 256, 512)
"""Number of channels of the layers that the adversary sees."""

LEAST_LENGTH = 1e-3
"""Added to the features' lengths. It limits gradients where features are almost zero, for example in black areas."""

Features = Sequence[Tensor]


class Vgg(nn.Module):
    """LPIPS with VGG16 (Zhang et al. 2018), in two steps: the features of a picture, and the distance of two pictures.

    Args:
        file: safetensors file with torchvision's convolutions as ``features.N.weight`` and ``.bias``, and LPIPS's
            channel weights as ``lin0.weight`` to ``lin4.weight``.

    Raises:
        InputError: The file is missing or has other tensors.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, file: Path) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for width in _WIDTHS:
            layers += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU()] if width else [nn.MaxPool2d(2)]
            before = width or before
        self.layers = nn.ModuleList(layers)
        try:
            stored = {name: value.float() for name, value in load_file(file).items()}
            own = {name.removeprefix("features."): value for name, value in stored.items() if name[0] == "f"}
            self.layers.load_state_dict(own)
            for index in range(len(_TAPS)):
                self.register_buffer(f"lin{index}", stored[f"lin{index}.weight"].view(1, -1, 1, 1))
        except Exception as error:  # a damaged file may raise any exception
            raise InputError(f"{file} does not hold VGG16 and LPIPS's weights: {error}") from error
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1))
        self.eval().requires_grad_(False)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Features, finest first, of pictures [B, 3, H, W] in [0, 1] with at least 32 pixels per side."""
        x = (2 * image - 1 - self.shift) / self.scale
        taken = []
        for index, layer in enumerate(self.layers):
            x = layer(x)
            if index in _TAPS:
                taken.append(x)
        return taken

    def distance(self, made: Features, true: Features) -> Tensor:
        """LPIPS between two batches, averaged over the pictures."""
        parts = [
            _UnitDistance.apply(a, b, self.get_buffer(f"lin{index}").to(a.dtype))  # type: ignore[no-untyped-call]
            for index, (a, b) in enumerate(zip(made, true, strict=True))
        ]
        return torch.stack(parts).sum()


class _UnitDistance(torch.autograd.Function):
    """Weighted squared distance of features that are scaled to unit length at each position.

    With autograd, the gradient of the scaling takes two thirds of a training step's time on a CPU. In closed form, it
    takes a few percent.
    """

    @staticmethod
    def forward(ctx: Any, made: Tensor, true: Tensor, weight: Tensor) -> Tensor:
        a, inverse = _unit(made)
        difference = a - _unit(true)[0]
        weighted = difference * weight
        ctx.save_for_backward(a, inverse, weighted)
        return (weighted * difference).sum(dtype=torch.float32) / (made.numel() // made.shape[1])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        a, inverse, weighted = ctx.saved_tensors
        share = (2 * gradient / (a.numel() // a.shape[1])).to(a.dtype)
        # The constant that is added to the length does not depend on the features.
        along = (weighted * a).sum(1, keepdim=True) / (1 - LEAST_LENGTH * inverse).clamp(min=1e-6)
        return torch.addcmul(weighted, a, along, value=-1) * (inverse * share), None, None


def _unit(x: Tensor) -> tuple[Tensor, Tensor]:
    """The features at unit length for each position, and the factors that they were multiplied by."""
    length = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=torch.float32)
    inverse = (1 / (length + LEAST_LENGTH)).to(x.dtype)
    return x * inverse, inverse


def gradient_distance(image: Tensor, truth: Tensor) -> Tensor:
    """L1 between differences of neighbouring pixels. It penalises blur even if the colours are right."""
    pairs = ((x[..., :, 1:] - x[..., :, :-1], x[..., 1:, :] - x[..., :-1, :]) for x in (image, truth))
    (across, down), (true_across, true_down) = pairs
    return F.l1_loss(across, true_across) + F.l1_loss(down, true_down)


def feature_distance(made: Tensor, true: Tensor) -> Tensor:
    """L1 between features, as a share of the mean absolute value of the true ones."""
    return F.l1_loss(made, true) / true.abs().mean().clamp(min=1e-6)


_NEAR = 4
"""Side of a neighbourhood in which a grid is measured, in pixels of the picture at the latent's own size."""


def grid_distance(image: Tensor, truth: Tensor, factor: int) -> Tensor:
    """L1 of a grid: of errors that are the same in all blocks of ``factor`` pixels of a neighbourhood.

    A grid is visible long before it changes another loss, because it is faint and the same everywhere.

    Args:
        image: [B, 3, factor h, factor w], with h and w of 4 or more.
        truth: The true picture, of the same shape.
        factor: Side in pixels of the blocks, each of which is made from one position.
    """
    wrong = F.pixel_unshuffle(image - truth, factor).unflatten(1, (image.shape[1], -1))
    alike = F.avg_pool2d(wrong.flatten(1, 2), _NEAR, stride=_NEAR // 2).unflatten(1, wrong.shape[1:3])
    apart: Tensor = alike - alike.mean(2, keepdim=True)
    return apart.abs().mean()


class Adversary(nn.Module):
    """Discriminates decoded pictures from photographs by VGG16's features at four depths.

    It uses the hinge loss and spectral norms.

    Attributes:
        optimizer: The adversary's optimiser.
    """

    scales: Tensor

    def __init__(self, device: torch.device, lr: float) -> None:
        super().__init__()
        self.heads = nn.ModuleList(_head(width) for width in _JUDGED_WIDTHS)
        self.register_buffer("scales", torch.zeros(len(_JUDGED_WIDTHS)))
        self.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = torch.optim.AdamW(self.parameters(), lr, betas=(0.5, 0.98), weight_decay=0.0)
        self.requires_grad_(False)  # it is trained in `learn` only

    def forward(self, features: Features) -> list[Tensor]:
        """How real each position looks, for each depth."""
        judged = list(features)[_JUDGED]
        if not self.scales.any():  # set from the first features, so that the heads get values of about 1
            lengths = [each.detach().float().square().mean().sqrt() for each in judged]
            self.scales.copy_(1 / torch.stack(lengths).clamp(min=1e-6))
        pairs = zip(self.heads, judged, self.scales, strict=True)
        return [head(each * scale.to(each.dtype)).float() for head, each, scale in pairs]

    def learn(self, made: Features, true: Features) -> Tensor:
        """Trains one step on features of decoded and true pictures, and returns the loss. Chance level is 8."""
        self.requires_grad_(True)
        with mixed(self.scales.device):
            real, fake = (self([each.detach() for each in features]) for features in (true, made))
        loss = torch.stack([F.relu(1 - r).mean() + F.relu(1 + f).mean() for r, f in zip(real, fake, strict=True)]).sum()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.requires_grad_(False)
        return loss.detach()

    def verdict(self, made: Features) -> Tensor:
        """The adversarial loss of the decoder, which is lower for pictures that look real."""
        with mixed(self.scales.device):
            return -torch.stack([each.mean() for each in self(made)]).mean()


def _head(width: int) -> nn.Sequential:
    layers = [nn.Conv2d(width, 64, 1), nn.Conv2d(64, 64, 3, padding=1), nn.Conv2d(64, 1, 1)]
    first, second, last = (spectral_norm(layer) for layer in layers)
    return nn.Sequential(first, nn.LeakyReLU(0.2), second, nn.LeakyReLU(0.2), last)
