"""Loads the third-party networks that training learns from, from Python files or weights that the user names."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from infgen_rt.errors import InputError
from infgen_training.autoencoders import load_autoencoder

AUTOENCODER = click.Path(exists=True, path_type=Path)
"""The type of every command-line option that takes an autoencoder."""
AUTOENCODER_HELP = (
    "Autoencoder: a Python file with load_encoder() and load_decoder(), or weights of diffusers or TAESD."
)
"""The help text of these options."""


def load_function(file: Path, name: str) -> Callable[[], Any]:
    """Runs a Python file and returns one of its functions. The file's folder is not added to the import path.

    Raises:
        FileNotFoundError: The file does not exist.
        InputError: It is no Python file, or does not define the function.
    """
    if not file.is_file():
        raise FileNotFoundError(f"no Python file at {file}; pass one that defines {name}()")
    spec = importlib.util.spec_from_file_location(f"infgen_user_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise InputError(f"{file} is no Python file: pass one, with the ending .py, that defines {name}()")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    function = getattr(module, name, None)
    if not callable(function):
        raise InputError(f"{file} defines no function {name}()")
    return function


@dataclass(frozen=True)
class Teacher:
    """An autoencoder of a latent space with 8 pixels per cell.

    Attributes:
        encoder: Encodes images [B, 3, 8h, 8w] in [0, 1] to latents [B, C, h, w].
        decoder: Decodes latents to images, whose values may lie slightly outside [0, 1].
    """

    encoder: nn.Module
    decoder: nn.Module

    @classmethod
    def load(cls, file: Path) -> Teacher:
        """Loads an autoencoder.

        Args:
            file: Either a Python file that defines ``load_encoder()`` and ``load_decoder()``, which return frozen
                modules, or a folder or file of weights that ``infgen_training.autoencoders`` can load.

        Raises:
            FileNotFoundError: The file does not exist.
            InputError: The file does not define both functions, or the weights cannot be used.
        """
        if file.suffix == ".py":
            encoder, decoder = (load_function(file, name)() for name in ("load_encoder", "load_decoder"))
        else:
            encoder, decoder = load_autoencoder(file)
        return cls(encoder.eval(), decoder.eval())

    def to(self, device: torch.device) -> Teacher:
        """The teacher on a device. The networks of this teacher are moved as well, because the two share them."""
        return Teacher(self.encoder.to(device), self.decoder.to(device))

    @property
    def channels(self) -> int:
        """Number of channels of the latents. The networks must be on the CPU."""
        return self.encode(torch.zeros(1, 3, 8, 8)).shape[1]

    @torch.inference_mode()
    def encode(self, image: Tensor) -> Tensor:
        """Encodes images of any size. Their last row and column are repeated until they fill whole cells of 8x8 pixels.

        Args:
            image: Images [B, 3, H, W] in [0, 1].

        Returns:
            Latents [B, C, ceil(H / 8), ceil(W / 8)].
        """
        height, width = image.shape[2:]
        return self.encoder(F.pad(image, (0, -width % 8, 0, -height % 8), mode="replicate"))

    @torch.inference_mode()
    def decode(self, latent: Tensor) -> Tensor:
        """Decodes latents [B, C, h, w] to images [B, 3, 8h, 8w], clamped to [0, 1]."""
        return self.decoder(latent).clamp(0, 1)
