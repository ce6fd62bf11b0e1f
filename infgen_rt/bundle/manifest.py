"""Manifests. A manifest describes a model, so that the runtime knows it before a graph is loaded."""

import json
import math
import re
from dataclasses import asdict, astuple, dataclass
from pathlib import PurePosixPath
from typing import Any

from infgen_rt.bundle.graphs import DECODE_CELLS, REFINE, STATISTICS, TRUNK, Kind, kinds, model_sizes
from infgen_rt.bundle.parts import Enlargement, FileInfo, FixedShape, Halo, Memory, ModelInfo, Recipe, Shapes
from infgen_rt.common.callers import raise_callers
from infgen_rt.common.schema import SchemaError, parse
from infgen_rt.errors import BundleError, one_line

__all__ = [
    "FORMAT",
    "MANIFEST",
    "Enlargement",
    "FileInfo",
    "FixedShape",
    "FormatError",
    "Halo",
    "Manifest",
    "Memory",
    "ModelInfo",
    "Recipe",
    "Shapes",
    "load",
]

FORMAT = 6
# Format 2 added refine, format 3 statistics, format 4 enlargements, format 5 the trunk, and format 6 the file of
# weights that graphs share.
_READABLE = (1, 2, 3, 4, 5, FORMAT)
MANIFEST = "manifest.json"
# Twice the memory of the first model that shipped, for bundles without any measured figures.
_TYPICAL = Memory(base=256 * 2**20, prefill_per_cell=64 * 2**10, decode_per_token=256 * 2**10)
# The largest number of channels, moments or pixels per side of a patch, and the largest scale.
_MOST = 2**16


class FormatError(BundleError):
    """A manifest has a format that this version does not read. The message says what to do."""


def load(text: str | bytes) -> dict[str, Any]:
    """The JSON values of a manifest file.

    Raises:
        BundleError: it is not JSON.
        FormatError: it has a newer format, or none.
    """
    try:
        data = json.loads(text, object_pairs_hook=_without_twins)
    except (ValueError, RecursionError) as error:
        raise_callers(error)
        raise BundleError(f"{MANIFEST} is not valid JSON: {one_line(error)}") from None
    version = data.get("format") if isinstance(data, dict) else None
    if version is None:
        raise FormatError(f"this {MANIFEST} is not that of a bundle, which has a 'format': pass another folder or zip")
    if type(version) is not int or version < 1:
        raise FormatError(f"{MANIFEST} is not that of a bundle, whose format is a number from 1: pass another one")
    if version not in _READABLE:
        raise FormatError(f"{MANIFEST} has format {version!r}, this version reads 1 to {FORMAT}: upgrade infgen-rt")
    return dict(data)


@dataclass(frozen=True)
class Manifest:
    """The description of a model, which the runtime reads before it loads a graph.

    Attributes:
        model: its name, version, licence and training.
        latent_space: the name of the space of its latents.
        latent_channels: the number of channels of a latent.
        context_channels: the number of channels of the context of a model without enlargements.
        patch: the side of a token in pixels, which is also the side of a cell at scale 1.
        scale_range: the smallest and the largest scale that it was trained for.
        halo: the reach of each graph.
        shapes: the smallest and the largest side that the graphs take.
        recipes: its exports.
        files: the digest and the length of each file, by name.
        verification: the exporter's comparisons of each graph with PyTorch.
        format: the version of the manifest's format.
        feature_channels: the number of channels of features. None for a model without refine.
        fine_channels: the number of channels of fine features. None for a model without a trunk.
        moments: the number of prefill's blocks and of their groups, which is the shape of statistics. None for a model
            without statistics.
        enlargements: its contexts by rising factor. Empty for a model with one context for all scales.
        prefill_is_local: whether a cell's features depend only on the cells within `halo.prefill`, in a model without
            statistics. If it is false, such a model's prefill sees the whole latent. With statistics, prefill is
            always local.
        encoder_channels: the number of channels of an encoded picture. None if the encoder has no statistics.
        encoder_moments: the numbers of blocks and groups of the encoder's statistics. None without them.

    Examples:
        >>> import infgen_rt
        >>> manifest = infgen_rt.Bundle.open().manifest
        >>> manifest.patch, manifest.latent_channels
        (8, 32)
    """

    model: ModelInfo
    latent_space: str
    latent_channels: int
    context_channels: int
    patch: int
    scale_range: tuple[float, float]
    halo: Halo
    shapes: Shapes
    recipes: tuple[Recipe, ...]
    files: dict[str, FileInfo]
    verification: tuple[dict[str, Any], ...] = ()
    format: int = FORMAT
    feature_channels: int | None = None
    fine_channels: int | None = None
    moments: tuple[int, int] | None = None
    enlargements: tuple[Enlargement, ...] = ()
    prefill_is_local: bool = False
    encoder_channels: int | None = None
    encoder_moments: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        """Check values beyond their types.

        Raises:
            BundleError: a value is out of range, or a recipe names a file that is not listed.
        """
        for name, info in self.files.items():
            if not _is_safe(name):
                raise BundleError(f"manifest: file name {name!r} does not stay inside the bundle")
            if info.bytes < 0 or not re.fullmatch(r"[0-9a-f]{64}", info.sha256):
                raise BundleError(f"manifest: file {name!r} has no valid sha256 and length")
        factors = [each.factor for each in self.enlargements]
        if None in factors or factors != sorted(set(factors), key=lambda factor: factor or 0):
            raise BundleError(f"manifest: enlargements must have rising factors, not {factors}")
        if self.encoder_moments is not None and not (self.encoder_channels and min(self.encoder_moments) > 0):
            raise BundleError(
                "manifest: the encoder has statistics, and 'encoder_channels' and 'encoder_moments' give no shape of "
                "them"
            )
        for recipe in self.recipes:
            if missing := self._for_pictures(recipe) - recipe.graphs.keys():
                raise BundleError(f"manifest: recipe {recipe.name!r} lacks the graph {min(missing)!r}")
            has = self.kinds(recipe)
            encoder = {kind.name for kind in has if not kind.picture}
            if (there := encoder & recipe.graphs.keys()) and (missing := encoder - there):
                raise BundleError(f"manifest: recipe {recipe.name!r} lacks the graph {min(missing)!r}")
            if REFINE.name in {kind.name for kind in has} and not self.feature_channels:
                raise BundleError(f"manifest: recipe {recipe.name!r} refines, and 'feature_channels' is missing")
            if TRUNK in has and not self.fine_channels:
                raise BundleError(f"manifest: recipe {recipe.name!r} has a trunk, and 'fine_channels' is missing")
            if STATISTICS in has and not (self.moments and min(self.moments) > 0):
                raise BundleError(
                    f"manifest: recipe {recipe.name!r} has statistics, and 'moments' gives no shape of them"
                )
            for name in recipe.files:
                if not self.files_of(name):
                    raise BundleError(f"manifest: recipe {recipe.name!r} names {name!r}, which is not in 'files'")
        channels = min(each.channels for each in self.contexts)
        counts = (self.latent_channels, channels, self.patch, self.scale_range[0], *(f or 0 for f in factors))
        ranges = (self.scale_range, self.shapes.latent, self.shapes.context, self.shapes.tokens)
        if min(counts) <= 0 or any(low > high for low, high in ranges):
            raise BundleError("manifest: channels, patch and scale must be above 0 and ranges ascend")
        most_channels = max(each.channels for each in self.contexts)
        optional = (self.feature_channels, self.fine_channels, self.encoder_channels)
        moments = (*(self.moments or ()), *(self.encoder_moments or ()))
        largest = max(*counts, most_channels, *(each or 0 for each in optional), *moments)
        if largest > _MOST:
            raise BundleError(f"manifest: {largest:g} channels, moments, pixels or scales are more than {_MOST:,}")
        halos = (each.halo for each in self.contexts)
        if min(self.halo.tokens, self.halo.encode_pixels, self.halo.encode_latent, self.halo.prefill, *halos) < 0 or (
            self.halo.cells is not None and self.halo.cells < 0
        ):
            raise BundleError("manifest: halos must not be negative")

    @classmethod
    def of(cls, data: dict[str, Any]) -> "Manifest":
        """A manifest from the values that `load` returns, or from the part of them that describes one model.

        Raises:
            BundleError: a value is missing, has the wrong type, or is out of range.
        """
        try:
            return parse(cls, data, "manifest")
        except SchemaError as error:
            raise BundleError(str(error)) from None

    def to_json(self) -> str:
        """The manifest as indented JSON, ready to be written to `manifest.json`."""
        return json.dumps(asdict(self), indent=2) + "\n"

    def files_of(self, graph: str) -> list[str]:
        """The names of a graph's files: its only file, or all files in its folder."""
        return [graph] if graph in self.files else [name for name in self.files if name.startswith(f"{graph}/")]

    def psnr(self, recipe: str, arithmetic: str, encoding: bool = False) -> float | None:
        """The lowest PSNR against float32, in decibels, as the exporter measured it. None if the manifest has none.

        Args:
            recipe: the name of the recipe.
            arithmetic: the arithmetic in which its graphs are computed.
            encoding: whether it is that of the encoder's graphs. Otherwise, it is that of the graphs for pictures.
        """
        found = []
        chosen = next((each for each in self.recipes if each.name == recipe), None)
        if chosen is None:
            return None
        # The exporter checks graphs for these targets in float32, whatever the precision of their weights.
        checked = "fp32" if chosen.target in ("openvino", "torch") else chosen.precision
        for graph in self._encoding(chosen) if encoding else self._for_pictures(chosen):
            try:
                entry = next(e for e in self.verification if e["recipe"] == recipe and e["graph"] == graph)
                native = entry["native"].get(arithmetic)
                if native is None and arithmetic not in ("fp32", checked):
                    return None  # the exporter's machine does not support it
                # Equal outputs have an infinite PSNR, which JSON cannot express.
                checks = (math.inf if check["psnr"] is None else check["psnr"] for check in entry["checks"])
                found.append(float(min(checks) if native is None else native))
            # Another exporter made the bundle.
            except (StopIteration, KeyError, TypeError, ValueError, AttributeError) as error:
                raise_callers(error)
                return None
        return min(found, default=None)

    def kinds(self, recipe: Recipe) -> tuple[Kind, ...]:
        """The kinds of graph in a recipe. Encode is included even if the recipe lacks it."""
        refines = bool(self.enlargements) or recipe.has(REFINE)
        gathers, grows = map(recipe.has, (STATISTICS, TRUNK))
        by_cells = any(recipe.has(DECODE_CELLS, each) for each in self.enlargements)
        return kinds(gathers, grows, refines, self.encoder_moments is not None, by_cells)

    def sizes(self, enlargement: Enlargement | None = None) -> dict[str, int]:
        """The model's sizes, by the letters that are used in the shapes of graphs."""
        own = enlargement or self.contexts[0]
        return model_sizes(
            patch=self.patch,
            factor=own.factor,
            latent=self.latent_channels,
            features=self.feature_channels,
            fine=self.fine_channels,
            context=own.channels,
            moments=self.moments,
            encoded=self.encoder_channels,
            encode_moments=self.encoder_moments,
        )

    def _for_pictures(self, recipe: Recipe) -> set[str]:
        """The graphs that a picture needs, whether the recipe has them or not, and the optional ones that it has."""
        needed = [kind for kind in self.kinds(recipe) if kind.picture]
        names = (
            (kind, each.graph(kind.name) if kind.enlarged else kind.name) for kind in needed for each in self.contexts
        )
        return {name for kind, name in names if not kind.optional or name in recipe.graphs}

    def _encoding(self, recipe: Recipe) -> set[str]:
        """The graphs that encode a picture, whether the recipe has them or not."""
        return {kind.name for kind in self.kinds(recipe) if not kind.picture}

    @property
    def contexts(self) -> tuple[Enlargement, ...]:
        """The enlargements by rising factor. A model without any has one context for all scales."""
        return self.enlargements or (Enlargement(None, self.context_channels, self.halo.refine),)

    def context_for(self, scale: tuple[float, float]) -> Enlargement:
        """The smallest enlargement for a scale (vertical, horizontal), or the largest one if none is large enough."""
        able = (each for each in self.contexts if each.factor is None or max(scale) <= each.factor + 1e-6)
        return next(able, self.contexts[-1])

    def refine_halo(self, enlargement: Enlargement) -> int:
        """The reach of refine alone, without that of the trunk, in cells."""
        return enlargement.halo - (self.halo.refine if self.fine_channels else 0)

    @property
    def encode_halo(self) -> int:
        """The reach of encode, rounded up to whole cells."""
        return -(-self.halo.encode_pixels // self.patch)

    def memory(self, recipe: Recipe) -> Memory:
        """The memory figures of a recipe. If they were not measured, each is the largest of all other recipes."""
        if recipe.memory is not None:
            return recipe.memory
        measured = [each.memory for each in self.recipes if each.memory is not None] or [_TYPICAL]
        return Memory(*(max(values) for values in zip(*(astuple(figures) for figures in measured), strict=True)))


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The dictionary of a JSON object. ValueError if it has a key twice, because programs disagree which one counts."""
    made = dict(pairs)
    if len(made) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"{next(key for key in keys if keys.count(key) > 1)!r} is listed twice")
    return made


def _is_safe(name: str) -> bool:
    path = PurePosixPath(name)
    return not (name == "" or path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name)
