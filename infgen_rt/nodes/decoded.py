"""The node for decoded pixels: the model's own picture, before it is resampled."""

from collections.abc import Iterator

from infgen_rt.backend.engine import Engine, is_finite
from infgen_rt.backend.inputs import cell_inputs, tile_inputs
from infgen_rt.backend.protocol import Values
from infgen_rt.bundle.graphs import DECODE, DECODE_CELLS, Kind
from infgen_rt.bundle.manifest import Enlargement, Memory
from infgen_rt.common.pixels import DevicePixels, FloatArray
from infgen_rt.errors import DecodeError
from infgen_rt.geometry.grid import Grid
from infgen_rt.geometry.shapes import Box, Size
from infgen_rt.geometry.windows import CellWindows, Windows
from infgen_rt.nodes.node import Cost, Node, Step

# The time of decode_cells per token, relative to that of decode. The speed of decode is the one that is measured.
_OF_CELLS = 0.6


class Decoded:
    """The pixels of a picture: float32 planes [3, h, w], about [0, 1].

    Args:
        context: the latent's context.
        grid: the picture over the latent's cells.
        windows: the way of choosing what is decoded for a box. It determines which graph decodes.
        enlargement: the context's enlargement.
        engine: the engine, which loads the graph when it first runs.
    """

    def __init__(
        self, context: Node[Values], grid: Grid, windows: Windows, enlargement: Enlargement, engine: Engine
    ) -> None:
        self._context, self._grid, self._windows = context, grid, windows
        self._enlargement, self._engine = enlargement, engine
        self._kind = _kind_for(windows)

    @staticmethod
    def cost(windows: Windows, tile: Size, tiles: int, at_once: int, patch: int, figures: Memory) -> Cost:
        """The cost of decoding tiles, several at a time.

        Args:
            windows: the way of choosing what is decoded for a tile.
            tile: the size in tokens of the largest tile.
            tiles: the number of tiles.
            at_once: the number of tiles that are decoded at a time.
            patch: the side of a token in pixels.
            figures: the recipe's memory figures.
        """
        decoded = windows.largest(tile).area
        arena, pixels = at_once * figures.decode_per_token * decoded, tiles * decoded * patch**2
        if _kind_for(windows) is DECODE_CELLS:
            # The memory of decode is counted too. A smaller picture from the same context, such as a level of a
            # pyramid, has another scale, and both graphs keep their memory.
            arena += at_once * figures.decode_cells_per_token * decoded
            pixels = round(_OF_CELLS * pixels)
        return Cost(arena=arena, pixels=pixels)

    @property
    def size(self) -> Size:
        """Width and height in pixels."""
        return self._grid.picture

    def prepare(self) -> Iterator[Step]:
        """Prepare the context; see `Node`."""
        return self._context.prepare()

    def load_shared(self) -> None:
        """Load what `read` needs if `shared` is true. It may raise BackendError, DecodeError or Cancelled."""
        self._engine.load_shared(self._kind, self._enlargement)

    def read(self, box: Box, shared: bool = False) -> FloatArray | DevicePixels:
        """The pixels of a box. They are decoded with a halo, so that they are exact. The halo is dropped.

        Args:
            box: the box in pixels.
            shared: whether to use only one thread, because other boxes are read at the same time.

        Returns:
            float32 [3, h, w], on the backend's device.

        Raises:
            BackendError: the graph, which is loaded when it is first needed, cannot be loaded.
            DecodeError: the graph failed, or gave NaN or infinite pixels.
            Cancelled: the current work was cancelled.
        """
        grid = self._grid
        tokens, cells = self._windows.of(grid.tokens_of(box))
        crop = self._context.read(cells)
        inputs = cell_inputs(crop) if self._kind is DECODE_CELLS else tile_inputs(grid, crop, cells, tokens)
        try:
            image = self._engine.run(self._kind, inputs, self._enlargement, shared)[0]
        except DecodeError as error:
            raise DecodeError(f"the tile {box} could not be decoded: {error}") from error
        pixels: FloatArray | DevicePixels = image[:, *box.relative_to(grid.pixels_of(tokens)).slices]
        if not is_finite(pixels):
            raise DecodeError(
                f"the model gave NaN or infinite pixels in {box}: pass precision='exact' (--precision exact) or "
                "another backend (--backend), and look at the latent's numbers (infgen-rt info LATENT)"
            )
        return pixels


def _kind_for(windows: Windows) -> Kind:
    """The kind of graph that decodes windows."""
    return DECODE_CELLS if isinstance(windows, CellWindows) else DECODE
