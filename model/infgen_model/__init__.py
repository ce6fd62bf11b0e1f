"""The reference model in PyTorch: ``InfGen``, and the frozen ``DecoderConfig`` that describes it.

Examples:
    >>> import torch
    >>> from infgen_model import InfGen, edge
    >>> model = InfGen(edge()).eval()
    >>> with torch.inference_mode():
    ...     image = model(torch.randn(1, 32, 4, 6), size=(50, 90))
    >>> image.shape
    torch.Size([1, 3, 50, 90])
"""

from infgen_model.config import DecoderConfig, Enlargement, Level
from infgen_model.grid import Grid
from infgen_model.infgen import InfGen
from infgen_model.presets import PRESETS, edge, paper

__all__ = ["PRESETS", "DecoderConfig", "Enlargement", "Grid", "InfGen", "Level", "edge", "paper"]
