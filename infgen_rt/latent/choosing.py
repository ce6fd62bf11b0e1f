"""Chooses the latent space of a latent if the user has not named it."""

from collections.abc import Sequence
from typing import Any

from infgen_rt.common.arguments import NAMES, PAIR
from infgen_rt.errors import LatentError
from infgen_rt.latent.layout import expected_shapes, fits, one_frame, plain_latents
from infgen_rt.latent.likeness import likely_space
from infgen_rt.latent.numbers import as_float32
from infgen_rt.latent.spaces import LatentSpace, joined, latent_space, latent_spaces


def space_of(
    value: Any, names: Sequence[str] | None = None, *, latent_size: tuple[int, int] | None = None
) -> LatentSpace:
    """The space of a latent, if only one space has its shape. The space is never guessed from the numbers.

    Args:
        value: the latent or latents, as for `as_latents`.
        names: the spaces that it may be in, for example those of a bundle. None for all known ones.
        latent_size: as for `as_latents`. Packed latents are examined only if it is given.

    Raises:
        LatentError: the shape is that of no space, or of several. In the second case, the message names these spaces.
            If the numbers are clearly those of one of them, the message says so.
    """
    NAMES.or_none(names=names)
    PAIR.or_none(latent_size=latent_size)
    array = as_float32(value)
    spaces = [latent_space(name) for name in names] if names is not None else list(latent_spaces().values())
    shape = list(array.shape)
    found = [space for space in spaces if 0 not in shape and fits(shape, space)]
    # Plain latents are more frequent than batches of packed ones, so their spaces are named first.
    found.sort(key=lambda space: space.channels not in shape[-3:-2])
    if len(found) == 1:
        return found[0]
    if not found:
        for space in spaces:
            one_frame(array, space)  # says if it is a video
        known = "; ".join(f"{space.name} {expected_shapes(space)}" for space in spaces)
        raise LatentError(f"shape {shape} is not a latent's: expected, with or without a batch axis, {known}")
    likely = _likely(array, found, latent_size)
    candidates = [space.name for space in found]
    hint = f"its numbers look like {likely.name}'s: " if likely else ""
    first = likely.name if likely else candidates[0]
    raise LatentError(
        f"shape {shape} may be of {joined(candidates)}: {hint}say which it is, as space={first!r} (--space {first})"
    )


def space_among(value: Any, names: Sequence[str], *, latent_size: tuple[int, int] | None = None) -> str:
    """The name of the space of a latent among those of a bundle. A single space is taken without a look at the latent.

    Args:
        value: the latent or latents, as for `as_latents`.
        names: the spaces.
        latent_size: as for `as_latents`.

    Raises:
        LatentError: as for `space_of`.
    """
    return names[0] if len(names) == 1 else space_of(value, names, latent_size=latent_size).name


def _likely(array: Any, spaces: Sequence[LatentSpace], latent_size: tuple[int, int] | None) -> LatentSpace | None:
    """The space that an array's numbers look like, in the layout that each space has for this shape."""
    for space in spaces:
        try:
            (latent, *_), _ = plain_latents(array, space, latent_size)
        except LatentError:
            continue
        if (likely := likely_space(latent, spaces)) is not None:
            return likely
    return None
