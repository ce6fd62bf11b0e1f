"""Losses of decoded pictures: pixel losses, LPIPS with VGG16, and an adversarial loss.

The published recipe is L1 + 0.1 LPIPS + 0.1 adversarial (arXiv 2509.10441, section 4). Here the adversary uses the
features that LPIPS computes anyway (a "projected" discriminator, Sauer et al. 2021). Training is therefore stable, and
cheap enough for two CPU cores.
"""

from __future__ import annotations

import math
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
"""Number of output channels of VGG16's convolutions, in order. 0 stands for a max pooling."""
_TAPS = (3, 8, 15, 22, 29)
"""Indices of the layers whose outputs LPIPS compares."""
_JUDGED = slice(0, 4)
"""The compared layers that the adversary also sees. Their features describe edges and texture, not objects."""
_JUDGED_WIDTHS = (64, 128, 256, 512)
"""Number of channels of the layers that the adversary sees."""

LEAST_LENGTH = 1e-3
"""Constant that is added to the length of a feature vector before dividing by it.

It limits the gradients where features are almost zero, for example in black areas.
"""

Features = Sequence[Tensor]


class Vgg(nn.Module):
    """LPIPS with VGG16 (Zhang et al. 2018), in two steps: the features of a picture, and the distance of two pictures.

    Args:
        file: A safetensors file. It holds torchvision's convolutions as ``features.N.weight`` and ``features.N.bias``,
            and LPIPS's channel weights as ``lin0.weight`` to ``lin4.weight``.

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
        """Computes the features that LPIPS compares.

        Args:
            image: Pictures [B, 3, H, W] in [0, 1], with at least 32 pixels per side.

        Returns:
            Five tensors [B, C, h, w], from the finest resolution to the coarsest.
        """
        x = (2 * image - 1 - self.shift) / self.scale
        taken = []
        for index, layer in enumerate(self.layers):
            x = layer(x)
            if index in _TAPS:
                taken.append(x)
        return taken

    def distance(self, made: Features, true: Features) -> Tensor:
        """LPIPS between two batches of pictures, averaged over the pictures.

        Args:
            made: Features of the decoded pictures, from ``forward``. Only these get a gradient.
            true: Features of the true pictures, of the same shapes.
        """
        parts = [
            _UnitDistance.apply(a, b, self.get_buffer(f"lin{index}").to(a.dtype))  # type: ignore[no-untyped-call]
            for index, (a, b) in enumerate(zip(made, true, strict=True))
        ]
        return torch.stack(parts).sum()


class _UnitDistance(torch.autograd.Function):
    """Weighted squared distance of features that are scaled to unit length at each position.

    The gradient of the scaling is computed in closed form, which takes a few percent of a training step's time on a
    CPU. With autograd, it takes two thirds.
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
        # LEAST_LENGTH does not depend on the features, so it is left out of the derivative of the length.
        along = (weighted * a).sum(1, keepdim=True) / (1 - LEAST_LENGTH * inverse).clamp(min=1e-6)
        return torch.addcmul(weighted, a, along, value=-1) * (inverse * share), None, None


def _unit(x: Tensor) -> tuple[Tensor, Tensor]:
    """The features, scaled to unit length at each position, and the factors by which they were multiplied."""
    length = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=torch.float32)
    inverse = (1 / (length + LEAST_LENGTH)).to(x.dtype)
    return x * inverse, inverse


def gradient_distance(image: Tensor, truth: Tensor) -> Tensor:
    """The L1 distance between differences of neighbouring pixels of two pictures [B, 3, H, W].

    It penalises blur even where the colours are right.
    """
    pairs = ((x[..., :, 1:] - x[..., :, :-1], x[..., 1:, :] - x[..., :-1, :]) for x in (image, truth))
    (across, down), (true_across, true_down) = pairs
    return F.l1_loss(across, true_across) + F.l1_loss(down, true_down)


_SOFTNESS = 0.625
"""Standard deviation, in pixels of the encoded picture, of the blur that sharpening takes away."""


def sharpened(image: Tensor, amount: float, scale: float) -> Tensor:
    """Sharpens enlarged pictures: their difference from a blurred copy is added to them (an unsharp mask).

    A picture that was reduced with a usual filter is softer than the original. A model that enlarges it faithfully
    keeps some of this softness.

    Args:
        image: Pictures [B, 3, H, W] in [0, 1]. The result may exceed this range.
        amount: Share of the difference that is added.
        scale: Size of the pictures relative to the pictures that were encoded.
    """
    deviation = _SOFTNESS * scale
    reach = math.ceil(3 * deviation)
    kernel = torch.exp(-torch.arange(-reach, reach + 1, device=image.device).square() / (2 * deviation**2))
    kernel = (kernel / kernel.sum()).to(image.dtype).expand(image.shape[1], 1, 1, -1)
    blurred = F.pad(image, (reach,) * 4, mode="replicate")
    for each in (kernel, kernel.transpose(2, 3)):
        blurred = F.conv2d(blurred, each, groups=image.shape[1])
    return image + amount * (image - blurred)


_CRISP_SOFTNESS, _CRISP_REACH = 1.5, 2
"""Standard deviation of the blur that `crisp` takes away, and its reach for the values around a pixel, in pixels."""


def crisp(image: Tensor, amount: float) -> Tensor:
    """Makes edges steeper, without bright or dark outlines: an unsharp mask within the values around each pixel.

    A latent often does not tell exactly where an edge is, and the model then blurs the edge. It blurs less if it learns
    from steeper edges.

    Args:
        image: Pictures [B, 3, H, W].
        amount: Share of the difference from a blurred copy that is added.
    """
    side = 2 * _CRISP_REACH + 1
    highest, lowest = (sign * F.max_pool2d(sign * image, side, 1, _CRISP_REACH) for sign in (1, -1))
    return sharpened(image, amount, _CRISP_SOFTNESS / _SOFTNESS).clamp(lowest, highest)


def feature_distance(made: Tensor, true: Tensor) -> Tensor:
    """The L1 distance between features, divided by the mean absolute value of the true features."""
    return F.l1_loss(made, true) / true.abs().mean().clamp(min=1e-6)


_NEAR, _ALONG = 4, 8
"""Side of the areas in which grids are measured, and length of the lines for steps, in blocks of ``factor`` pixels."""
_STRAIGHT = 4 / 255
"""Standard deviation along a line of the true picture up to which the line counts as straight."""


def grid_distance(image: Tensor, truth: Tensor, factor: int) -> Tensor:
    """The strength of a visible grid: the L1 norm of the error pattern that neighbouring blocks of pixels share.

    The enlarger makes each block of ``factor`` x ``factor`` pixels from one position. An error that is the same in all
    blocks repeats as a grid. The eye sees such a grid even if it is too faint to change the other losses.

    Args:
        image: The decoded picture, [B, 3, factor * h, factor * w], where h and w are at least 4.
        truth: The true picture, of the same shape.
        factor: Side of a block in pixels.
    """
    wrong = F.pixel_unshuffle(image - truth, factor).unflatten(1, (image.shape[1], -1))
    alike = F.avg_pool2d(wrong.flatten(1, 2), _NEAR, stride=_NEAR // 2).unflatten(1, wrong.shape[1:3])
    apart: Tensor = alike - alike.mean(2, keepdim=True)
    return apart.abs().mean()


def step_distance(image: Tensor, truth: Tensor, factor: int) -> Tensor:
    """The strength of steps along straight horizontal and vertical edges, which are grids of one row or column.

    It is the L1 norm of the error pattern that the blocks of ``factor`` pixels along a line share, in lines that do not
    vary much in the true picture.

    Args:
        image: The decoded picture, [B, 3, factor * h, factor * w], where h and w are at least 8.
        truth: The true picture, of the same shape.
        factor: Side of a block in pixels.
    """
    return _steps(image, truth, factor) + _steps(image.mT, truth.mT, factor)


def _steps(image: Tensor, truth: Tensor, factor: int) -> Tensor:
    """The part of `step_distance` for rows."""
    along = (1, _ALONG * factor)
    stride = (1, along[1] // 2)
    with torch.no_grad():
        mean, square = (F.avg_pool2d(values, along, stride) for values in (truth, truth.square()))
        weight = torch.exp((mean.square() - square) / _STRAIGHT**2)
    # The positions of a block's pixels in a row are channels, and the row's blocks are next to one another.
    wrong = (image - truth).unflatten(3, (-1, factor)).movedim(4, 2).flatten(1, 2)
    alike = F.avg_pool2d(wrong, (1, _ALONG), (1, _ALONG // 2)).unflatten(1, (-1, factor))
    apart: Tensor = (alike - alike.mean(2, keepdim=True)).abs().mean(2)
    return (weight * apart).mean()


class Adversary(nn.Module):
    """Learns to tell decoded pictures from photographs, by VGG16's features at four depths.

    It uses the hinge loss and spectral normalisation.

    Args:
        device: Device of the adversary.
        lr: Learning rate.

    Attributes:
        optimizer: The adversary's own optimiser.
    """

    scales: Tensor

    def __init__(self, device: torch.device, lr: float) -> None:
        super().__init__()
        self.heads = nn.ModuleList(_head(width) for width in _JUDGED_WIDTHS)
        self.register_buffer("scales", torch.zeros(len(_JUDGED_WIDTHS)))
        self._scaled = False
        self.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = torch.optim.AdamW(self.parameters(), lr, betas=(0.5, 0.98), weight_decay=0.0)
        self.requires_grad_(False)  # gradients are needed only in `learn`

    def forward(self, features: Features) -> list[Tensor]:
        """The score of each position at each of the four depths, [B, 1, h, w]. A higher score means more real."""
        judged = list(features)[_JUDGED]
        if not self._scaled and not self.scales.any():
            # They are set from the first features, so that the heads get values of about 1.
            lengths = [each.detach().float().square().mean().sqrt() for each in judged]
            self.scales.copy_(1 / torch.stack(lengths).clamp(min=1e-6))
        self._scaled = True  # from now on nothing waits for the device to know it
        pairs = zip(self.heads, judged, self.scales, strict=True)
        return [head(each * scale.to(each.dtype)).float() for head, each, scale in pairs]

    def learn(self, made: Features, true: Features) -> Tensor:
        """Trains the adversary for one step.

        Args:
            made: Features of decoded pictures.
            true: Features of true pictures.

        Returns:
            The hinge loss, summed over the four depths. It is 8 if the adversary cannot tell the pictures apart.
        """
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
