"""Distances grow with what they are for, and their gradients are right."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from infgen_rt.errors import InputError
from infgen_training.losses import (
    _TAPS,
    LEAST_LENGTH,
    Adversary,
    Vgg,
    crisp,
    gradient_distance,
    grid_distance,
    sharpened,
    step_distance,
)

from .conftest import JUDGED, WIDTHS

CPU = torch.device("cpu")


def photograph(height: int = 48, width: int = 40) -> Tensor:
    """Something with edges and texture."""
    noise = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    shapes = F.interpolate(noise[:, :, ::12, ::12], size=(height, width))
    return (0.8 * shapes + 0.2 * noise).clamp(0, 1)


def blurred(image: Tensor, times: int) -> Tensor:
    for _ in range(times):
        image = F.avg_pool2d(F.pad(image, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    return image


def plain_lpips(vgg: Vgg, made: Tensor, true: Tensor) -> Tensor:
    """As its authors write it, by autograd."""
    total = made.new_zeros(())
    x, y = ((2 * image - 1 - vgg.shift) / vgg.scale for image in (made, true))
    for index, layer in enumerate(vgg.layers):
        x, y = layer(x), layer(y)
        if index in _TAPS:
            a, b = (each / (each.square().sum(1, keepdim=True).sqrt() + LEAST_LENGTH) for each in (x, y))
            weight = vgg.get_buffer(f"lin{_TAPS.index(index)}")
            total = total + ((a - b).square() * weight).sum(1).mean()
    return total


def test_the_network_is_vgg16() -> None:
    """By its parameters, as its authors count them without the layers that classify."""
    before, count = 3, 0
    for width in filter(None, WIDTHS):
        count, before = count + width * (9 * before + 1), width
    assert count == 14_714_688


@pytest.mark.parametrize("scale", [1.5, 2.0, 4.0])
def test_sharpening_brings_a_soft_picture_nearer_to_the_original(scale: float) -> None:
    truth = F.interpolate(photograph(), scale_factor=scale, mode="bicubic").clamp(0.1, 0.9)
    soft = F.interpolate(
        F.interpolate(truth, scale_factor=1 / scale, mode="area"), size=truth.shape[2:], mode="bicubic"
    )
    assert F.l1_loss(sharpened(soft, 0.4, scale), truth) < F.l1_loss(soft, truth)
    assert sharpened(truth, 0.0, scale).equal(truth)
    flat = torch.full((1, 3, 9, 7), 0.3)
    assert torch.allclose(sharpened(flat, 2.0, scale), flat)


def test_crisp_edges_are_steeper_and_have_no_outlines() -> None:
    edge = torch.zeros(1, 3, 24, 24)
    edge[..., 12:] = 1
    soft = blurred(edge, 2)
    steeper = crisp(soft, 1.0)
    assert F.l1_loss(steeper, edge) < 0.7 * F.l1_loss(soft, edge)
    assert steeper.min() == 0 and steeper.max() == 1, "no value outside of those around it"
    assert crisp(soft, 0.0).equal(soft)
    texture = photograph()
    around = F.max_pool2d(texture, 5, 1, 2)
    assert (crisp(texture, 3.0) <= around).all() and (crisp(-texture, 3.0) <= F.max_pool2d(-texture, 5, 1, 2)).all()


def test_a_blurrier_picture_is_farther_away(vgg: Vgg) -> None:
    truth = photograph()
    true = vgg(truth)
    values = [vgg.distance(vgg(blurred(truth, times)), true).item() for times in range(4)]
    assert values[0] == 0 and values == sorted(values) and values[1] > 1e-3


def test_the_distance_and_its_gradient_are_those_of_lpips(vgg: Vgg) -> None:
    truth = photograph()
    images = [blurred(truth, 1).requires_grad_() for _ in range(2)]
    ours, theirs = vgg.distance(vgg(images[0]), vgg(truth)), plain_lpips(vgg, images[1], truth)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    for value in (ours, theirs):
        (3 * value).backward()
    mine, expected = (image.grad for image in images)
    assert mine is not None and expected is not None and expected.abs().max() > 0
    assert (mine - expected).norm() < 1e-4 * expected.norm()


def test_the_gradient_is_right_for_features_of_any_direction(vgg: Vgg) -> None:
    generator = torch.Generator().manual_seed(0)
    made, true = ([torch.randn(2, width, 5, 3, generator=generator) for width in (*JUDGED, 64)] for _ in range(2))
    made[0][:, :, 0] = 0  # where nothing is seen
    ours, theirs = ([each.clone().requires_grad_() for each in made] for _ in range(2))
    vgg.distance(ours, true).backward()
    parts = []
    for index, (a, b) in enumerate(zip(theirs, true, strict=True)):
        a, b = (each / (torch.linalg.vector_norm(each, dim=1, keepdim=True) + LEAST_LENGTH) for each in (a, b))
        parts.append(((a - b).square() * vgg.get_buffer(f"lin{index}")).sum(1).mean())
    torch.stack(parts).sum().backward()
    for a, b in zip(ours, theirs, strict=True):
        assert a.grad is not None and b.grad is not None and a.grad.isfinite().all()
        assert torch.allclose(a.grad[:, :, 1:], b.grad[:, :, 1:], rtol=1e-4, atol=1e-8)


def test_mixed_precision_hardly_changes_a_distance(vgg: Vgg) -> None:
    truth = photograph()
    with torch.autocast("cpu", torch.bfloat16):
        features = [vgg(image) for image in (blurred(truth, 1), truth)]
    value = vgg.distance(*features)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(vgg.distance(vgg(blurred(truth, 1)), vgg(truth)).item(), rel=0.05)


def test_descending_the_distance_leads_to_the_true_picture(vgg: Vgg) -> None:
    truth = photograph(32, 32)[:1]
    image = blurred(truth, 2).requires_grad_()
    optimizer, true = torch.optim.Adam([image], 0.01), vgg(truth)
    values = []
    for _ in range(8):
        optimizer.zero_grad()
        values.append(vgg.distance(vgg(image), true))
        values[-1].backward()
        optimizer.step()
    assert values[-1] < 0.8 * values[0]
    assert all(parameter.grad is None for parameter in vgg.parameters())


def test_gradients_see_blur_and_not_a_cast() -> None:
    truth = F.interpolate(photograph()[:, :, ::12, ::12], scale_factor=12)
    values = [gradient_distance(blurred(truth, times), truth).item() for times in (0, 1, 6)]
    assert values[0] == 0 and values == sorted(values)
    assert values[1] > 1.5 * F.l1_loss(blurred(truth, 1), truth).item()
    assert gradient_distance(truth + 0.25, truth) < 1e-6
    # One edge in four pixels across, none down.
    edge = torch.zeros(1, 1, 4, 5)
    edge[..., 3:] = 1
    assert gradient_distance(edge, torch.zeros_like(edge)).item() == pytest.approx(1 / 4)


def heads(adversary: Adversary) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in adversary.parameters()]


def features(image: Tensor) -> list[Tensor]:
    """Stand-ins for VGG16's, at the depths that the adversary sees."""
    layers = [F.avg_pool2d(image, factor).repeat(1, width // 3 + 1, 1, 1)[:, :width] for factor, width in DEPTHS]
    return [*(10 * layer for layer in layers), image]


DEPTHS = tuple(zip((1, 2, 4, 8), JUDGED, strict=True))


def verdicts(adversary: Adversary, given: Sequence[Tensor]) -> Tensor:
    with torch.no_grad():
        return torch.stack([each.mean() for each in adversary(given)])


def test_a_grid_is_seen_and_noise_of_the_same_size_is_not() -> None:
    truth = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    grid = torch.zeros(1, 3, 64, 64)
    grid[..., ::4, ::4] = 0.1
    noise = grid.flatten()[torch.randperm(grid.numel(), generator=torch.Generator().manual_seed(2))].view_as(grid)
    assert grid_distance(truth, truth, 4) == 0
    assert grid_distance(truth + 0.1, truth, 4) < 1e-6, "a colour that is off is no grid"
    of_grid, of_noise = (grid_distance(truth + each, truth, 4).item() for each in (grid, noise))
    assert of_grid > 1.5 * of_noise


@pytest.mark.parametrize("down", [False, True])
def test_steps_along_one_straight_edge_are_seen_and_noise_at_the_edge_is_not(down: bool) -> None:
    truth = torch.zeros(1, 3, 64, 64)
    truth[..., 33:, :] = 1
    steps = torch.zeros(1, 3, 64, 64)
    steps[..., 32, ::4] = 0.1
    noise = torch.zeros(1, 3, 64, 64)
    noise[..., 32, :] = steps[..., 32, torch.randperm(64, generator=torch.Generator().manual_seed(2))]
    if down:
        truth, steps, noise = (each.mT for each in (truth, steps, noise))
    of_steps, of_noise = (step_distance(truth + each, truth, 4).item() for each in (steps, noise))
    assert of_steps > 3 * of_noise
    assert step_distance(truth + 0.1, truth, 4) < 1e-6, "a colour that is off is no step"
    texture = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    assert step_distance(texture + steps, texture, 4) < 1e-6, "texture hides steps"


def test_the_adversary_learns_to_tell(vgg: Vgg) -> None:
    adversary, truth = Adversary(CPU, 5e-3), photograph(24, 24)
    true, made = features(truth), features(1 - truth)
    losses = [adversary.learn(made, true).item() for _ in range(25)]
    assert losses[0] == pytest.approx(8, abs=0.9) and losses[-1] < losses[0] - 1
    assert (verdicts(adversary, true) > verdicts(adversary, made)).all()
    assert adversary.verdict(true) < adversary.verdict(made)


def test_features_are_brought_to_one_size_for_the_adversary(vgg: Vgg) -> None:
    adversary, truth = Adversary(CPU, 2e-4), photograph()
    adversary(features(truth))
    for scale, each in zip(adversary.scales, features(truth)[:4], strict=True):
        assert scale.item() == pytest.approx(1 / each.square().mean().sqrt().item(), rel=1e-4)
    before = adversary.scales.clone()
    adversary(features(0.1 * truth))
    assert adversary.scales.equal(before)


@pytest.mark.parametrize("learnt", [False, True])
def test_a_verdict_teaches_what_is_judged_and_not_the_judge(learnt: bool, vgg: Vgg) -> None:
    adversary, truth = Adversary(CPU, 1e-3), photograph()
    image = blurred(truth, 2).requires_grad_()
    if learnt:
        before = heads(adversary)
        adversary.learn(features(image), features(truth))
        assert image.grad is None
        assert not all(a.equal(b) for a, b in zip(before, heads(adversary), strict=True))
        assert all(parameter.grad is None or not parameter.requires_grad for parameter in adversary.parameters())
    before, gradients = heads(adversary), [parameter.grad for parameter in adversary.parameters()]
    gradients = [None if each is None else each.clone() for each in gradients]
    adversary.verdict(features(image)).backward()
    assert image.grad is not None and image.grad.abs().sum() > 0
    assert all(a.equal(b) for a, b in zip(before, heads(adversary), strict=True))
    for parameter, gradient in zip(adversary.parameters(), gradients, strict=True):
        assert (parameter.grad is None) == (gradient is None)
        assert parameter.grad is None or gradient is None or parameter.grad.equal(gradient)


@pytest.mark.parametrize("damage", ["missing", "cut", "other", "shape"])
def test_a_damaged_file_is_named(vgg_file: Path, tmp_path: Path, damage: str) -> None:
    file = tmp_path / "weights.safetensors"
    if damage == "cut":
        file.write_bytes(vgg_file.read_bytes()[:5000])
    elif damage != "missing":
        tensors = load_file(vgg_file)
        tensors |= {"features.0.weight": torch.zeros(8, 4, 3, 3)} if damage == "shape" else {}
        save_file({k: v for k, v in tensors.items() if k != "lin2.weight" or damage != "other"}, file)
    with pytest.raises(InputError, match=r"weights\.safetensors does not hold VGG16 and LPIPS's weights: "):
        Vgg(file)
