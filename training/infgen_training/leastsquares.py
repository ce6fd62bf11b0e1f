"""Linear least squares in closed form, for layers that are fitted instead of trained."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_RIDGE = 1e-4
"""Ridge regularisation: this share of the diagonal's mean is added to the diagonal of the normal equations."""


class LeastSquares:
    """Fits a linear function with a bias that maps inputs to targets.

    The data may come in any number of batches. Memory use does not grow with them, because only the normal equations
    are kept.
    """

    def __init__(self) -> None:
        self._square: Tensor | None = None
        self._cross: Tensor | None = None

    def add(self, inputs: Tensor, targets: Tensor) -> None:
        """Adds a batch.

        Args:
            inputs: The inputs, one per column, [n, count].
            targets: The targets of these inputs, [m, count].
        """
        a, b = inputs.double(), targets.double()
        a = torch.cat([a, a.new_ones(1, a.shape[1])])
        square, cross = a @ a.T, a @ b.T
        self._square = square if self._square is None else self._square + square
        self._cross = cross if self._cross is None else self._cross + cross

    def solve(self) -> tuple[Tensor, Tensor]:
        """The weight [m, n] and the bias [m] with the smallest squared error, both float64.

        At least one batch must have been added.
        """
        assert self._square is not None and self._cross is not None
        ridge = _RIDGE * self._square.diagonal().mean() * torch.eye(len(self._square), dtype=self._square.dtype)
        solved = torch.linalg.solve(self._square + ridge, self._cross)
        return solved[:-1].T, solved[-1]

    def set(self, layer: nn.Module) -> None:
        """Sets the weight and the bias of a convolution to the solution.

        Args:
            layer: A convolution with a bias. The inputs must have been its patches, in the layout of ``F.unfold``.
        """
        assert isinstance(layer, nn.Conv2d) and layer.bias is not None
        weight, bias = self.solve()
        with torch.no_grad():
            layer.weight.copy_(weight.reshape(layer.weight.shape))
            layer.bias.copy_(bias)
