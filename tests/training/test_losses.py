"""Distances grow with what they are for, and the whole published recipe trains and resumes."""

import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from infgen_rt.errors import InputError
from infgen_training.config import PERCEPTUAL
from infgen_training.losses import (
    Adversary,
    PatchDiscriminator,
    fourier_distance,
    perceptual_distance,
    pyramid_distance,
)

CPU = torch.device("cpu")
SUBSTITUTES = [kind for kind in PERCEPTUAL if kind != "lpips"]


def encoder() -> nn.Sequential:
    """Three features, at 1, 1/2 and 1/4 of the picture's size."""
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU()]
    for _ in range(2):
        layers += [nn.Conv2d(8, 8, 3, padding=1, stride=2), nn.ReLU()]
    return nn.Sequential(*layers)


def photograph(height: int = 72, width: int = 60) -> Tensor:
    """Something with edges and texture."""
    noise = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    shapes = F.interpolate(noise[:, :, ::12, ::12], size=(height, width))
    return (0.8 * shapes + 0.2 * noise).clamp(0, 1)


def blurred(image: Tensor, times: int) -> Tensor:
    for _ in range(times):
        image = F.avg_pool2d(F.pad(image, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    return image


@pytest.mark.parametrize("kind", SUBSTITUTES)
def test_a_blurrier_picture_is_farther_away(kind: str) -> None:
    distance, truth = perceptual_distance(kind, encoder(), CPU), photograph()
    values = [distance(blurred(truth, times), truth).item() for times in range(4)]
    assert values[0] == pytest.approx(0, abs=1e-6)
    assert values == sorted(values) and values[1] > 1e-3


@pytest.mark.parametrize("kind", SUBSTITUTES)
def test_descending_a_distance_leads_to_the_true_picture(kind: str) -> None:
    distance, truth = perceptual_distance(kind, encoder(), CPU), photograph()
    image = blurred(truth, 2).requires_grad_()
    optimizer = torch.optim.Adam([image], 0.01)
    first = distance(image, truth)
    for _ in range(20):
        optimizer.zero_grad()
        distance(image, truth).backward()
        optimizer.step()
    assert distance(image, truth) < 0.7 * first
    assert all(parameter.grad is None for parameter in getattr(distance, "parameters", list)())


@pytest.mark.parametrize("kind", SUBSTITUTES)
def test_mixed_precision_hardly_changes_a_distance(kind: str) -> None:
    """Differences of large, nearly equal numbers would have nothing left in bfloat16, and even turn negative."""
    distance, truth = perceptual_distance(kind, encoder(), CPU), photograph()
    image = blurred(truth, 1)
    with torch.autocast("cpu", torch.bfloat16):
        value = distance(image, truth)
    assert value.item() == pytest.approx(distance(image, truth).item(), rel=0.05)


def test_reduced_pictures_tell_a_cast_from_noise() -> None:
    """Of a cast and of noise that L1 finds alike, they see the cast alone."""
    truth = torch.full((1, 3, 64, 48), 0.5)
    noise = 0.02 * torch.sign(torch.randn(truth.shape, generator=torch.Generator().manual_seed(0)))
    cast = torch.tensor([0.02, -0.02, 0.02]).reshape(3, 1, 1)
    assert F.l1_loss(truth + noise, truth).isclose(F.l1_loss(truth + cast, truth), rtol=1e-3)
    assert pyramid_distance(truth + cast, truth).isclose(torch.tensor(0.02), rtol=1e-3)
    assert pyramid_distance(truth + noise, truth) < 0.004
    # Of a tile that is smaller than 16 pixels there is less to reduce.
    assert pyramid_distance((truth + cast)[..., :9], truth[..., :9]).isclose(torch.tensor(0.02), rtol=1e-3)
    with pytest.raises(InputError, match="tiles of 4 pixels a side or more"):
        pyramid_distance(truth[..., :3], truth[..., :3])


def test_fourier_magnitudes_do_not_mind_where_a_detail_is() -> None:
    truth = photograph()
    moved = truth.roll((5, 9), (2, 3))
    assert fourier_distance(moved, truth) < 1e-5 < F.l1_loss(moved, truth)


@pytest.mark.parametrize("size", [(16, 16), (23, 96), (170, 40)])
@pytest.mark.parametrize("kind", SUBSTITUTES)
def test_tiles_of_any_size_can_be_compared(kind: str, size: tuple[int, int]) -> None:
    truth = photograph(*size)
    distance = perceptual_distance(kind, encoder(), CPU)
    assert distance(truth, truth).item() == pytest.approx(0, abs=1e-6)
    assert 0 < distance(blurred(truth, 2), truth).item() < 2


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("teacher", "encoder is a torch.nn.Sequential"),
        ("lpips", "perceptual=teacher needs neither"),
        ("vgg", "expected one of lpips, teacher, ms_ssim, fourier"),
    ],
)
def test_what_is_not_at_hand_is_told(kind: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(InputError, match=text):
        perceptual_distance(kind, None, CPU)


def test_lpips_is_called_as_its_documentation_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package's backbone is a download; this stands in for it and checks the range that it is told."""
    (tmp_path / "lpips.py").write_text(
        "import torch\n"
        "class LPIPS(torch.nn.Module):\n"
        "    def __init__(self, net, verbose):\n"
        "        super().__init__()\n"
        "    def forward(self, image, truth, normalize=False):\n"
        "        assert normalize, 'pictures are in [0, 1]'\n"
        "        return (image - truth).abs().mean((1, 2, 3), keepdim=True)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "lpips", raising=False)
    distance, truth = perceptual_distance("lpips", None, CPU), photograph()
    assert distance(truth + 0.25, truth).item() == pytest.approx(0.25)


def test_a_verdict_is_about_a_patch_of_70_pixels() -> None:
    discriminator = PatchDiscriminator(8).eval()
    image = torch.rand(1, 3, 256, 256, requires_grad=True)
    verdicts = discriminator(image)
    assert verdicts.shape == (1, 1, 30, 30)
    verdicts[0, 0, 15, 15].backward()
    seen = torch.nonzero(image.grad[0].abs().sum((0, 1)))[:, 0]  # type: ignore[index]
    assert seen.max() - seen.min() + 1 == 70


def test_the_adversary_learns_to_tell_and_judges_without_learning_from_the_decoder() -> None:
    torch.manual_seed(0)
    adversary, truth = Adversary(CPU, 1e-4), photograph()
    image = blurred(truth, 2).requires_grad_()

    @torch.no_grad()
    def told_apart() -> float:
        return (adversary.discriminator(truth) - adversary.discriminator(image)).mean().item()

    before = told_apart()
    for _ in range(25):
        adversary(image, truth)
    assert told_apart() > before + 0.2
    adversary.optimizer.zero_grad()
    adversary(image, truth).backward()
    assert image.grad is not None and image.grad.abs().sum() > 0
