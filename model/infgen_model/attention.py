"""Cross-attention from tokens to latent cells, either to all of them or to those within a radius.

Tokens and cells lie on two grids in the same coordinates, in which cell i has its centre at i + 0.5. All forms of
attention use the same projections and a continuous two-dimensional rotary embedding of the coordinates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from infgen_model.grid import Axis, Grid, Places

MASKED = -1e4
"""Score of a cell that must not be seen. Its weight is exactly zero in float32, and the score still fits float16."""


@dataclass(frozen=True)
class Neighbours:
    """For each token along one axis, the K cells around it.

    Attributes:
        centre: [n] int64, the position in the context crop of the cell that contains the token's centre. The last token
            of a picture may have its centre beyond the latent. The position may then be beyond the crop, by less than
            half of K. Cells beyond the latent are masked by ``bias``.
        bias: [n, K], added to the scores: the logarithm of a window that fades out at the radius.
    """

    centre: Tensor
    bias: Tensor

    @classmethod
    def of(cls, axis: Axis, radius: float) -> Neighbours:
        """Finds the neighbours of each token.

        Args:
            axis: The tokens and the cells.
            radius: Radius in cells.
        """
        token, key = axis.token, axis.key
        reach = reach_of(radius)
        offsets = torch.arange(-reach, reach + 1, device=token.device, dtype=token.dtype)
        cell = torch.floor(token)[:, None] + offsets
        inside = (cell >= 0) & (cell < axis.extent)
        bias = torch.where(inside, _window(token[:, None], cell + 0.5, radius), MASKED)
        centre = torch.clamp(torch.floor(token) - torch.floor(axis.corner), 0, key.shape[0] + (reach - 1))
        return cls(centre.to(torch.int64), bias)

    @property
    def count(self) -> int:
        """The number of neighbours K."""
        return self.bias.shape[1]


def reach_of(radius: float) -> int:
    """How many cells to each side of its own cell a token within a radius attends to."""
    return math.ceil(radius - 0.5)


def _window(token: Tensor, cell: Tensor, radius: float) -> Tensor:
    """The logarithm of a window around tokens that fades out at the radius, at the centres of cells."""
    # The window fades over the last half cell, so the picture stays continuous where the set of neighbours changes.
    return torch.log(torch.clamp((radius - torch.abs(cell - token)) / min(0.5, radius), 1e-6, 1.0))


class Rotary(nn.Module):
    """Rotates pairs of channels by angles proportional to y (first half of the pairs) or x (second half), in cells.

    The channels of a head are the first parts of all pairs, followed by the second parts.
    """

    frequencies: Tensor

    def __init__(self, width: int, heads: int, low: float, high: float) -> None:
        super().__init__()
        self.heads = heads
        ladder = torch.logspace(math.log2(low), math.log2(high), width // heads // 4, base=2.0)
        self.register_buffer("frequencies", ladder, persistent=False)

    def angles(self, y: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines of the angle of each channel, [n, m, width] each, float32."""
        still = torch.zeros_like(self.frequencies)
        down, across = (
            torch.cat(ladder).repeat(2 * self.heads)
            for ladder in ((self.frequencies, still), (still, self.frequencies))
        )
        # A channel turns by y or by x, so that one of its two angles is 0.
        along_y, along_x = y[:, None, None] * down, x[:, None] * across
        return torch.cos(along_y) * torch.cos(along_x), torch.sin(along_y) + torch.sin(along_x)

    def rotated(self, linear: nn.Linear, values: Tensor, y: Tensor, x: Tensor) -> Tensor:
        """Applies a linear layer to values [..., n, m, D] at positions and rotates the result, [..., n, m, width]."""
        plain, quarter = F.linear(values, *self.turned(linear)).chunk(2, dim=-1)
        cos, sin = self.angles(y, x)
        return plain * cos + quarter * sin

    def turned(self, linear: nn.Linear) -> tuple[Tensor, Tensor]:
        """The weight and the bias of a linear layer that gives all pairs (a, b), then their quarter turns (-b, a)."""
        return (
            torch.cat([linear.weight, self._quarter(linear.weight)]),
            torch.cat([linear.bias, self._quarter(linear.bias)]),
        )

    def _quarter(self, rows: Tensor) -> Tensor:
        """Turns the pairs of rows [width, ...] by a quarter turn."""
        first, second = rows.unflatten(0, (self.heads, 2, -1)).unbind(1)
        return torch.stack([-second, first], 1).flatten(0, 2)


def global_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Every token [B, ht, wt, heads, d] sees every cell [B, hk, wk, heads, d], except those that ``mask`` hides.

    The mask is [hk, wk] and True where a cell is seen.
    """
    batch, height, width = query.shape[:3]
    if mask is None and torch.onnx.is_in_onnx_export():
        return _fused(query, key, value)
    out = F.scaled_dot_product_attention(
        query.flatten(1, 2).transpose(1, 2).to(value.dtype),
        key.flatten(1, 2).transpose(1, 2).to(value.dtype),
        value.flatten(1, 2).transpose(1, 2),
        None if mask is None else mask.flatten()[None, :],
    )
    return out.transpose(1, 2).reshape(batch, height, width, -1)


def _fused(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Global attention as one of ONNX Runtime's own operators, which never holds the scores of all tokens and cells.

    Standard ONNX does hold them, both as products and as ``Attention``. For 64x64 cells and a tile of 64x64 tokens,
    that takes more than a gigabyte, and this operator takes a tenth of it (``benchmarks.studies.attention``). The
    function is for tracing only and computes nothing.
    """
    batch, height, width, heads, depth = query.shape
    flat = [part.flatten(3).flatten(1, 2) for part in (query.to(value.dtype), key.to(value.dtype), value)]
    out: Tensor = torch.onnx.ops.symbolic(
        "com.microsoft::MultiHeadAttention",
        flat,
        {"num_heads": heads, "scale": depth**-0.5},
        dtype=value.dtype,
        shape=flat[0].shape[:2] + flat[2].shape[2:],
        version=1,
    )
    return out.reshape(batch, height, width, -1)


def window_attention(query: Tensor, key: Tensor, value: Tensor, rows: Neighbours, columns: Neighbours) -> Tensor:
    """Every token sees the K x K cells around it. A product with ones sums over each head's channels."""
    heads, depth = query.shape[3:]
    keys, values = (_near(part.flatten(3), rows, columns) for part in (key.to(value.dtype), value))
    bias = (rows.bias[:, None, :, None] + columns.bias[None, :, None, :]).flatten(2)
    scores = (query.flatten(3).unsqueeze(3) * depth**-0.5 * keys) @ _by_head(heads, depth, keys) + bias.unsqueeze(-1)
    weights = scores.softmax(3).to(value.dtype) @ _by_head(heads, value.shape[4], values).T
    return (weights * values).sum(3)


def _near(cells: Tensor, rows: Neighbours, columns: Neighbours) -> Tensor:
    """For each token, the values of the K x K cells [B, hk, wk, C] around it: [B, ht, wt, K * K, C].

    First, shifted copies give each cell the values of all cells around it. A token then fetches everything it sees with
    one gather per axis, however large K is.
    """
    reach = rows.count // 2
    near = _around(cells, reach, beyond=reach)
    near = near.index_select(1, rows.centre).index_select(2, columns.centre)
    return near.unflatten(3, (rows.count * columns.count, cells.shape[3]))


def _around(cells: Tensor, reach: int, beyond: int = 0) -> Tensor:
    """For each cell, the values of the K x K cells around it. They are zeros where there are no cells.

    Args:
        cells: [B, h, w, C].
        reach: The number of cells to each side, so that K is 2 * ``reach`` + 1.
        beyond: The number of further rows and columns, below and to the right of the cells.

    Returns:
        [B, h + beyond, w + beyond, K * K * C].
    """
    height, width = cells.shape[1] + beyond, cells.shape[2] + beyond
    padded = F.pad(cells, (0, 0, *(2 * (reach, reach + beyond))))
    offsets = range(2 * reach + 1)
    return torch.cat([padded[:, i : i + height, j : j + width] for i in offsets for j in offsets], dim=3)


def _by_head(heads: int, depth: int, like: Tensor) -> Tensor:
    """[heads * depth, heads]: 1 where the channel belongs to the head, 0 elsewhere."""
    channel = torch.arange(heads * depth, device=like.device) // depth
    return (channel[:, None] == torch.arange(heads, device=like.device)).to(like.dtype)


class CrossAttention(nn.Module):
    """Cross-attention with queries from the tokens, and keys and values from the context."""

    def __init__(
        self, width: int, key_width: int, heads: int, rotary: tuple[float, float], radius: float | None
    ) -> None:
        super().__init__()
        self.heads = heads
        self.radius = radius
        self.query = nn.Linear(width, key_width)
        self.key = nn.Linear(width, key_width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self.rotary = Rotary(key_width, heads, *rotary)

    def forward(self, tokens: Tensor, context: Tensor, grid: Grid | Places) -> Tensor:
        """Tokens [B, ht, wt, D] attend to the context crop [B, hk, wk, D].

        With ``Places``, the tokens are those of the crop's cells, so that ht is hk * n.
        """
        if isinstance(grid, Places):
            return self._from_places(tokens, context, grid)
        query = self.rotary.rotated(self.query, tokens, grid.token_y, grid.token_x).unflatten(3, (self.heads, -1))
        key = self.rotary.rotated(self.key, context, grid.key_y, grid.key_x).unflatten(3, (self.heads, -1))
        value = self.value(context).unflatten(3, (self.heads, -1))
        if self.radius is None:
            return self.out(global_attention(query, key, value, grid.keys_inside() if grid.padded else None))
        rows, columns = (Neighbours.of(axis, self.radius) for axis in grid.axes)
        return self.out(window_attention(query, key, value, rows, columns))

    def _from_places(self, tokens: Tensor, context: Tensor, places: Places) -> Tensor:
        # All tokens of a cell see the same K x K cells, so that two products per cell are enough for all of its heads.
        # For this, every head has keys and values of its own, which are 0 in the channels of the other heads.
        assert self.radius is not None, "tokens at places of a cell attend within a radius"
        reach, centres = reach_of(self.radius), places.around(reach_of(self.radius))
        plain, quarter = places.by_cell(F.linear(tokens, *self.rotary.turned(self.query))).chunk(2, dim=-1)
        cos, sin = (each.flatten(0, 1) for each in self.rotary.angles(places.of_tokens, places.of_tokens))
        query = plain * cos + quarter * sin
        # One product gives keys, values, and a channel that is 1 in every cell, and so 0 where there is none.
        weight, bias = self.rotary.turned(self.key)
        weight = torch.cat([weight, self.value.weight, torch.zeros_like(weight[:1])])
        near = _around(F.linear(context, weight, torch.cat([bias, self.value.bias, torch.ones_like(bias[:1])])), reach)
        near = near.reshape(-1, len(centres) ** 2, len(weight))
        half = len(bias) // 2
        plain, quarter, value, inside = near.split([half, half, len(self.value.bias), 1], dim=2)
        cos, sin = (each.flatten(0, 1) for each in self.rotary.angles(centres, centres))
        depth = half // self.heads
        of_keys, of_values = (
            _by_head(self.heads, channels, context).T[:, None] for channels in (depth, value.shape[2] // self.heads)
        )
        of_keys = of_keys * depth**-0.5
        key = plain.unsqueeze(1) * (cos * of_keys) + quarter.unsqueeze(1) * (sin * of_keys)
        scores = query @ key.flatten(1, 2).transpose(1, 2)
        along = _window(places.of_tokens[:, None], centres, self.radius)
        window = (along[:, None, :, None] + along[None, :, None, :]).flatten(2).flatten(0, 1)
        window = window + (1 - inside).transpose(1, 2) * MASKED
        weights = (scores.unflatten(2, (self.heads, -1)) + window.unsqueeze(2)).softmax(3).to(value.dtype)
        out = weights.flatten(2, 3) @ (value.unsqueeze(1) * of_values).flatten(1, 2)
        return places.by_row(self.out(out), context.shape[2], context.shape[0])
