"""The frozen autoencoder that makes latents of photographs, loaded from a Python file of the user's choice."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Teacher:
    """An autoencoder of some latent space, 8 px a cell.

    Attributes:
        encoder: Image [B, 3, 8h, 8w] in [0, 1] to latent [B, C, h, w].
        decoder: The way back, about [0, 1].
    """

    encoder: nn.Module
    decoder: nn.Module

    @classmethod
    def load(cls, file: Path) -> Teacher:
        """Imports ``file``, which must define ``load_encoder()`` and ``load_decoder()`` returning frozen modules.

        Raises:
            FileNotFoundError: There is no such file.
            AttributeError: It lacks one of the two functions.
        """
        if not file.is_file():
            raise FileNotFoundError(
                f"no teacher at {file}; pass the Python file that defines load_encoder, load_decoder"
            )
        spec = importlib.util.spec_from_file_location("infgen_teacher", file)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return cls(module.load_encoder().eval(), module.load_decoder().eval())

    @torch.inference_mode()
    def encode(self, image: Tensor) -> Tensor:
        """Encodes images [B, 3, H, W] in [0, 1] of any size; edges are repeated up to whole cells."""
        height, width = image.shape[2:]
        return self.encoder(F.pad(image, (0, -width % 8, 0, -height % 8), mode="replicate"))

    @torch.inference_mode()
    def decode(self, latent: Tensor) -> Tensor:
        """Decodes latents to images in [0, 1]."""
        return self.decoder(latent).clamp(0, 1)
