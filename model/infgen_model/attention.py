"""Cross-attention from tokens to latent cells, either to all of them or to those within a radius.

Tokens and cells lie on two grids in the same coordinates, in which cell i has its centre at i + 0.5. Both forms of
attention use the same projections and a continuous two-dimensional rotary embedding of the coordinates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from infgen_model.grid import Grid

MASKED = -1e4
"""Score of a cell that must not be seen. The cell's weight becomes exactly zero, and the score still fits float16."""


@dataclass(frozen=True)
class Neighbours:
    """The K cells around each of n tokens along one axis.

    Attributes:
        place: [n] in [0, 1), the position of the token's centre in the cell that contains it.
        position: [n, K], positions of the cells in the context crop. A cell that the crop or the latent does not have
            is replaced by the nearest one.
        bias: [n, K], the logarithm of a window that fades out at the radius. It is added to the scores.
    """

    place: Tensor
    position: Tensor
    bias: Tensor

    @classmethod
    def of(cls, token: Tensor, key: Tensor, extent: Tensor, radius: float) -> Neighbours:
        """Finds the neighbours of each token.

        Args:
            token: [n] centres of the tokens, in cells.
            key: [m] centres of the context crop's cells.
            extent: [] or [1], number of cells of the whole latent along this axis.
            radius: Radius in cells.
        """
        centres = torch.tensor(centres_within(radius), device=token.device)
        cell = torch.floor(token)
        place = token - cell
        # The window fades over the last half cell, so the picture stays continuous where the set of neighbours changes.
        distance = torch.abs(centres - place[:, None])
        fade = torch.clamp((radius - distance) / min(0.5, radius), 1e-6, 1.0)
        wanted = cell[:, None] + centres
        found = torch.minimum(torch.maximum(wanted, key[:1]), torch.minimum(key[-1:], extent - 0.5))
        return cls(place, found - key[:1], torch.where(found == wanted, torch.log(fade), MASKED))

    @property
    def count(self) -> int:
        """The number of neighbours K."""
        return self.bias.shape[1]


def centres_within(radius: float) -> list[float]:
    """Centres of the K neighbours along one axis, in cells from the corner of the token's own cell."""
    reach = math.ceil(radius - 0.5)
    return [offset + 0.5 for offset in range(-reach, reach + 1)]


class Rotary(nn.Module):
    """Rotates pairs of channels by angles proportional to y (first half of the pairs) or x (second half), in cells.

    Rotated channels are the channels times the cosines, plus the channels after a quarter turn times the sines. What
    matters is only the difference between the angles of a query and of a key. For attention within a radius, the query
    is therefore rotated by its distance from each of the cells that it sees, and the keys are not rotated.
    """

    frequencies: Tensor
    phases: Tensor
    quarter: Tensor

    def __init__(self, heads: int, head_width: int, low: float, high: float) -> None:
        super().__init__()
        ladder = torch.logspace(math.log2(low), math.log2(high), head_width // 4, base=2.0)
        of_y, of_x = (torch.tensor(axis).repeat_interleave(len(ladder)) for axis in ((1.0, 0.0), (0.0, 1.0)))
        channels = torch.stack([of_y, of_x]).repeat(1, 2 * heads)
        turn = torch.tensor([[0.0, 1.0], [-1.0, 0.0]]).kron(torch.eye(head_width // 2))
        # Each axis has all channels twice: first for the cosines, then for the sines.
        self.register_buffer("frequencies", ladder.repeat(8 * heads) * channels.repeat(1, 2), persistent=False)
        phases = torch.cat([math.pi / 2 * channels, torch.zeros_like(channels)], dim=1)
        self.register_buffer("phases", phases, persistent=False)
        self.register_buffer("quarter", torch.eye(heads).kron(turn), persistent=False)

    def waves(self, y: Tensor, x: Tensor) -> Tensor:
        """Cosines and sines of the angles at positions y [n] by x [m], [n, m, 2 * C] in float32."""
        of_y, of_x = (
            torch.sin(place[:, None] * frequency + phase)
            for place, frequency, phase in zip((y, x), self.frequencies, self.phases, strict=True)
        )
        # Each channel belongs to one axis. Along the other, its wave is 0, so the sum is the wave of its own axis.
        return of_y[:, None] + of_x

    def turns(self, y: list[float], x: list[float]) -> Tensor:
        """Adds the cosines' and the sines' parts, turned back by each of the positions: [2 C, len(y) len(x) C]."""
        places = (torch.tensor(place, device=self.quarter.device) for place in (y, x))
        cos, sin = self.waves(*places).flatten(0, 1).unsqueeze(1).chunk(2, dim=2)
        turn = torch.eye(len(self.quarter), device=self.quarter.device) * cos - self.quarter * sin
        return turn.transpose(0, 1).flatten(1).repeat(2, 1)

    def rotate(self, projection: nn.Linear, values: Tensor, waves: Tensor, turns: Tensor) -> Tensor:
        """Projects values [B, n, m, D] and rotates the result by ``waves``, and then by each of the ``turns``."""
        double = torch.cat([torch.eye(len(self.quarter), device=self.quarter.device), self.quarter], dim=1)
        doubled = F.linear(values, double.T @ projection.weight, projection.bias @ double)
        return (doubled * waves) @ turns


def global_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attention in which every token sees every cell, except for cells that a mask hides.

    Args:
        query: [B, ht, wt, heads, d].
        key: [B, hk, wk, heads, d].
        value: [B, hk, wk, heads, e].
        mask: [hk, wk] bool, true where a cell is seen. ``None`` if all are.

    Returns:
        [B, ht, wt, heads * e].
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
    """Global attention as one of ONNX Runtime's own operators, for tracing only. It computes nothing.

    The operator never has the scores of all tokens and cells in memory at once. In standard ONNX, matrix products and
    the operator ``Attention`` have. For 64x64 cells and a tile of 64x64 tokens, this takes more than a gigabyte. ONNX
    Runtime's operator needs a tenth of that (``benchmarks.studies.attention``).
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


def window_attention(
    query: Tensor, key: Tensor, value: Tensor, heads: int, rows: Neighbours, columns: Neighbours
) -> Tensor:
    """Attention in which every token sees the K x K cells around it.

    One gather fetches the keys of these cells, and another one their values. Products with matrices of ones and zeros
    sum over the channels of each head, and repeat the weight of a head for its channels.

    Args:
        query: [B, ht, wt, N * C], with a query for each of the N = K x K cells, or [B, ht, wt, C] with one for all.
        key: [B, hk, wk, C].
        value: [B, hk, wk, D].
        heads: Number of heads.
        rows: The K rows of cells that each row of tokens sees.
        columns: The K columns of cells that each column of tokens sees.

    Returns:
        [B, ht * wt, D].
    """
    index = (rows.position * key.shape[2])[:, None, :, None] + columns.position[:, None]
    bias = (rows.bias[:, None, :, None] + columns.bias[:, None]).reshape(-1, rows.count * columns.count, 1)
    cells = index.flatten().to(torch.int64)
    keys, values = (
        each.flatten(1, 2).index_select(1, cells).reshape(each.shape[0], -1, bias.shape[1], each.shape[3])
        for each in (key, value)
    )
    queries = query.reshape(query.shape[0], -1, query.shape[3] // key.shape[3], key.shape[3])
    scores = (queries * keys) @ (_by_head(heads, key) * (key.shape[3] // heads) ** -0.5) + bias
    return (scores.softmax(2).to(value.dtype) @ _by_head(heads, value).T * values).sum(2)


def _by_head(heads: int, like: Tensor) -> Tensor:
    """A matrix [channels, heads] that is 1 where the channel belongs to the head, and 0 elsewhere."""
    channels = like.shape[3]
    head = torch.arange(channels, device=like.device) // (channels // heads)
    return (head[:, None] == torch.arange(heads, device=like.device)).to(like.dtype)


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
        self.rotary = Rotary(heads, key_width // heads, *rotary)

    def forward(self, tokens: Tensor, context: Tensor, grid: Grid) -> Tensor:
        """Lets tokens [B, ht, wt, D] attend to a context crop [B, hk, wk, D]. Returns [B, ht, wt, D]."""
        if self.radius is None:
            return self.out(self._everywhere(tokens, context, grid))
        height, width = grid.extent.split(1)
        rows = Neighbours.of(grid.token_y, grid.key_y, height, self.radius)
        columns = Neighbours.of(grid.token_x, grid.key_x, width, self.radius)
        centres = centres_within(self.radius)
        waves, turns = self.rotary.waves(rows.place, columns.place), self.rotary.turns(centres, centres)
        query = self.rotary.rotate(self.query, tokens, waves, turns)
        seen = window_attention(query, self.key(context), self.value(context), self.heads, rows, columns)
        return self.out(seen).reshape(tokens.shape)

    def _everywhere(self, tokens: Tensor, context: Tensor, grid: Grid) -> Tensor:
        """Global attention, before the last projection."""
        here = self.rotary.turns([0.0], [0.0])
        query = self.rotary.rotate(self.query, tokens, self.rotary.waves(grid.token_y, grid.token_x), here)
        key = self.rotary.rotate(self.key, context, self.rotary.waves(grid.key_y, grid.key_x), here)
        query, key, value = (each.unflatten(3, (self.heads, -1)) for each in (query, key, self.value(context)))
        return global_attention(query, key, value, grid.keys_inside() if grid.padded else None)
