"""Decoded pixels: the model's own picture, at the size that it is decoded at."""

from collections.abc import Iterator

from infgen_rt.backend.engine import Engine, is_finite
from infgen_rt.backend.inputs import tile_inputs
from infgen_rt.backend.protocol import Values
from infgen_rt.bundle.manifest import Enlargement, Memory
from infgen_rt.common.pixels import DevicePixels, FloatArray
from infgen_rt.errors import DecodeError
from infgen_rt.geometry.grid import Grid
from infgen_rt.geometry.shapes import Box, Size
from infgen_rt.nodes.node import Cost, Node, Step


class Decoded:
    """A picture's pixels, float32 planes [3, h, w], about [0, 1].

    Args:
        context: of the latent.
        grid: the picture over the latent's cells.
        enlargement: the context's.
        engine: with decode loaded.
    """

    def __init__(self, context: Node[Values], grid: Grid, enlargement: Enlargement, engine: Engine) -> None:
        self._context, self._grid, self._enlargement, self._engine = context, grid, enlargement, engine

    @staticmethod
    def cost(tokens: Size, tiles: int, at_once: int, patch: int, figures: Memory) -> Cost:
        """Of tiles that are decoded several at once.

        Args:
            tokens: that are decoded for the largest tile, its halo included.
            tiles: how many there are.
            at_once: how many are decoded at a time.
            patch: pixels of a token, each way.
            figures: the recipe's.
        """
        return Cost(arena=at_once * figures.decode_per_token * tokens.area, pixels=tiles * tokens.area * patch**2)

    @property
    def size(self) -> Size:
        """Width and height in pixels."""
        return self._grid.picture

    def prepare(self) -> Iterator[Step]:
        """Prepare the context; see `Node`."""
        return self._context.prepare()

    def load_shared(self) -> None:
        """Get ready for boxes that are read at the same time."""
        self._engine.load_shared(self._enlargement)

    def read(self, box: Box, shared: bool = False) -> FloatArray | DevicePixels:
        """The pixels of a box: the tokens under it are decoded with the halo that makes them exact, which is dropped.

        Args:
            box: in pixels.
            shared: with one thread, beside others that do the same; after `load_shared`.

        Raises:
            DecodeError: the graph failed, or gave NaN or infinite pixels.
        """
        grid, halo = self._grid, self._engine.manifest.halo
        tokens = grid.tokens_of(box).grow(halo.tokens, grid.tokens.box)
        cells = grid.context_of(tokens, halo.cells)
        inputs = tile_inputs(grid, self._context.read(cells), cells, tokens)
        try:
            image = self._engine.decode(inputs, self._enlargement, shared)
        except DecodeError as error:
            raise DecodeError(f"the tile {box} could not be decoded: {error}") from error
        pixels = image[:, *box.relative_to(grid.pixels_of(tokens)).slices]
        if not is_finite(pixels):
            raise DecodeError(f"the model gave NaN or infinite pixels in {box}: is the latent usable?")
        return pixels
