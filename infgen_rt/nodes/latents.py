"""The node for the caller's latent."""

from collections.abc import Iterator

from infgen_rt.backend.engine import Engine
from infgen_rt.bundle.manifest import Manifest
from infgen_rt.common.pixels import FloatArray
from infgen_rt.geometry.shapes import Box, Size
from infgen_rt.nodes.node import FLOAT, Cost, Step


class Given:
    """The caller's latent.

    Args:
        latent: float32 [C, h, w].
        engine: the engine. When it is closed, the latent is released.
    """

    def __init__(self, latent: FloatArray, engine: Engine) -> None:
        self._latent: FloatArray | None = latent
        self._size, self._engine = Size(*latent.shape[:0:-1]), engine
        engine.lends_to(self)

    @staticmethod
    def cost(cells: Size, manifest: Manifest) -> Cost:
        """The cost of two copies: the caller's and this node's."""
        held = 2 * latent_bytes(cells, manifest)
        return Cost(making=held, held=held)

    @property
    def size(self) -> Size:
        """Width and height in cells."""
        return self._size

    def let_go(self) -> None:
        """See `engine.Borrower`."""
        self._latent = None

    def prepare(self) -> Iterator[Step]:
        """Do nothing, because the latent is there from the start."""
        yield from ()

    def read(self, box: Box) -> FloatArray:
        """The cells of a box: float32 [C, h, w], a view."""
        latent = self._latent
        self._engine.check_open()  # if the decoder was closed before, the latent is None
        assert latent is not None
        return latent[:, *box.slices]


def latent_bytes(cells: Size, manifest: Manifest) -> int:
    """The bytes of a latent with this size in cells."""
    return manifest.latent_channels * FLOAT * cells.area
