"""Photographs and a teacher whose every number is known."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

TEACHER = """
import torch.nn.functional as F
from torch import nn


class Encoder(nn.Module):
    def forward(self, image):
        return F.pad(F.avg_pool2d(image.float(), 8), (0, 0, 0, 0, 0, 29))


class Decoder(nn.Module):
    def forward(self, latent):
        return F.interpolate(3 * latent[:, :3] - 1, scale_factor=8)


def load_encoder():
    return Encoder()


def load_decoder():
    return Decoder()
"""


def gradient(width: int, height: int, blue: float) -> Image.Image:
    """Red grows to the right, green downwards; blue tells photographs apart."""
    red, green = np.linspace(0, 255, width), np.linspace(0, 255, height)
    planes = np.broadcast_arrays(red[None, :], green[:, None], 255 * blue)
    return Image.fromarray(np.stack(planes, -1).round().astype(np.uint8))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder with two photographs."""
    folder = tmp_path / "photos"
    folder.mkdir()
    gradient(300, 200, 0.25).save(folder / "a.png")
    gradient(210, 260, 0.75).save(folder / "b.png")
    return folder


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    """A teacher whose latent is the colour of every cell in channels 0 to 2, and nothing in the other 29."""
    file = tmp_path / "teacher.py"
    file.write_text(TEACHER)
    return file
