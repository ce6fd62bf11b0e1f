"""Frozen third-party networks that training learns from, loaded from Python files or weights of the user's choice."""

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
"""The type of the commands' option for an autoencoder."""
AUTOENCODER_HELP = (
    "Autoencoder: a Python file with load_encoder() and load_decoder(), or weights of diffusers or TAESD."
)
"""The help text of that option."""


def load_function(file: Path, name: str) -> Callable[[], Any]:
    """Loads a function from a Python file. The file's folder is not added to the import path.

    Raises:
        FileNotFoundError: The file does not exist.
        InputError: The file lacks the function.
    """
    if not file.is_file():
        raise FileNotFoundError(f"no Python file at {file}; pass one that defines {name}()")
    spec = importlib.util.spec_from_file_location(f"infgen_user_{file.stem}", file)
    assert spec is not None and spec.loader is not None
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
        encoder: Encodes an image [B, 3, 8h, 8w] in [0, 1] to a latent [B, C, h, w].
        decoder: Decodes a latent to an image, about [0, 1].
    """

    encoder: nn.Module
    decoder: nn.Module

    @classmethod
    def load(cls, file: Path) -> Teacher:
        """Loads an autoencoder.

        Args:
            file: A Python file with ``load_encoder()`` and ``load_decoder()``, which return frozen modules; or a folder
                or file of weights (``infgen_training.autoencoders``).

        Raises:
            FileNotFoundError: The file does not exist.
            InputError: The file lacks one of the two functions, or the weights cannot be used.
        """
        if file.is_dir() or file.suffix in (".safetensors", ".pth"):
            encoder, decoder = load_autoencoder(file)
        else:
            encoder, decoder = (load_function(file, name)() for name in ("load_encoder", "load_decoder"))
        return cls(encoder.eval(), decoder.eval())

    def to(self, device: torch.device) -> Teacher:
        """The same teacher on a device."""
        return Teacher(self.encoder.to(device), self.decoder.to(device))

    @property
    def channels(self) -> int:
        """Number of channels of its latents."""
        return self.encode(torch.zeros(1, 3, 8, 8)).shape[1]

    @torch.inference_mode()
    def encode(self, image: Tensor) -> Tensor:
        """Encodes images [B, 3, H, W] in [0, 1] of any size. The last rows and columns are repeated to whole cells."""
        height, width = image.shape[2:]
        return self.encoder(F.pad(image, (0, -width % 8, 0, -height % 8), mode="replicate"))

    @torch.inference_mode()
    def decode(self, latent: Tensor) -> Tensor:
        """Decodes latents to images in [0, 1]."""
        return self.decoder(latent).clamp(0, 1)
