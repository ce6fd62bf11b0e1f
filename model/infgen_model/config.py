"""The configuration of a model: a frozen description that is saved with its weights."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from infgen_model.layers import PooledBranch, TripleBlock
from infgen_rt.bundle.graphs import model_sizes
from infgen_rt.common.schema import parse

_MOST = 4096
"""The largest count that is meant. A model of more takes more memory than there is."""
_MOST_RADIUS = 16
"""The largest radius of attention in cells. The memory of attention grows with the square of the radius."""
_LEAST_RATIO = 1e-3
"""The smallest scale and frequency that is meant. The largest is its reciprocal."""
FRAMES = ("image", "cell")
STARTS = ("mask", "sampled")
OF_TRUNK = (
    *("prefill.enter.", "prefill.blocks.", "refine.grow.", "refine.levels.", "refine.adapt."),
    "refine.enlarger.to_picture.",
)
"""Prefixes of the trunk's parameters. Each latent space has a trunk of its own."""
OF_SPACE = (*OF_TRUNK, "encode.")
"""Prefixes of all parameters that belong to one latent space. Models of several spaces can share the others."""


@dataclass(frozen=True)
class Level:
    """One resolution of the trunk, the upsampler or the encoder.

    Attributes:
        width: Number of channels at this resolution.
        blocks: Number of residual blocks.
    """

    width: int
    blocks: int


@dataclass(frozen=True)
class Enlargement:
    """One enlargement of the trunk's picture, used for pictures up to a certain scale.

    Attributes:
        factor: The factor of enlargement, which is also the largest scale that it is used for.
        blocks: How many of the enlarger's convolutions it uses. The trunk's own picture uses none.
        finish: Number of channels of a last layer at half the enlarged picture's size; 0 for none. Only an even factor
            above 2 can have one.
        polish: Number of hidden channels of a correction after the finish, at the same size, which sees the finish's
            features and the enlarged picture; 0 for none. It needs a finish.
    """

    factor: int
    blocks: int
    finish: int = 0
    polish: int = 0


@dataclass(frozen=True)
class DecoderConfig:
    """Architecture of one InfGen decoder (arXiv 2509.10441) and of the encoder that goes with it.

    Attributes:
        name: The model's name in manifests.
        latent_space: Name of its latent space, for example ``"flux2"``.
        latent_channels: Number of channels C of a latent [C, h, w].
        width: Number of channels of a token, and of the part of the context that attention uses.
        trunk: Resolutions of the trunk. The first has one position per cell, and each of the others has twice the
            resolution of the one before. Only the first may use global statistics. If empty, prefill only projects.
        enlargements: Enlargements by rising factor. The context carries the enlarged picture, and the tokens correct
            it. If empty, the tokens make the whole picture.
        detail: Number of channels of the fine grid that the context also carries, at the trunk's last resolution;
            0 for none.
        frame: The position that the implicit positional embedding sees: the token's place in the whole ``"image"``, or
            in its ``"cell"``.
        start: The value of a token before attention: a learned ``"mask"`` token, or the bilinearly ``"sampled"``
            context.
        inpe_features: Number of Fourier features F of the embedding.
        inpe_sigma: Standard deviation of the Fourier frequencies, in radians per radius of the unit sphere.
        blocks: Number of cross-attention blocks.
        heads: Number of attention heads.
        key_width: Number of channels of queries and keys over all heads; a multiple of ``4 * heads``.
        mlp_ratio: Hidden width of a block's MLP divided by ``width``.
        radius: Distance in cells along each axis, from the token's centre, within which it attends to cells. ``None``
            attends to every cell.
        rotary: Lowest and highest angular frequency of the rotary embedding, in radians per cell.
        token_blocks: Number of residual 3x3 blocks at one position per token, before the upsampler.
        levels: Resolutions of the upsampler, each twice the one before. A last pixel shuffle enlarges to the patch of
            8. The last level sees the context's detail.
        channel_norm: Whether the upsampler's blocks normalise each position over its channels.
        encoder: Resolutions of the encoder, each half the one before. The last has one position per cell.
        scale_range: Smallest and largest scale that the model is trained for, as output pixels per cell / 8.
        pooled: Whether the blocks of the trunk's first resolution use global statistics. Of the tiny decoders that a
            trunk starts from, only TAEF2's has them.
        adapted: Whether a further layer makes the trunk's last features into those that the enlarger was trained on.
            The trunk of another latent space than the first needs it.
        encoder_pooled: How many of the last blocks of the encoder's last resolution use global statistics. Of the tiny
            encoders that can be copied, only TAEF2's has such blocks.
    """

    name: str
    latent_space: str
    latent_channels: int
    width: int
    trunk: tuple[Level, ...]
    enlargements: tuple[Enlargement, ...]
    detail: int
    frame: str
    start: str
    inpe_features: int
    inpe_sigma: float
    blocks: int
    heads: int
    key_width: int
    mlp_ratio: int
    radius: float | None
    rotary: tuple[float, float]
    token_blocks: int
    levels: tuple[Level, ...]
    channel_norm: bool
    encoder: tuple[Level, ...] = (Level(64, 3), Level(64, 3), Level(64, 3))
    scale_range: tuple[float, float] = (0.5, 4.0)
    pooled: bool = True
    adapted: bool = False
    encoder_pooled: int = 0

    PATCH = 8
    """Side of a token in output pixels."""

    def __post_init__(self) -> None:
        problems = [
            f"{name} must be {least} to {_MOST}, not {n}"
            for name, n, least in self._counts()
            if not least <= n <= _MOST
        ]
        if problems:
            raise ValueError("impossible model config: " + "; ".join(problems))
        for name, value, known in (("frame", self.frame, FRAMES), ("start", self.start, STARTS)):
            if value not in known:
                problems.append(f"{name} must be one of {', '.join(known)}, not {value!r}")
        if self.detail and not (self.trunk and self.levels):
            problems.append("detail needs a trunk that makes it and levels that use it")
        if self.detail and self.frame == "image":
            problems.append("detail needs the cell frame: it is made of parts that do not know where they are")
        if bool(self.enlargements) != bool(self.detail):
            problems.append("enlargements and detail need each other")
        if self.enlargements and self.detail_factor != self.PATCH:
            problems.append(f"enlargements need a trunk of 4 levels, to the latent's own size, not {len(self.trunk)}")
        factors = [each.factor for each in self.enlargements]
        if factors != sorted(set(factors)):
            problems.append(f"enlargements must have rising factors, not {factors}")
        if unfit := [each.factor for each in self.enlargements if each.finish and (each.factor % 2 or each.factor < 4)]:
            problems.append(f"only enlargements by an even factor above 2 can have a finish, not {unfit}")
        if unfit := [each.factor for each in self.enlargements if each.polish and not each.finish]:
            problems.append(f"only an enlargement with a finish can have a polish, not {unfit}")
        if self.key_width % (4 * self.heads) or self.width % self.heads:
            problems.append(
                f"with {self.heads} heads, key_width {self.key_width} must divide by {4 * self.heads} "
                f"and width {self.width} by {self.heads}"
            )
        if self.final_factor < 1:
            problems.append(f"{len(self.levels)} levels enlarge by more than the patch of {self.PATCH}")
        if not 1 <= len(self.encoder) <= 4:
            problems.append(f"encoder must have 1 to 4 levels, not {len(self.encoder)}")
        elif self.encoder_pooled > self.encoder[-1].blocks:
            problems.append(
                f"encoder_pooled must be at most the {self.encoder[-1].blocks} blocks of the encoder's last level, not "
                f"{self.encoder_pooled}"
            )
        if self.radius is not None and not 0 < self.radius <= _MOST_RADIUS:
            problems.append(f"radius must be above 0 and at most {_MOST_RADIUS}, or null, not {self.radius}")
        for name, (low, high) in (("scale_range", self.scale_range), ("rotary", self.rotary)):
            if not _LEAST_RATIO <= low <= high <= 1 / _LEAST_RATIO:
                problems.append(
                    f"{name} must be two rising numbers of {_LEAST_RATIO:g} to {1 / _LEAST_RATIO:g}, not {(low, high)}"
                )
        if not 0 <= self.inpe_sigma <= 1 / _LEAST_RATIO:
            problems.append(f"inpe_sigma must be 0 to {1 / _LEAST_RATIO:g}, not {self.inpe_sigma}")
        # The statistics of one channel of a latent with one cell would be those of a single number.
        if self.pooled and self.trunk and self.trunk[0].blocks and self.trunk[0].width < 2:
            problems.append("pooled blocks need a trunk that starts with 2 channels or more")
        if self.encoder_pooled and self.encoder and self.encoder[-1].width < 2:
            problems.append("encoder_pooled needs an encoder that ends with 2 channels or more")
        if problems:
            raise ValueError("impossible model config: " + "; ".join(problems))

    def _counts(self) -> Iterator[tuple[str, int, int]]:
        """Name, value and smallest allowed value of every field that is a count."""
        for name in ("latent_channels", "width", "inpe_features", "heads", "key_width", "mlp_ratio"):
            yield name, getattr(self, name), 1
        for name in ("detail", "blocks", "token_blocks", "encoder_pooled"):
            yield name, getattr(self, name), 0
        levels = {f"levels[{index}]": level for index, level in enumerate(self.levels)}
        levels |= {f"trunk[{index}]": level for index, level in enumerate(self.trunk)}
        levels |= {f"encoder[{index}]": level for index, level in enumerate(self.encoder)}
        for index, each in enumerate(self.enlargements):
            yield f"enlargements[{index}].factor", each.factor, 1
            yield f"enlargements[{index}].blocks", each.blocks, 0
            yield f"enlargements[{index}].finish", each.finish, 0
            yield f"enlargements[{index}].polish", each.polish, 0
        for name, level in levels.items():
            yield f"{name}.width", level.width, 1
            yield f"{name}.blocks", level.blocks, 0

    @property
    def final_factor(self) -> int:
        """Factor of the last pixel shuffle."""
        return self.PATCH >> len(self.levels)

    @property
    def detail_factor(self) -> int:
        """Positions of the context's fine grid per cell, along each axis."""
        return 1 << max(0, len(self.trunk) - 1)

    @property
    def feature_channels(self) -> int:
        """Channels F of prefill's output: those of the trunk's first resolution, or without detail the context's."""
        return self.trunk[0].width if self.detail else self.width

    @property
    def fine_channels(self) -> int | None:
        """Channels T of what the trunk gives at the latent's own size, with its picture. ``None`` without detail."""
        return self.trunk[-1].width + 3 if self.detail else None

    def context_channels(self, enlargement: Enlargement | None = None) -> int:
        """Channels D of the context. Per cell: those for attention, then its fine grid, then its enlarged pixels."""
        factor = enlargement.factor if enlargement else 0
        return self.width + (self.detail + 3 * factor**2) * self.detail_factor**2

    def sizes(self, enlargement: Enlargement | None = None) -> dict[str, int]:
        """The model's sizes, by the letters used in the shapes of graphs (``infgen_rt.bundle.graphs``)."""
        context = self.context_channels(enlargement)
        return model_sizes(
            patch=self.PATCH,
            factor=enlargement.factor if enlargement else None,
            latent=self.latent_channels,
            features=self.feature_channels,
            fine=self.fine_channels,
            context=context,
            moments=self.moments,
            encoded=self.encoder_channels,
            encode_moments=self.encoder_moments,
        )

    def enlargement_for(self, scale: tuple[float, float]) -> Enlargement | None:
        """The smallest enlargement for a scale (vertical, horizontal), or the largest if the scale is beyond all."""
        able = (each for each in self.enlargements if each.factor >= max(scale) - 1e-6)
        return next(able, self.enlargements[-1] if self.enlargements else None)

    @property
    def shared_blocks(self) -> int:
        """How many of the enlarger's convolutions the largest enlargement shares with a smaller one."""
        return max((each.blocks for each in self.enlargements[:-1]), default=0)

    @property
    def of_largest(self) -> tuple[str, ...]:
        """Prefixes of the parameters that only the largest enlargement uses. Empty without enlargements above 1."""
        if not self.enlargements or self.enlargements[-1].factor == 1:
            return ()
        largest = self.enlargements[-1]
        blocks = (f"blocks.{index}." for index in range(self.shared_blocks, largest.blocks))
        layers = (f"{name}.{largest.factor}." for name in ("leave", "finish", "polish"))
        return tuple(f"refine.enlarger.{each}" for each in (*blocks, *layers))

    @property
    def moments(self) -> tuple[int, int] | None:
        """Blocks and groups of the global statistics; ``None`` if prefill takes only a latent."""
        # Without pooled blocks there are no statistics. In the image frame, every cell has to know its place in the
        # image, so prefill has to see the whole latent anyway.
        if not self.pooled or not self.trunk or not self.trunk[0].blocks or self.frame == "image":
            return None
        return self.trunk[0].blocks, PooledBranch.GROUPS

    @property
    def prefill_is_local(self) -> bool:
        """Whether a cell's features depend only on the cells near it, once global statistics are known."""
        # In the image frame, a cell has to know its place in the image.
        return self.frame == "cell" and bool(self.moments or not (self.pooled and self.trunk and self.trunk[0].blocks))

    @property
    def prefill_halo(self) -> int:
        """Reach of prefill in cells: how far a cell's features depend on the latent, global statistics aside."""
        return 1 + TripleBlock.REACH * self.trunk[0].blocks if self.trunk else 0

    def refine_halo(self, enlargement: Enlargement | None = None) -> int:
        """Reach of refine in cells: how far a cell's context depends on the features."""
        # The reach of the trunk's picture, of entering the enlarger, of its convolutions, of leaving it, and of the
        # polish: two convolutions at half of the picture's size.
        reach = 0 if enlargement is None else 1 if enlargement.factor == 1 else 3 + enlargement.blocks
        if enlargement is not None and enlargement.polish:
            reach += math.ceil(4 / enlargement.factor)
        for level in reversed(self.trunk[1:]) if self.detail else ():
            reach = math.ceil((reach + 1 + TripleBlock.REACH * level.blocks) / 2)
        return reach

    @property
    def halo_tokens(self) -> int:
        """Reach of the upsampler: how many tokens beyond a tile's border its pixels depend on."""
        reach = 2.0 * self.token_blocks
        for depth, level in enumerate(self.levels, start=1):
            reach += 2 * level.blocks / 2**depth
        reach += 1 / 2 ** len(self.levels)  # the last 3x3 convolution
        return math.ceil(reach)

    def decodes_cells(self, enlargement: Enlargement | None) -> bool:
        """Whether the model has a graph for whole cells at an enlargement's factor (``Decode.whole_cells``)."""
        # With one token per cell, the products per cell take longer than what they save.
        return enlargement is not None and enlargement.factor > 1 and self.radius is not None

    @property
    def encoder_channels(self) -> int | None:
        """Channels E of what the encoder's pooled blocks start from. ``None`` if it has no such blocks."""
        return self.encoder[-1].width if self.encoder_pooled else None

    @property
    def encoder_moments(self) -> tuple[int, int] | None:
        """Blocks and groups of the encoder's global statistics. ``None`` if it needs none."""
        return (self.encoder_pooled, PooledBranch.GROUPS) if self.encoder_pooled else None

    @property
    def encode_halo(self) -> int:
        """Reach of encode: how many image pixels beyond a cell's border the encoded cell depends on.

        In an encoder with pooled blocks, this is the reach of the part before them.
        """
        pixels = [self.PATCH >> depth for depth in reversed(range(len(self.encoder)))]  # side of a position
        blocks = sum(3 * size * level.blocks for size, level in zip(pixels, self.encoder, strict=True))
        # The other convolutions are the first, one before every level except the first, and the last.
        whole = blocks + pixels[0] + sum(pixels[:-1]) + self.PATCH
        return whole - self.PATCH * self.encode_latent_halo

    @property
    def encode_latent_halo(self) -> int:
        """Reach in cells of the encoder's part after the statistics. 0 if it has no such part."""
        return TripleBlock.REACH * self.encoder_pooled + 1 if self.encoder_pooled else 0

    def to_json(self) -> dict[str, Any]:
        """The config as plain JSON values."""
        values: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return values

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> DecoderConfig:
        """Makes a config from the values that ``to_json`` returns.

        Raises:
            ValueError: A field is missing, unknown or impossible.
        """
        config = parse(cls, values, "config")
        known = config.to_json()
        if unknown := sorted(set(values) - set(known)):
            raise ValueError(f"unknown fields in the model config: {', '.join(unknown)}")
        return config
