"""Deep Zoom: the picture at its own size and halved again and again, in small tiles, for viewers like OpenSeadragon."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from infgen_rt.common.pixels import Bits, LevelArray
from infgen_rt.common.threads import Pool
from infgen_rt.errors import OutputError
from infgen_rt.geometry.levels import halvings
from infgen_rt.geometry.shapes import Size
from infgen_rt.writers.bands import cut, exhaust
from infgen_rt.writers.formats import Format, Layer, TileFormat
from infgen_rt.writers.metadata import Metadata
from infgen_rt.writers.srgb import srgb_profile
from infgen_rt.writers.whole import Jpeg, check_quality, save_image

# An even number, so that the 2x2 pixels that are reduced to one pixel are always in the same tile.
_TILE = 254
_OVERLAP = 1
_TILE_FILE = re.compile(r"\d+_\d+\.(jpg|png)")
_DESCRIPTOR = """<?xml version="1.0" encoding="UTF-8"?>
<Image xmlns="http://schemas.microsoft.com/deepzoom/2008" Format="{form}" Overlap="{overlap}" TileSize="{tile}">
  <Size Width="{width}" Height="{height}"/>
{metadata}</Image>
"""
# Viewers skip elements of other namespaces.
_METADATA = '  <Metadata xmlns="urn:infgen-rt:metadata">\n{entries}  </Metadata>\n'


class DeepZoom(Format):
    """A pyramid: the file NAME.dzi, and the folder NAME_files with LEVEL/COLUMN_ROW.jpg. Level 0 is a single pixel.

    Args:
        tiles: the format of the tiles.
        quality: the quality of JPEG tiles. None for JPEG's default.
        metadata: text for the file NAME.dzi.
    """

    name = "Deep Zoom"
    max_side = 2**31 - 1

    def __init__(self, tiles: TileFormat, quality: int | None = None, metadata: Metadata | None = None) -> None:
        self._tiles, self._quality, self._metadata = tiles, quality, metadata or {}

    def with_tiles(self, tile_format: TileFormat) -> "DeepZoom":
        return DeepZoom(tile_format, self._quality, self._metadata)

    def with_metadata(self, metadata: Metadata) -> "DeepZoom":
        return DeepZoom(self._tiles, self._quality, metadata)

    def encoded(self, quality: int | None, lossless: bool) -> "DeepZoom":
        check_quality(quality)
        if self._tiles == "png" and quality is not None:
            raise OutputError("PNG tiles are without loss and have no quality: write jpg tiles")
        if self._tiles == "jpg" and lossless:
            raise OutputError("jpg tiles cannot be without loss: write png tiles (tile_format, --tile-format)")
        return DeepZoom(self._tiles, quality, self._metadata)

    def outputs(self, path: Path) -> tuple[Path, ...]:
        return path, path.with_name(f"{path.stem}_files")

    def replaces(self, output: Path) -> bool:
        # Browsers give the same name to the folder of a saved page. Only the folder of a pyramid is replaced.
        return not output.is_dir() or (output.suffix.lower() != ".dzi" and _is_pyramid(output))

    def sizes(self, size: Size) -> list[Size]:
        return list(halvings(size))

    def memory(self, size: Size, bits: Bits) -> int:
        # Two windows and the reduced rows. The smaller levels together need the same amount again.
        return 2 * 3 * (_TILE + 2 * _OVERLAP) * size.width * 3

    def write(self, path: Path, layers: Sequence[Layer]) -> None:
        descriptor, folder = self.outputs(path)
        sizes = self.sizes(layers[0].size)
        shrunk: Iterator[LevelArray] = iter(())
        with Pool(thread_name_prefix="infgen-dzi") as pool:
            for number, size in enumerate(sizes):
                if number < len(layers):
                    exhaust(shrunk)
                    layer = layers[number]
                else:
                    layer = Layer(size, 8, shrunk)
                shrunk = self._level(folder / str(len(sizes) - 1 - number), layer, pool)
            # Each smaller level takes its rows from the larger one, so this writes all of them.
            exhaust(shrunk)
        width, height = sizes[0]
        text = _DESCRIPTOR.format(
            form=self._tiles, overlap=_OVERLAP, tile=_TILE, width=width, height=height, metadata=self._described()
        )
        descriptor.write_text(text, encoding="utf-8")

    def _described(self) -> str:
        """The text as an element of the file NAME.dzi."""
        from xml.sax.saxutils import quoteattr  # it imports modules for networks, which take a while to load

        entries = [
            f"    <Entry Key={quoteattr(key)} Text={quoteattr(text)}/>\n" for key, text in self._metadata.items()
        ]
        return _METADATA.format(entries="".join(entries)) if entries else ""

    def _level(self, folder: Path, layer: Layer, pool: Pool) -> Iterator[LevelArray]:
        """Write the tiles of a level, and yield its rows at half the size, uint8 [rows, width, 3]."""
        from PIL import Image

        folder.mkdir(parents=True)
        options = self._options()

        def save(tile: tuple[LevelArray, Path]) -> None:
            save_image(*tile, **options)

        for row, window in enumerate(cut(layer, _TILE, _OVERLAP)):
            tiles = []
            for column, left in enumerate(range(0, layer.size.width, _TILE)):
                columns = slice(max(0, left - _OVERLAP), left + _TILE + _OVERLAP)
                tiles.append((window[:, columns], folder / f"{column}_{row}.{self._tiles}"))
            list(pool.map(save, tiles))
            top = _OVERLAP if row else 0
            yield np.asarray(Image.fromarray(window[top : top + _TILE]).reduce(2))

    def _options(self) -> dict[str, Any]:
        if self._tiles == "jpg":
            quality = {} if self._quality is None else {"quality": self._quality}
            return {"format": "JPEG", **Jpeg.options, **quality, "icc_profile": srgb_profile()}
        from PIL.PngImagePlugin import PngInfo

        tag = PngInfo()
        tag.add(b"sRGB", b"\0")
        return {"format": "PNG", "pnginfo": tag}


def _is_pyramid(folder: Path) -> bool:
    """Whether a folder has the levels of a Deep Zoom picture, and nothing else."""
    levels = {level.name: level for level in folder.iterdir()}
    return levels.keys() == {str(number) for number in range(len(levels))} and all(
        level.is_dir() and not level.is_symlink() and all(_TILE_FILE.fullmatch(tile.name) for tile in level.iterdir())
        for level in levels.values()
    )
