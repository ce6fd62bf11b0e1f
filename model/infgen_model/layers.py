"""Convolutional blocks that several parts of the model use."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ChannelNorm(nn.Module):
    """Normalises each position of a tensor [B, C, H, W] over its channels.

    Unlike GroupNorm, it does not mix positions, so it gives the same result for every tiling.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Returns x divided by the root mean square of each position, and scaled per channel."""
        return x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-6) * self.gain


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with a skip connection."""

    def __init__(self, width: int, channel_norm: bool = False) -> None:
        super().__init__()
        self.norm = ChannelNorm(width) if channel_norm else nn.Identity()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        with torch.no_grad():
            self.second.weight.mul_(0.3)  # a new block is close to the identity

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Returns a tensor of x's shape [B, width, H, W]. Convolutions see zeros where ``mask`` [1, 1, H, W] is 0."""
        hidden = F.relu(self.first(masked(self.norm(x), mask)))
        return x + self.second(masked(hidden, mask))


class ResidualBlocks(nn.ModuleList):
    """A chain of residual blocks."""

    def __init__(self, width: int, count: int, channel_norm: bool = False) -> None:
        super().__init__(ResidualBlock(width, channel_norm) for _ in range(count))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """See ``ResidualBlock``."""
        for block in self:
            x = block(x, mask)
        return x


def masked(x: Tensor, mask: Tensor | None) -> Tensor:
    """Returns x with zeros where the mask is 0."""
    return x if mask is None else x * mask


def refolded(channels: int, outer: int, inner: int, device: torch.device) -> Tensor:
    """The order in which the channels of a tensor folded at once are those of the same tensor folded in two steps.

    A tensor [B, C, outer * inner * H, outer * inner * W] may be folded at once, by ``outer * inner``, or by ``inner``
    first and then by ``outer``. The results have the same channels in different orders.

    Args:
        channels: The number of channels C.
        outer: The second factor.
        inner: The first factor.
        device: Device of the result.

    Returns:
        int64 [C * outer**2 * inner**2]: for each channel after two steps, the same channel after one.

    Examples:
        >>> x = torch.arange(16.0).reshape(1, 1, 4, 4)
        >>> twice = F.pixel_unshuffle(F.pixel_unshuffle(x, 2), 2)
        >>> twice.equal(F.pixel_unshuffle(x, 4)[:, refolded(1, 2, 2, x.device)])
        True
    """
    places = torch.arange(channels * outer**2 * inner**2, device=device)
    return places.view(channels, outer, inner, outer, inner).permute(0, 2, 4, 1, 3).flatten()


def fold(x: Tensor, factor: int, done: int = 1) -> Tensor:
    """Folds a tensor by ``factor``, as ``pixel_unshuffle`` does, if it is folded by ``done`` already.

    Args:
        x: [B, C * done**2, factor * H / done, factor * W / done].
        factor: Factor of the whole folding, a multiple of ``done``.
        done: Factor by which the tensor is folded.

    Returns:
        [B, C * factor**2, H, W].
    """
    batch, channels, height, width = x.shape
    step, whole = factor // done, channels // done**2
    # Rows first, then columns. Two transposes that each move one axis are three times as fast as the one that moves
    # both, in ONNX Runtime, and no channel has to be moved after them.
    rows = x.reshape(batch * whole, done**2 * height // step, step, width).transpose(1, 2)
    columns = rows.reshape(batch * whole * factor, done * height * width // step**2, step).transpose(1, 2)
    return columns.reshape(batch, whole * factor**2, height // step, width // step)


class PooledBranch(nn.Sequential):
    """An inverted bottleneck of 1x1 convolutions, with a GroupNorm over the whole latent.

    The autoencoders of FLUX.2 and Stable Diffusion normalise over the whole latent. A decoder that does not know these
    global statistics is many dB worse.
    """

    GROUPS = 4

    def __init__(self, width: int) -> None:
        widen, narrow = nn.Conv2d(width, 4 * width, 1, bias=False), nn.Conv2d(4 * width, width, 1, bias=False)
        super().__init__(widen, nn.GroupNorm(self.GROUPS, 4 * width), nn.ReLU(), narrow)

    def forward(self, x: Tensor, moments: Tensor | None = None) -> Tensor:
        """Returns a tensor of x's shape [B, width, H, W].

        Args:
            x: The whole latent, or a part of it if the moments are given.
            moments: Means and variances of the groups over the whole latent, [2, groups]. The batch must be 1.
        """
        widen, norm, relu, narrow = self
        wide: Tensor = widen(x)
        if moments is None:
            narrowed: Tensor = narrow(relu(norm(wide)))
            return narrowed
        assert isinstance(norm, nn.GroupNorm)
        mean, variance = moments[:, :, None].expand(-1, -1, wide.shape[1] // self.GROUPS).reshape(2, -1)
        scale = norm.weight * torch.rsqrt(variance + norm.eps)
        shift = norm.bias - mean * scale
        narrowed = narrow(relu(wide * scale[:, None, None] + shift[:, None, None]))
        return narrowed

    def moments(self, x: Tensor, share_y: Tensor, share_x: Tensor) -> Tensor:
        """Computes the means and variances of the groups.

        The first convolution makes linear combinations of x. Their moments follow from the means and covariances of x,
        so the result of the convolution, which is four times as wide, is not needed.

        Args:
            x: [1, width, H, W].
            share_y: [H], the weight of each row in the means. The weights add up to 1.
            share_x: [W], the weight of each column. The weights add up to 1.

        Returns:
            [2, groups].
        """
        widen = self[0]
        assert isinstance(widen, nn.Conv2d)
        combine = widen.weight.flatten(1)
        means = share_y[None] @ (x[0] @ share_x[:, None])  # [width, 1, 1]
        rows = (x[0] - means).transpose(0, 1)  # [H, width, W]
        # The cells of each row are summed first, and then the rows. The weight of a single cell would be too small for
        # half precision.
        of_rows = (rows * share_x) @ rows.transpose(1, 2)
        covariances = (share_y[None] @ of_rows.flatten(1)).reshape(means.shape[0], -1)
        centres = (combine @ means.flatten(1)).reshape(self.GROUPS, -1)
        spreads = ((combine @ covariances) * combine).sum(1).reshape(self.GROUPS, -1)
        centre = centres.mean(1)
        apart = centres - centre[:, None]
        return torch.stack([centre, (spreads + apart * apart).mean(1)])


class TripleBlock(nn.Module):
    """Three 3x3 convolutions with a skip connection, as in TAESD's autoencoders.

    A pooled block has a ``PooledBranch`` before the convolutions.
    """

    REACH = 3
    """Largest distance, in positions, at which an input changes an output. Global statistics are not counted."""

    def __init__(self, width: int, pooled: bool = False) -> None:
        super().__init__()
        first, second, last = (nn.Conv2d(width, width, 3, padding=1) for _ in range(3))
        self.convolve = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), last)
        self.pool = PooledBranch(width) if pooled else None
        with torch.no_grad():
            last.weight.mul_(0.3)  # a new block is close to the identity

    def forward(self, x: Tensor, moments: Tensor | None = None) -> Tensor:
        """Returns a tensor of x's shape [B, width, H, W]. ``moments`` are as in ``PooledBranch``."""
        if self.pool is not None:
            x = x + self.pool(x, moments)
        return F.relu(x + self.convolve(x))


class TripleBlocks(nn.ModuleList):
    """A chain of ``TripleBlock``. If the blocks are pooled, the moments of each depend on the blocks before it."""

    def __init__(self, width: int, count: int, pooled: bool = False) -> None:
        super().__init__(TripleBlock(width, pooled) for _ in range(count))

    def forward(self, x: Tensor, moments: Tensor | None = None) -> Tensor:
        """Returns a tensor of x's shape [B, width, H, W].

        Args:
            x: The whole input, or a part of it if the moments are given or the blocks are not pooled.
            moments: [2, blocks, groups] from ``moments``. If omitted, those of ``x`` are used.
        """
        for index, block in enumerate(self):
            x = block(x, None if moments is None else moments[:, index])
        return x

    def moments(self, x: Tensor, share_y: Tensor, share_x: Tensor, known: Tensor) -> Tensor:
        """Computes the moments [2, blocks, groups] of pooled blocks, which are the means and variances of each group.

        Args:
            x: [1, width, H, W], the whole input, or a part of it with a halo.
            share_y: [H], the weight of each row in the means. It is 0 in the halo, and else 1 / the number of rows that
                are not in the halo.
            share_x: [W], the weight of each column, in the same way.
            known: [2, blocks, groups], moments of the whole input. A negative variance means that a block's moments are
                not known. The part's own moments are then used in their place.
        """
        found: list[Tensor] = []
        for index, block in enumerate(self):
            assert isinstance(block, TripleBlock) and block.pool is not None
            found.append(block.pool.moments(x, share_y, share_x))
            if index < len(self) - 1:
                x = block(x, torch.where(known[1:, index] < 0, found[index], known[:, index]))
        return torch.stack(found, dim=1)
