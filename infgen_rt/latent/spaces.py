"""The table of latent spaces. A latent space is a convention for the meaning of a latent's numbers."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path

import numpy as np

from infgen_rt.common.arguments import TEXT, instance
from infgen_rt.common.pixels import FloatArray
from infgen_rt.common.schema import parse
from infgen_rt.errors import LatentError
from infgen_rt.geometry.shapes import Size

_TABLE = Path(__file__).parents[1] / "data" / "latent_spaces.json"


@dataclass(frozen=True)
class Model:
    """A diffusion model, or a family of models, whose latents are in a space.

    Attributes:
        title: its name as its makers write it.
        names: the names that `latent_space` understands. Capitals, dots, dashes, underscores and spaces do not matter.
        source: the evidence that it uses the space, such as its VAE's config.
    """

    title: str
    names: tuple[str, ...]
    source: str


@dataclass(frozen=True)
class LatentSpace:
    """A convention for the meaning of a latent's numbers.

    A latent *in* the space has the normalisation in which the diffusion transformer sees it. `vae_mean` and `vae_std`
    convert the VAE's own latents to this normalisation. Each has one number for all channels, one per channel, or one
    per channel of the 2x2-patchified latent, in the order channel * 4 + row * 2 + column.

    Attributes:
        name: its name in the table.
        title: the name of the models that it was made for.
        channels: the number of channels of an unpatchified latent.
        cell_pixels: the side of a cell in pixels at scale 1.
        usual_std: the smallest and largest overall standard deviation of real latents. None if not measured.
        usual_mean: the largest overall |mean| of real latents. None if not measured.
        vae_mean: the means to subtract from the VAE's own latents.
        vae_std: the standard deviations by which these differences are divided.
        source: the source of the numbers.
        models: the models that use it.
        packed: whether pipelines return its latents packed into sequences [h/2 * w/2, 4 * channels].
        patchified: whether programs return its latents patchified 2x2, as [4 * channels, h/2, w/2].
        comfyui_raw: whether ComfyUI's files hold latents in the VAE's own normalisation, and not in the model's.
        raw_example: what returns the VAE's own latents, with a verb, for messages.
        channel_mean: each channel's mean over the latents of many pictures. None if not measured.
        channel_std: each channel's standard deviation over the latents of many pictures. None if not measured.
        correlations: correlations of each pair of channels over pictures, as the upper triangle row by row. None if not
            measured.
        level_weights: a weight for each channel, 1 in sum. With them, the logarithms of the channels' root mean squares
            are averaged to the latent's level, which differs little between pictures. None if not measured.
        usual_level: the average level of the latents of many pictures.
        detail_std: each channel's standard deviation of the differences between cells and the means of their four
            neighbours. None if not measured.
        detail_correlations: the correlations of these differences, like `correlations`. None if not measured.
    """

    channels: int
    cell_pixels: int
    usual_std: tuple[float, float] | None
    usual_mean: float | None
    vae_mean: tuple[float, ...]
    vae_std: tuple[float, ...]
    source: str
    name: str = ""
    title: str = ""
    models: tuple[Model, ...] = ()
    packed: bool = False
    patchified: bool = False
    comfyui_raw: bool = True
    raw_example: str = "the VAE's encoder returns"
    channel_mean: tuple[float, ...] | None = None
    channel_std: tuple[float, ...] | None = None
    correlations: tuple[float, ...] | None = None
    level_weights: tuple[float, ...] | None = None
    usual_level: float = 0.0
    detail_std: tuple[float, ...] | None = None
    detail_correlations: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        """Check values beyond their types.

        Raises:
            ValueError: the statistics or the correlations do not fit the number of channels.
        """
        for values in (self.vae_mean, self.vae_std):
            if len(values) not in (1, self.channels, 4 * self.channels):
                raise ValueError(f"{len(values)} statistics are not of {self.channels} channels")
        for measured in (self.channel_mean, self.channel_std, self.detail_std, self.level_weights):
            if measured is not None and len(measured) != self.channels:
                raise ValueError(f"{len(measured)} statistics are not of {self.channels} channels")
        for pairs in (self.correlations, self.detail_correlations):
            if pairs is not None and len(pairs) != self.channels * (self.channels - 1) // 2:
                raise ValueError(f"{len(pairs)} correlations are not of {self.channels} channels")

    @property
    def normalisation(self) -> str:
        """How the VAE's own latents are converted to those of the diffusion model, in words."""
        if len(self.vae_std) == 1:
            shift = f"minus {self.vae_mean[0]:g}, then " if len(self.vae_mean) == 1 and self.vae_mean[0] else ""
            return f"{shift}times {1 / self.vae_std[0]:.5g}"
        patchified = ", patchified 2x2" if len(self.vae_std) > self.channels else ""
        return f"a mean and a deviation for each of {len(self.vae_std)} channels{patchified}"

    def native_size(self, latent: FloatArray) -> Size:
        """The size in pixels of the picture of a latent [channels, h, w] at scale 1."""
        _, height, width = latent.shape
        return Size(width * self.cell_pixels, height * self.cell_pixels)

    def normalise(self, latent: FloatArray) -> FloatArray:
        """Convert a VAE's own latent (the unscaled output of its encoder, with the batch norm undone) into the space.

        Args:
            latent: float32 [channels, h, w].
        """
        mean, std = self._pattern(self.vae_mean, latent), self._pattern(self.vae_std, latent)
        return (latent - mean) / std

    def denormalise(self, latent: FloatArray) -> FloatArray:
        """Undo `normalise`. The result is a latent for the VAE's own decoder.

        Args:
            latent: float32 [channels, h, w].
        """
        return latent * self._pattern(self.vae_std, latent) + self._pattern(self.vae_mean, latent)

    def _pattern(self, values: tuple[float, ...], latent: FloatArray) -> FloatArray:
        """Arrange values so that they broadcast over a latent: [1 or C, 1, 1], or [C, h, w] for patchified channels."""
        if len(values) in (1, self.channels):
            return np.asarray(values, np.float32)[:, None, None]
        height, width = latent.shape[1:]
        square = np.asarray(values, np.float32).reshape(self.channels, 2, 2)
        return np.tile(square, (1, -(-height // 2), -(-width // 2)))[:, :height, :width]


SPACE = instance(LatentSpace, "a LatentSpace, as spaces.latent_space returns")
"""The latent spaces, for checks of arguments."""


@cache
def latent_spaces() -> dict[str, LatentSpace]:
    """All known latent spaces, by name."""
    table = json.loads(_TABLE.read_text(encoding="utf-8"))
    return {name: parse(LatentSpace, {**value, "name": name}, name) for name, value in table.items()}


def latent_space(name: str) -> LatentSpace:
    """Look up a latent space.

    Args:
        name: the name of the space, or of a model that uses it, such as `sd1.5` or `Z-Image`. Capitals, dots, dashes,
            underscores, spaces and an owner before the name, as in `stabilityai/sdxl-turbo`, do not matter.

    Raises:
        LatentError: there is no latent space or model with this name.

    Examples:
        >>> from infgen_rt import spaces
        >>> spaces.latent_space("Z-Image").name
        'flux1'
    """
    TEXT.check(name=name)
    found = _spaces_by_name().get(_plain(name))
    if found is None:
        near = _near(name)
        hint = f" (did you mean {near}?)" if near else ""
        known = ", ".join(latent_spaces())
        raise LatentError(
            f"latent space {name!r} is unknown to this version{hint}: known are {known}, and the models that "
            "`infgen-rt spaces` lists"
        )
    return found


def _near(name: str) -> str | None:
    """The name that an unknown one probably stands for, in words. None if it may stand for several spaces."""
    plain, known, close = _plain(name), _spaces_by_name(), 0.75
    # A space's own name is more likely than that of one of the many models.
    if nearest := get_close_matches(plain, latent_spaces(), 1, close):
        return nearest[0]
    models = get_close_matches(plain, known, len(known), close)
    spaces = {known[model].name for model in models}
    return f"{_written(models[0])}, of the space {spaces.pop()}" if len(spaces) == 1 else None


def joined(names: Sequence[str]) -> str:
    """Names as alternatives in a sentence: `a`, `a or b`, `a, b or c`."""
    return " or ".join((", ".join(names[:-1]), names[-1])) if len(names) > 1 else names[0]


def _plain(name: str) -> str:
    """A name without the characters that people write differently, and without an owner before a slash."""
    return re.sub(r"[^a-z0-9]", "", name.lower().rpartition("/")[2])


def _written(plain: str) -> str:
    """A name as the table writes it."""
    space = _spaces_by_name()[plain]
    names = (space.name, *(name for model in space.models for name in model.names))
    return next(name for name in names if _plain(name) == plain)


@cache
def _spaces_by_name() -> dict[str, LatentSpace]:
    """The spaces by the plain forms (see `_plain`) of their own names and of their models' names."""
    spaces = latent_spaces().values()
    models = {_plain(name): space for space in spaces for model in space.models for name in model.names}
    return models | {_plain(space.name): space for space in spaces}
