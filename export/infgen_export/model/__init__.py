"""The reference model in PyTorch: ``InfGen`` and the frozen ``DecoderConfig`` that describes it."""

from infgen_export.model.config import PRESETS, DecoderConfig, Enlargement, Level, edge, paper
from infgen_export.model.grid import Grid
from infgen_export.model.infgen import InfGen

__all__ = ["PRESETS", "DecoderConfig", "Enlargement", "Grid", "InfGen", "Level", "edge", "paper"]
