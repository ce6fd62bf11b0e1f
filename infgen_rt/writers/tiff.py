"""Tiled TIFF, written as it is decoded."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from infgen_rt.common.pixels import Bits, LevelArray, level_type
from infgen_rt.geometry.shapes import Size
from infgen_rt.writers.bands import cut, exhaust
from infgen_rt.writers.formats import Format, Layer
from infgen_rt.writers.srgb import srgb_profile

_TILE = 256
# Bytes of tiles that are compressed together, each in one thread.
_BATCH = 2**23
# Classic TIFF counts bytes in 32 bits, and every reader knows it.
_CLASSIC = 2**32 - 1


class Tiff(Format):
    """TIFF of 8 or 16 bits, in tiles that are compressed without loss; a BigTIFF where it might not fit in 4 GiB."""

    name = "TIFF"
    max_side = 2**31 - 1
    bits = (8, 16)

    def memory(self, size: Size, bits: Bits) -> int:
        # Two windows, and the tiles of a batch, compressed.
        return 2 * _TILE * size.width * 3 * bits // 8 + 2 * _BATCH

    def write(self, path: Path, layers: Sequence[Layer]) -> None:
        from tifffile import TiffWriter

        layer = layers[0]
        tiles = _tiles(layer)
        big = most_bytes(layer.size, layer.bits) > _CLASSIC
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
                metadata=None,
                software=False,
                maxworkers=os.cpu_count(),
                buffersize=_BATCH,
            )
            # It counts them, and never asks for one after the last.
            exhaust(tiles)


def most_bytes(size: Size, bits: Bits) -> int:
    """Bytes that the file has at most: tiles that did not shrink at all, of whole size at the edges, and the rest."""
    count = -(-size.width // _TILE) * -(-size.height // _TILE)
    tile = _TILE * _TILE * 3 * bits // 8
    # What does not shrink grows by a part in a thousand at most; offsets, lengths and the header come on top.
    return count * (tile + tile // 1000 + 64) + 2**16


def _tiles(layer: Layer) -> Iterator[LevelArray]:
    """Tiles row by row; those at the right and bottom edges are smaller."""
    for window in cut(layer, _TILE):
        for left in range(0, layer.size.width, _TILE):
            yield window[:, left : left + _TILE]
