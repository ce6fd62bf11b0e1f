"""The reference model in PyTorch: ``InfGen`` and the frozen ``DecoderConfig`` that describes it."""

from infgen_model.config import PRESETS, DecoderConfig, Enlargement, Level, edge, paper
from infgen_model.grid import Grid
from infgen_model.infgen import InfGen

__all__ = ["PRESETS", "DecoderConfig", "Enlargement", "Grid", "InfGen", "Level", "edge", "paper"]
