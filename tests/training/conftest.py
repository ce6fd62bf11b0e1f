"""Photographs, networks whose every number is known, and a model small enough to be trained in a moment."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFont
from safetensors.torch import save_file
from torch import nn

from infgen_model import Enlargement, InfGen, Level, edge
from infgen_training import losses
from infgen_training.views import View

TINY = dataclasses.replace(
    edge(),
    name="tiny",
    width=16,
    trunk=(Level(8, 1), Level(8, 1), Level(8, 1), Level(8, 1)),
    enlargements=(Enlargement(1, 0), Enlargement(2, 1), Enlargement(4, 2, finish=2, polish=4)),
    detail=4,
    inpe_features=8,
    heads=2,
    key_width=16,
    mlp_ratio=1,
    levels=(Level(8, 0), Level(8, 1)),
    encoder=(Level(8, 1), Level(8, 1)),
    scale_range=(1.0, 4.0),
)

TEACHER = """
import torch.nn.functional as F
from torch import nn


class Encoder(nn.Module):
    def forward(self, image):
        return F.pad(F.avg_pool2d(image.float(), 8), (0, 0, 0, 0, 0, 29))


class Decoder(nn.Module):
    def forward(self, latent):
        return F.interpolate(latent[:, :3], scale_factor=8)


load_encoder, load_decoder = Encoder, Decoder
"""

ENLARGER = """
import torch
import torch.nn.functional as F
from torch import nn


class Sharp(nn.Module):
    def forward(self, image):
        return 1.5 * F.interpolate(image, scale_factor=4) - 0.25


class Compact(nn.Module):
    def __init__(self, width=8, inner=3):
        super().__init__()
        torch.manual_seed(3)
        layers = [nn.Conv2d(3, width, 3, padding=1), nn.PReLU(width, 0.3)]
        for _ in range(inner):
            layers += [nn.Conv2d(width, width, 3, padding=1), nn.PReLU(width, 0.2)]
        self.body = nn.Sequential(*layers, nn.Conv2d(width, 48, 3, padding=1))


load_x4plus, load_animevideo = Sharp, Compact
"""


def gradient(width: int, height: int, blue: float) -> Image.Image:
    """Red grows to the right, green downwards; blue tells photographs apart."""
    red, green = np.linspace(0, 255, width), np.linspace(0, 255, height)
    planes = np.broadcast_arrays(red[None, :], green[:, None], 255 * blue)
    return Image.fromarray(np.stack(planes, -1).round().astype(np.uint8))


def texture(side: int, seed: int) -> NDArray[np.uint8]:
    """[side, side, 3], something with edges and fine detail."""
    rng = np.random.default_rng(seed)
    mixed = np.zeros((side, side, 3))
    for pixels, share in ((16, 0.7), (4, 0.3)):
        noise = Image.fromarray(rng.integers(0, 256, (-(-side // pixels),) * 2 + (3,), np.uint8))
        mixed += share * np.asarray(noise.resize((side, side), Image.Resampling.NEAREST), float)
    return mixed.round().astype(np.uint8)


def view(seed: int, cells: int = 8, *, sharp: bool = False, photo: bool = True) -> View:
    """As the known teacher gives it: its latent's first three channels are the mean colour of each cell.

    The sharp picture is the negative of the photograph, so that nobody can take one for the other.
    """
    large = texture(32 * cells, seed)
    small = large.reshape(8 * cells, 4, 8 * cells, 4, 3).mean((1, 3)).round().astype(np.uint8)
    colours = small.reshape(cells, 8, cells, 8, 3).mean((1, 3)) / 255
    latent = torch.zeros(32, cells, cells, dtype=torch.float16)
    latent[:3] = torch.from_numpy(colours).permute(2, 0, 1)
    return View(latent, small, large if photo else None, 255 - large if sharp else None)


def some_views() -> list[View]:
    """Of every kind."""
    return [
        *(view(seed) for seed in range(3)),
        *(view(10 + seed, sharp=True) for seed in range(2)),
        view(20, sharp=True, photo=False),
    ]


def tiny_model(seed: int = 0) -> InfGen:
    torch.manual_seed(seed)
    return InfGen(TINY)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder with two photographs."""
    folder = tmp_path / "photos"
    folder.mkdir()
    gradient(300, 200, 0.25).save(folder / "a.png")
    gradient(210, 260, 0.75).save(folder / "b.png")
    return folder


@pytest.fixture
def fonts(tmp_path: Path) -> Path:
    """A folder with one font, which comes with Pillow."""
    folder = tmp_path / "fonts"
    folder.mkdir()
    (folder / "font.ttf").write_bytes(ImageFont.load_default(20).font_bytes)
    return folder


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    """A teacher whose latent is the colour of every cell in channels 0 to 2, and nothing in the other 29."""
    file = tmp_path / "teacher.py"
    file.write_text(TEACHER)
    return file


@pytest.fixture
def enlarger(tmp_path: Path) -> Path:
    """Repeats pixels with more contrast; and a network that fits a tiny model's enlarger."""
    file = tmp_path / "enlarger.py"
    file.write_text(ENLARGER)
    return file


WIDTHS = losses._WIDTHS
"""VGG16's own."""
JUDGED = (8, 16, 32, 64)
"""The widths that the adversary sees of the stand-in."""


@pytest.fixture(scope="session")
def vgg_file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """VGG16 and LPIPS with random weights, in the documented format; an eighth as wide, here and in the package."""
    torch.manual_seed(0)
    tensors, before, index = {}, 3, 0
    for width in (width // 8 for width in WIDTHS):
        if width:
            weight = torch.empty(width, before, 3, 3)
            nn.init.kaiming_normal_(weight)
            tensors[f"features.{index}.weight"] = weight.half()
            tensors[f"features.{index}.bias"] = torch.zeros(width).half()
            before = width
        index += 2 if width else 1
    for tap, width in enumerate((*JUDGED, 64)):
        tensors[f"lin{tap}.weight"] = torch.rand(1, width, 1, 1)
    file = tmp_path_factory.mktemp("vgg") / "vgg.safetensors"
    save_file(tensors, file)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(losses, "_WIDTHS", tuple(width // 8 for width in WIDTHS))
        patch.setattr(losses, "_JUDGED_WIDTHS", JUDGED)
        yield file


@pytest.fixture(scope="session")
def vgg(vgg_file: Path) -> losses.Vgg:
    return losses.Vgg(vgg_file)
