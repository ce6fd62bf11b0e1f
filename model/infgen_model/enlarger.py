"""The enlarger: makes a picture from the trunk's features, at the latent's own size or several times that."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from infgen_model.config import Enlargement
from infgen_model.layers import refolded

_CUBIC_REACH = 2
"""Reach of cubic convolution, in positions."""


class Enlarger(nn.Module):
    """A chain of 3x3 convolutions at the latent's own size. Each enlargement uses as many of them as it has blocks.

    At this resolution, one multiply-add serves all pixels that a position is enlarged to. The chain has the shape of
    Real-ESRGAN's smallest network (``SRVGGNetCompact``), so that it can start from those weights. That network adds to
    a picture enlarged by repeating pixels, and wherever it does not correct the repetition, blocks remain. This one
    adds to a picture enlarged by cubic convolution.

    All pixels of a position are linear in the chain's last features, which shows as a grid along edges. An enlargement
    with a finish has one more layer at half the picture's size, where neighbouring pixels are of different positions.
    A polish after it sees the enlarged picture too, so it can straighten the picture's edges.
    """

    def __init__(self, width: int, enlargements: Sequence[Enlargement]) -> None:
        super().__init__()
        self.to_picture = nn.Conv2d(width, 3, 3, padding=1)
        larger = [each for each in enlargements if each.factor > 1]
        self.leave = nn.ModuleDict(
            {str(each.factor): nn.Conv2d(width, 3 * each.factor**2, 3, padding=1) for each in larger}
        )
        self.finish = nn.ModuleDict({str(each.factor): _finish(width, each) for each in larger if each.finish})
        self.polish = nn.ModuleDict({str(each.factor): _polish(each) for each in larger if each.polish})
        self.blocks = nn.ModuleList()
        if larger:
            self.enter = nn.Conv2d(3, width, 3, padding=1)
            self.mix = nn.Conv2d(width, width, 1)
            self.activate = nn.PReLU(width, 0.1)
            for _ in range(max(each.blocks for each in larger)):
                self.blocks.append(nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.PReLU(width, 0.1)))
        with torch.no_grad():
            last = [list(each.children())[-1] for each in (*self.finish.values(), *self.polish.values())]
            for leave in (*self.leave.values(), *last):
                assert isinstance(leave, nn.Conv2d) and leave.bias is not None
                # All pixels of a position start the same, so there is no periodic pattern to unlearn.
                leave.weight.zero_()
                leave.bias.zero_()

    def folded(self, features: Tensor, picture: Tensor, enlargement: Enlargement) -> Tensor:
        """Makes a picture [B, 3, factor H, factor W], about [0, 1] and not clamped.

        Args:
            features: [B, F, H, W], at the latent's own size.
            picture: [B, 3, H, W], what ``to_picture`` makes of the trunk's features.
            enlargement: The enlargement.

        Returns:
            The picture, folded by ``fold_of(enlargement)``, in which form the layers compute it.
        """
        if enlargement.factor == 1:
            return picture
        return self._end_folded(self.begin(features, picture), picture, enlargement)

    def begin(self, features: Tensor, picture: Tensor, blocks: int = 0) -> Tensor:
        """Computes the chain's features [B, F, H, W] after its first ``blocks`` convolutions; see ``folded``."""
        x: Tensor = self.activate(self.enter(picture.clamp(0, 1)) + self.mix(features))
        for block in self.blocks[:blocks]:
            x = block(x)
        return x

    def end(self, x: Tensor, picture: Tensor, enlargement: Enlargement, blocks: int = 0) -> Tensor:
        """Makes the picture [B, 3, factor H, factor W] from the chain's features after ``blocks`` convolutions."""
        return F.pixel_shuffle(self._end_folded(x, picture, enlargement, blocks), fold_of(enlargement))

    def _end_folded(self, x: Tensor, picture: Tensor, enlargement: Enlargement, blocks: int = 0) -> Tensor:
        factor, name = enlargement.factor, str(enlargement.factor)
        for block in self.blocks[blocks : enlargement.blocks]:
            x = block(x)
        if not enlargement.finish:
            return self.leave[name](x) + smooth(picture, factor)
        # The layer's channels are in the order of the whole picture's pixels. In this order, they make the folded one.
        leave, order = self.leave[name], refolded(3, factor // 2, 2, x.device)
        assert isinstance(leave, nn.Conv2d) and leave.bias is not None
        enlarged = F.conv2d(x, leave.weight[order], leave.bias[order], padding=1) + smooth(picture, factor, order)
        widen, shuffle, activation, last = self.finish[name].children()
        assert isinstance(activation, nn.PReLU)
        # The slopes are used before the shuffle, where runtimes use them together with the convolution.
        x = shuffle(F.prelu(widen(x), activation.weight.repeat_interleave((factor // 2) ** 2)))
        folded = F.pixel_shuffle(enlarged, factor // 2) + last(x)
        if enlargement.polish:
            folded = folded + self.polish[name](torch.cat([x, folded], dim=1))
        return folded


def fold_of(enlargement: Enlargement) -> int:
    """The number of rows and of columns that an enlarged picture is folded by, when the enlarger has made it."""
    return 2 if enlargement.finish else enlargement.factor


def _finish(width: int, enlargement: Enlargement) -> nn.Sequential:
    """Makes a correction [B, 12, factor H / 2, factor W / 2] of an enlarged picture, folded by 2, from [B, F, H, W]."""
    half, channels = enlargement.factor // 2, enlargement.finish
    return nn.Sequential(
        nn.Conv2d(width, channels * half**2, 1),
        nn.PixelShuffle(half),
        nn.PReLU(channels, 0.1),
        nn.Conv2d(channels, 12, 3, padding=1),
    )


def _polish(enlargement: Enlargement) -> nn.Sequential:
    """Makes a correction of an enlarged picture, folded by 2, from the finish's features and the picture."""
    return nn.Sequential(
        nn.Conv2d(enlargement.finish + 12, enlargement.polish, 3, padding=1),
        nn.PReLU(enlargement.polish, 0.1),
        nn.Conv2d(enlargement.polish, 12, 3, padding=1),
    )


def smooth(picture: Tensor, factor: int, order: Tensor | None = None) -> Tensor:
    """Enlarges a picture [B, 3, H, W] by cubic convolution and returns it folded: [B, 3 factor**2, H, W].

    With an order, the channels of each colour are in that order.
    """
    padded = F.pad(picture, (_CUBIC_REACH,) * 4, mode="replicate")
    kernels = _cubic(factor, padded)
    return F.conv2d(padded, kernels if order is None else kernels[order], groups=3)


def _cubic(factor: int, like: Tensor) -> Tensor:
    """Kernels [3 * factor**2, 1, 5, 5] of cubic convolution (Keys 1981), one per channel and pixel of a position."""
    offset = (torch.arange(factor, dtype=torch.float32, device=like.device) + 0.5) / factor - 0.5
    taps = torch.arange(-_CUBIC_REACH, _CUBIC_REACH + 1, dtype=torch.float32, device=like.device)
    distance = torch.abs(offset[:, None] - taps)
    near = 1.5 * distance**3 - 2.5 * distance**2 + 1
    far = -0.5 * distance**3 + 2.5 * distance**2 - 4 * distance + 2
    weights = torch.where(distance <= 1, near, torch.where(distance < 2, far, torch.zeros_like(distance)))
    kernels = (weights[:, None, :, None] * weights[None, :, None, :]).reshape(factor**2, 1, *(len(taps),) * 2)
    return kernels.repeat(3, 1, 1, 1).to(like.dtype)
