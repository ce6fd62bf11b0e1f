"""Linear least squares in closed form, for layers that are fitted rather than trained."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_RIDGE = 1e-4
"""Regularisation: added to the diagonal of the normal equations, relative to the diagonal's mean."""


class LeastSquares:
    """Fits targets by a linear function of inputs, from any number of batches. Only the normal equations are kept."""

    def __init__(self) -> None:
        self._square: Tensor | None = None
        self._cross: Tensor | None = None

    def add(self, inputs: Tensor, targets: Tensor) -> None:
        """Adds inputs [n, count] with their targets [m, count]."""
        a, b = inputs.double(), targets.double()
        a = torch.cat([a, a.new_ones(1, a.shape[1])])
        square, cross = a @ a.T, a @ b.T
        self._square = square if self._square is None else self._square + square
        self._cross = cross if self._cross is None else self._cross + cross

    def solve(self) -> tuple[Tensor, Tensor]:
        """The weight [m, n] and the bias [m] with the smallest squared error, float64. Needs a batch."""
        assert self._square is not None and self._cross is not None
        ridge = _RIDGE * self._square.diagonal().mean() * torch.eye(len(self._square), dtype=self._square.dtype)
        solved = torch.linalg.solve(self._square + ridge, self._cross)
        return solved[:-1].T, solved[-1]

    def set(self, layer: nn.Module) -> None:
        """Sets a convolution with a bias to the solution, whose inputs were patches as ``F.unfold`` gives them."""
        assert isinstance(layer, nn.Conv2d) and layer.bias is not None
        weight, bias = self.solve()
        with torch.no_grad():
            layer.weight.copy_(weight.reshape(layer.weight.shape))
            layer.bias.copy_(bias)
