"""The operations of Core ML programs that move values but do not change them, each as a function of torch tensors.

The functions and their arguments have Core ML's names and defaults.
"""

from __future__ import annotations

import torch
from torch import Tensor

from infgen_export.mil.parameters import axes_of, bools, ints


def shape(x: Tensor) -> Tensor:
    """The shape of a tensor, as int32."""
    return torch.tensor(x.shape, dtype=torch.int32)


def reshape(x: Tensor, shape: Tensor) -> Tensor:
    """Gives the values another shape."""
    # A 0 keeps the side of that axis. As in torch, -1 stands for the side that follows from the others.
    return x.reshape([x.shape[axis] if side == 0 else side for axis, side in enumerate(ints(shape))])


def transpose(x: Tensor, perm: Tensor) -> Tensor:
    """Reorders axes."""
    return x.permute(ints(perm))


def expand_dims(x: Tensor, axes: Tensor) -> Tensor:
    """Inserts axes of side 1."""
    rank = x.ndim + axes.numel()
    for axis in sorted(axis % rank for axis in ints(axes)):
        x = x.unsqueeze(axis)
    return x


def squeeze(x: Tensor, axes: Tensor | None = None) -> Tensor:
    """Removes axes of side 1."""
    return x.squeeze(axes_of(axes, x.ndim))


def concat(values: list[Tensor], axis: Tensor, interleave: Tensor | bool = False) -> Tensor:
    """Joins tensors along an axis, optionally with their values in turn."""
    if interleave:
        return torch.stack(values, int(axis) + 1).flatten(int(axis), int(axis) + 1)
    return torch.cat([value.reshape(1) if value.ndim == 0 else value for value in values], int(axis))


def stack(values: list[Tensor], axis: Tensor) -> Tensor:
    """Joins tensors along a new axis."""
    return torch.stack(values, int(axis))


def split(
    x: Tensor, axis: Tensor, num_splits: Tensor | None = None, split_sizes: Tensor | None = None
) -> tuple[Tensor, ...]:
    """Cuts a tensor along an axis into equal parts, or into parts of given sides."""
    if split_sizes is None:
        assert num_splits is not None
        split_sizes = torch.full((int(num_splits),), x.shape[int(axis)] // int(num_splits))
    return torch.split_with_sizes(x, ints(split_sizes), int(axis))


def tile(x: Tensor, reps: Tensor) -> Tensor:
    """Repeats a tensor along each axis."""
    return x.repeat(ints(reps))


def gather(
    x: Tensor,
    indices: Tensor,
    axis: Tensor | int = 0,
    batch_dims: Tensor | int = 0,
    validate_indices: Tensor | bool = False,
) -> Tensor:
    """Selects parts along an axis by index."""
    if int(batch_dims):
        raise NotImplementedError("the interpreter does not support gather with batch_dims")
    axis = int(axis) % x.ndim
    # Negative indices count from the end. An index out of range is undefined in Core ML and an error here.
    wrapped = torch.where(indices < 0, indices + x.shape[axis], indices)
    return x.index_select(axis, wrapped.flatten()).reshape([*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]])


def slice_by_index(
    x: Tensor,
    begin: Tensor,
    end: Tensor,
    stride: Tensor | None = None,
    begin_mask: Tensor | None = None,
    end_mask: Tensor | None = None,
    squeeze_mask: Tensor | None = None,
) -> Tensor:
    """Cuts out a part from its first indices up to, but not including, its end indices."""
    steps = [1] * x.ndim if stride is None else ints(stride)
    firsts, lasts = ints(begin), ints(end)
    open_first, open_last, squeezed = (bools(mask, x.ndim) for mask in (begin_mask, end_mask, squeeze_mask))
    for axis in reversed(range(x.ndim)):
        if squeezed[axis]:
            x = x.select(axis, firsts[axis])
            continue
        span = slice(None if open_first[axis] else firsts[axis], None if open_last[axis] else lasts[axis], steps[axis])
        indices = range(*span.indices(x.shape[axis]))
        if steps[axis] == 1:
            x = x.narrow(axis, indices.start, len(indices))
        else:
            x = x.index_select(axis, torch.tensor(list(indices), dtype=torch.int64))
    return x


def slice_by_size(x: Tensor, begin: Tensor, size: Tensor) -> Tensor:
    """Cuts out a part by its first indices and its sides."""
    for axis, (first, count) in enumerate(zip(ints(begin), ints(size), strict=True)):
        first %= x.shape[axis]
        x = x.narrow(axis, first, x.shape[axis] - first if count == -1 else count)
    return x


def range_1d(start: Tensor, end: Tensor, step: Tensor) -> Tensor:
    """The numbers from a start up to, but not including, an end."""
    return torch.arange(start.item(), end.item(), step.item(), dtype=start.dtype)
