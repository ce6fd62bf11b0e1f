"""What a decoded tile should be like: distances to the true pixels, and a discriminator that learns to tell them apart.

The published recipe is L1 + 0.1 LPIPS + 0.1 adversarial (arXiv 2509.10441, section 4). LPIPS needs the weights of a
network that was trained on ImageNet; where they are not at hand, the other distances here take its place.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from pytorch_msssim import ssim
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from infgen_rt.errors import InputError
from infgen_training.config import PERCEPTUAL

Distance = Callable[[Tensor, Tensor], Tensor]
"""Pictures [B, 3, H, W], about [0, 1], and the true ones, to one number."""

_WINDOW = 11
_REDUCTIONS = (4, 8, 16)
_SCALES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)


def perceptual_distance(kind: str, encoder: nn.Module | None, device: torch.device) -> Distance:
    """The perceptual distance of a name.

    Args:
        kind: ``"lpips"``; ``"teacher"``, the features of the frozen teacher's encoder; ``"ms_ssim"``; ``"fourier"``.
        encoder: The teacher's, for ``"teacher"``.
        device: Where pictures will be.

    Raises:
        InputError: What the distance needs is not at hand.
    """
    if kind == "ms_ssim":
        return structural_distance
    if kind == "fourier":
        return fourier_distance
    if kind == "teacher":
        if not isinstance(encoder, nn.Sequential):
            raise InputError("perceptual=teacher needs a teacher whose encoder is a torch.nn.Sequential")
        return FeatureDistance(encoder).to(device)
    if kind == "lpips":
        return _lpips(device)
    raise InputError(f"unknown perceptual distance {kind!r}: expected one of {', '.join(PERCEPTUAL)}")


def structural_distance(image: Tensor, truth: Tensor) -> Tensor:
    """1 - SSIM, averaged over the picture and its halves as long as SSIM's window of 11 pixels fits (at most five).

    Weights are those of MS-SSIM (Wang et al. 2003), which takes no picture of less than 161 pixels a side; tiles are
    smaller.
    """
    # Blurs of three channels take less than half the time in this layout (measured on a CPU).
    image, truth = (picture.contiguous(memory_format=torch.channels_last) for picture in (image.clamp(0, 1), truth))
    distances = []
    # Variances are small differences of large means: in bfloat16 nothing of them is left.
    with torch.autocast(image.device.type, enabled=False):
        for weight in _SCALES:
            if min(image.shape[2:]) < _WINDOW:
                break
            distances.append(weight * (1 - ssim(image, truth, data_range=1.0, win_size=_WINDOW)))
            image, truth = (F.avg_pool2d(picture, 2) for picture in (image, truth))
    if not distances:
        raise InputError(f"perceptual=ms_ssim needs tiles of {_WINDOW} pixels a side or more")
    return torch.stack(distances).sum() / sum(_SCALES[: len(distances)])


def fourier_distance(image: Tensor, truth: Tensor) -> Tensor:
    """Mean difference of Fourier magnitudes: how much there is of each frequency, wherever it is."""
    magnitudes = (torch.fft.rfft2(picture, norm="ortho").abs() for picture in (image, truth))
    return F.l1_loss(*magnitudes)


def pyramid_distance(image: Tensor, truth: Tensor) -> Tensor:
    """L1 of the pictures reduced 4, 8 and 16 times, as long as something is left: of colour and shade.

    A cast of a few levels hardly turns the gradient of L1 of pixels, where errors of detail are so much larger.
    """
    distances = []
    for factor in _REDUCTIONS:
        if min(image.shape[2:]) < factor:
            break
        distances.append(F.l1_loss(F.avg_pool2d(image, factor), F.avg_pool2d(truth, factor)))
    if not distances:
        raise InputError(f"pyramid_weight needs tiles of {_REDUCTIONS[0]} pixels a side or more")
    return torch.stack(distances).mean()


class FeatureDistance(nn.Module):
    """Distance of the features of a frozen encoder, each position's scaled to unit length as LPIPS does.

    Features are taken before every layer that halves the picture, and after the last layer.
    """

    def __init__(self, encoder: nn.Sequential) -> None:
        super().__init__()
        self.parts = nn.ModuleList()
        part: list[nn.Module] = []
        for layer in encoder:
            if part and getattr(layer, "stride", None) in (2, (2, 2)):
                self.parts.append(nn.Sequential(*part))
                part = []
            part.append(layer)
        self.parts.append(nn.Sequential(*part))
        self.requires_grad_(False)

    def forward(self, image: Tensor, truth: Tensor) -> Tensor:
        """See ``Distance``."""
        height, width = image.shape[2:]
        features = torch.cat([image, truth])
        # The encoder halves its input a few times: sides must divide.
        features = F.pad(features, (0, -width % 16, 0, -height % 16), mode="replicate")
        distances = []
        for part in self.parts:
            features = part(features)
            made, true = F.normalize(features.float(), dim=1).chunk(2)
            distances.append((made - true).square().sum(1).mean())
        return torch.stack(distances).mean()


def _lpips(device: torch.device) -> Distance:
    try:
        import lpips
    except ImportError as error:
        raise InputError(
            "perceptual=lpips needs the packages lpips and torchvision (pip install lpips), and downloads weights; "
            "perceptual=teacher needs neither"
        ) from error
    try:
        network = lpips.LPIPS(net="vgg", verbose=False).to(device).requires_grad_(False)
    except Exception as error:  # whatever the download raises
        raise InputError(f"the weights for perceptual=lpips are not to be had: {error}") from error
    return lambda image, truth: network(image, truth, normalize=True).mean()


class PatchDiscriminator(nn.Sequential):
    """PatchGAN (Isola et al. 2017): for patches of 70x70 pixels, how real each looks: [B, 1, ~H/8, ~W/8].

    Spectral normalisation instead of batch statistics, so that a patch is judged by itself.
    """

    def __init__(self, width: int = 64) -> None:
        layers: list[nn.Module] = []
        before = 3
        for index, after in enumerate((width, 2 * width, 4 * width, 8 * width)):
            layers += [spectral_norm(nn.Conv2d(before, after, 4, stride=2 if index < 3 else 1, padding=1))]
            layers += [nn.LeakyReLU(0.2)]
            before = after
        super().__init__(*layers, spectral_norm(nn.Conv2d(before, 1, 4, padding=1)))


class Adversary:
    """A discriminator that learns, on every tile it is shown, to tell decoded from true pixels (hinge loss).

    Args:
        device: Where pictures will be.
        lr: Its learning rate, constant.

    Attributes:
        discriminator: Its network.
        optimizer: What teaches it.
    """

    def __init__(self, device: torch.device, lr: float) -> None:
        self.discriminator = PatchDiscriminator().to(device)
        self.optimizer = torch.optim.AdamW(self.discriminator.parameters(), lr, betas=(0.5, 0.9))

    def __call__(self, image: Tensor, truth: Tensor) -> Tensor:
        """Learns from a tile, then judges it: what the decoder adds to its loss, less for tiles taken for real."""
        real, made = (self.discriminator(picture).float() for picture in (truth, image.detach()))
        loss = (F.relu(1 - real).mean() + F.relu(1 + made).mean()) / 2
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.discriminator.requires_grad_(False)
        verdict: Tensor = -self.discriminator(image).float().mean()
        self.discriminator.requires_grad_(True)
        return verdict
