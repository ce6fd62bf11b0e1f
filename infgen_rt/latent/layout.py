"""The shapes that latents may have, and their conversion to plain latents [C, h, w]."""

from collections.abc import Sequence
from math import isqrt

import numpy as np

from infgen_rt.common.pixels import FloatArray
from infgen_rt.errors import LatentError
from infgen_rt.latent.spaces import LatentSpace, joined, latent_spaces

# If the correlation of neighbours along one axis is lower than along the other by this much, the first axis is not a
# side of a picture.
_UNLIKE_SIDES = 0.15
# The number of rows or tokens that are examined for this.
_MOST_TOKENS = 256


def plain_latents(
    array: FloatArray, space: LatentSpace, latent_size: tuple[int, int] | None
) -> tuple[list[FloatArray], bool]:
    """Remove the batch and time axes, and undo patchifying and packing.

    Args:
        array: float32, in one of the shapes that `as_latents` takes.
        space: its latent space.
        latent_size: the width and height in pixels that were requested from the pipeline. Only for packed latents.

    Returns:
        The latents, each float32 [C, h, w], and whether they were patchified or packed.

    Raises:
        LatentError: the shape is not that of a latent, or is ambiguous.
    """
    channels, packed = space.channels, 4 * space.channels
    if 0 in array.shape:
        raise _not_a_latent(array, space)
    array = one_frame(array, space)
    batch = array if _is_batch(array, space, latent_size) else array[None]
    if space.packed and batch.ndim == 3 and batch.shape[2] == packed:
        return [_unpatchify(_grid(each, 2 * space.cell_pixels, latent_size)) for each in batch], True
    if space.patchified and batch.ndim == 4 and batch.shape[1] == packed:
        plain, patched = [_unpatchify(each) for each in batch], True
    elif batch.ndim == 4 and batch.shape[1] == channels:
        plain, patched = list(batch), False
    else:
        raise _not_a_latent(array, space)
    _check_size(plain[0], space, latent_size)
    return plain, patched


def _check_size(latent: FloatArray, space: LatentSpace, latent_size: tuple[int, int] | None) -> None:
    """Raise LatentError if a plain latent [C, h, w] is not that of a picture of the given width and height."""
    if latent_size is None:
        return
    cells = latent.shape[:0:-1]
    # Pipelines round the size that was requested down to whole cells, or to whole tokens of two.
    rounded = {tuple(side // part * (part // space.cell_pixels) for side in latent_size)
               for part in (space.cell_pixels, 2 * space.cell_pixels)}  # fmt: skip
    if cells not in rounded:
        given, found = ("x".join(map(str, size)) for size in (latent_size, (n * space.cell_pixels for n in cells)))
        raise LatentError(
            f"the latent's picture has {found} pixels, and not {given}: leave out the latent size (latent_size, or "
            "--latent-size), which only packed tokens need"
        )


def fits(shape: Sequence[int], space: LatentSpace) -> bool:
    """Whether an array of a shape may be a latent, or a batch of latents, of a space."""
    known, axes = _channel_counts(space), len(shape)
    if space.packed and axes in (2, 3) and shape[-1] == 4 * space.channels:
        return True
    if axes == 3:
        return shape[0] in known
    if axes == 4:
        return shape[1] in known or (shape[0] in known and shape[1] == 1)
    return axes == 5 and shape[1] in known and shape[2] == 1


def _channel_counts(space: LatentSpace) -> tuple[int, ...]:
    """The numbers of channels that a latent of a space may have before its rows."""
    return (space.channels, 4 * space.channels) if space.patchified else (space.channels,)


def one_frame(array: FloatArray, space: LatentSpace) -> FloatArray:
    """Remove the time axis from [N, C, 1, h, w] and [C, 1, h, w], the shapes of pictures in video models."""
    known = _channel_counts(space)
    if array.ndim == 5 and array.shape[1] in known:
        axis = 2
    elif array.ndim == 4 and array.shape[0] in known and array.shape[1] not in known:
        axis = 1
    else:
        return array
    frames = array.shape[axis]
    if frames != 1:
        raise LatentError(
            f"shape {list(array.shape)} is a video's latent of {frames} frames, and this model decodes pictures: pass "
            f"one frame, [{array.shape[axis - 1]}, h, w]"
        )
    return array.squeeze(axis)


def _is_batch(array: FloatArray, space: LatentSpace, latent_size: tuple[int, int] | None) -> bool:
    """Whether the first axis is a batch axis."""
    packed = 4 * space.channels
    if array.ndim != 3 or not space.packed or array.shape[2] != packed:
        return array.ndim == 4
    if array.shape[0] not in _channel_counts(space):
        return True
    # The array may be a batch of packed pictures, or one plain latent that is `packed` cells wide.
    _, tokens, _ = array.shape
    if latent_size is not None:
        width, height = (side // (2 * space.cell_pixels) for side in latent_size)
        return bool(tokens == width * height)
    if _down_minus_across(array) > _UNLIKE_SIDES:
        raise LatentError(
            f"shape {list(array.shape)} may be {array.shape[0]} packed pictures of {tokens} tokens or one latent "
            f"{packed} cells wide, and looks like the first: say the pipeline's width and height in pixels "
            "(latent_size=(w, h), or --latent-size WxH)"
        )
    return False


@np.errstate(over="ignore", invalid="ignore")
def _down_minus_across(array: FloatArray) -> float:
    """The correlation of neighbours along the second axis of [_, tokens, 4C], minus that along the third axis.

    For a plain latent that is 4C cells wide, the difference is about 0. Along the third axis, only every fourth pair is
    used. If the array is packed tokens, the two values of such a pair belong to different channels. The result is NaN
    if the numbers are not finite or too large.
    """
    centred = array[:, :_MOST_TOKENS] - array[:, :_MOST_TOKENS].mean(axis=(1, 2), keepdims=True)
    square = float(np.square(centred).mean(dtype=np.float64))
    if centred.shape[1] < 2 or square == 0:
        return 0.0
    down = (centred[:, 1:] * centred[:, :-1]).mean(dtype=np.float64)
    across = (centred[:, :, 4::4] * centred[:, :, 3:-1:4]).mean(dtype=np.float64)
    return float(down - across) / square


def expected_shapes(space: LatentSpace) -> str:
    """The shapes that a latent of a space may have, without a batch axis: `[C, h, w] or [tokens, 4C]`."""
    channels, packed = space.channels, 4 * space.channels
    shapes = [f"[{channels}, h, w]"]
    shapes += [f"[{packed}, h/2, w/2]"] if space.patchified else []
    shapes += [f"[tokens, {packed}]"] if space.packed else []
    return joined(shapes)


def _not_a_latent(array: FloatArray, space: LatentSpace) -> LatentError:
    known, shape = _channel_counts(space), list(array.shape)
    hint = ""
    if array.ndim >= 3 and 0 not in shape:
        others = [name for name, other in latent_spaces().items() if fits(shape, other)]
        if shape[-1] in known:
            hint = f"; with its last axis first, [{shape[-1]}, h, w], it would be one"
        elif others and shape[-3] not in known:
            latent_like = any(shape[-3] in _channel_counts(latent_spaces()[name]) for name in others)
            what = f"{shape[-3]} channels" if latent_like else f"tokens of {shape[-1]} numbers"
            hint = f"; {what} are those of {joined(others)}: say which, as space={others[0]!r} (--space {others[0]})"
    return LatentError(
        f"shape {shape} is not a latent's: expected {expected_shapes(space)}, with or without a batch axis{hint}"
    )


def _grid(tokens: FloatArray, token: int, latent_size: Sequence[int] | None) -> FloatArray:
    """Unpack [h/2 * w/2, 4C] to [4C, h/2, w/2]. Pipelines round sizes down to whole tokens of `token` pixels."""
    count = len(tokens)
    if latent_size is None:
        side = isqrt(count)
        guess = f", which a {token * side}x{token * side} picture gives" if side * side == count else ""
        raise LatentError(
            f"{count} packed tokens{guess}: say the pipeline's width and height in pixels "
            "(latent_size=(w, h), or --latent-size WxH)"
        )
    width, height = (side // token for side in latent_size)
    if width < 1 or height < 1 or width * height != count:
        sizes = f"{latent_size[0]}x{latent_size[1]}"
        raise LatentError(f"{count} packed tokens do not make a latent of {sizes} pixels, which has {width * height}")
    return tokens.T.reshape(-1, height, width)


def _unpatchify(array: FloatArray) -> FloatArray:
    """Unpatchify [4C, h, w] to [C, 2h, 2w]. The order of patchified channels is channel * 4 + row * 2 + column."""
    channels, height, width = array.shape
    blocks = array.reshape(channels // 4, 2, 2, height, width)
    return blocks.transpose(0, 3, 1, 4, 2).reshape(channels // 4, 2 * height, 2 * width)
