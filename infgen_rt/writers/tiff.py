"""Tiled TIFF, which is written while the picture is decoded."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from infgen_rt.common.pixels import Bits, LevelArray, level_type
from infgen_rt.common.threads import allowed
from infgen_rt.geometry.shapes import Size
from infgen_rt.writers.bands import cut, exhaust
from infgen_rt.writers.formats import Format, Layer
from infgen_rt.writers.metadata import Metadata, text_tags
from infgen_rt.writers.srgb import srgb_profile

_TILE = 256
# The bytes of tiles that are compressed at the same time, with one thread per tile.
_BATCH = 2**23
# The largest offset in a classic TIFF, which has 32-bit offsets. Unlike BigTIFF, every reader supports it.
_CLASSIC = 2**32 - 1


class Tiff(Format):
    """TIFF with 8 or 16 bits, in losslessly compressed tiles. It is a BigTIFF if it might not fit in 4 GiB.

    Args:
        metadata: text for the tags that `text_tags` names.
    """

    name = "TIFF"
    max_side = 2**31 - 1
    bits = (8, 16)

    def __init__(self, metadata: Metadata | None = None) -> None:
        self._metadata = metadata or {}

    def with_metadata(self, metadata: Metadata) -> "Tiff":
        return Tiff(metadata)

    def memory(self, size: Size, bits: Bits) -> int:
        # Two windows, and the compressed tiles of a batch.
        return 2 * _TILE * size.width * 3 * bits // 8 + 2 * _BATCH

    def write(self, path: Path, layers: Sequence[Layer]) -> None:
        from tifffile import TiffWriter

        layer = layers[0]
        tiles = _tiles(layer)
        texts = [(tag, "s", 0, text, True) for tag, text in text_tags(self._metadata).items()]
        big = most_bytes(layer.size, layer.bits) + sum(len(text[3]) for text in texts) > _CLASSIC
        with path.open("xb") as file, TiffWriter(file, bigtiff=big) as tiff:
            tiff.write(
                tiles,
                shape=(layer.size.height, layer.size.width, 3),
                dtype=level_type(layer.bits),
                tile=(_TILE, _TILE),
                photometric="rgb",
                compression="adobe_deflate",
                predictor=True,
                iccprofile=srgb_profile(),
                extratags=texts,
                metadata=None,
                software=False,
                maxworkers=max(1, allowed(os.cpu_count() or 1)),
                buffersize=_BATCH,
            )
            # TiffWriter stops after the last tile, and does not run the iterators to their end.
            exhaust(layer.bands)


def most_bytes(size: Size, bits: Bits) -> int:
    """The maximum size of the file in bytes, which it has if compression makes no tile smaller."""
    count = -(-size.width // _TILE) * -(-size.height // _TILE)
    tile = _TILE * _TILE * 3 * bits // 8
    # Compression makes a tile at most a thousandth larger. Offsets, lengths and the header are added to that.
    return count * (tile + tile // 1000 + 64) + 2**16


def _tiles(layer: Layer) -> Iterator[LevelArray]:
    """Yield the tiles row by row. Those at the right and at the bottom may be smaller."""
    for window in cut(layer, _TILE):
        for left in range(0, layer.size.width, _TILE):
            yield window[:, left : left + _TILE]
