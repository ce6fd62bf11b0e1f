"""Nodes for the graphs between the features and a context. A model that lacks one of the graphs lacks its node."""

from collections.abc import Mapping

from infgen_rt.backend.engine import Engine
from infgen_rt.backend.protocol import Values
from infgen_rt.bundle.graphs import REFINE, TRUNK
from infgen_rt.bundle.manifest import Enlargement, Manifest, Memory
from infgen_rt.geometry.shapes import Box
from infgen_rt.geometry.tiling import HaloTiling
from infgen_rt.nodes.features import cut
from infgen_rt.nodes.node import FLOAT, Cost, Derived, Node

Inputs = Mapping[str, Values]
"""The inputs of a graph by name, all for the same cells."""


class Features(Derived):
    """The features [1, F, h, w], by their name as an input of trunk and refine.

    Args:
        features: the node for features.
    """

    def __init__(self, features: Node[Values]) -> None:
        super().__init__(features)

    def read(self, box: Box) -> Inputs:
        """The features of some cells."""
        return {TRUNK.inputs[0].name: self._source.read(box)}


class Grown(Derived):
    """The features, together with the fine features [1, T, P * h, P * w] that the trunk computes from them.

    Args:
        features: the node for features, by name.
        halo: the reach of the trunk: the number of cells around a box that the box's fine features depend on.
        engine: the engine, with the trunk graph.
    """

    def __init__(self, features: Node[Inputs], halo: int, engine: Engine) -> None:
        super().__init__(features)
        self._halo, self._engine = halo, engine

    @staticmethod
    def cost(tiles: HaloTiling, refined: HaloTiling, manifest: Manifest, figures: Memory) -> Cost:
        """The cost of the fine features for the tiles of a context, which are computed one at a time.

        Args:
            tiles: the tiles of the context, with the halo of trunk and refine.
            refined: the same tiles, with the halo of refine.
            manifest: the model's manifest.
            figures: the recipe's memory figures.
        """
        cut_out = fine_bytes(manifest) * refined.window.area if refined.window != tiles.window else 0
        return Cost(reading=figures.trunk_per_cell * tiles.window.area + cut_out)

    def read(self, box: Box) -> Inputs:
        """The features and the fine features of some cells."""
        window = box.grow(self._halo, self.size.box)
        features = self._source.read(window)
        fine = self._engine.run(TRUNK, features)
        inner, outer = (Box(*(self._engine.manifest.patch * side for side in each)) for each in (box, window))
        return {name: cut(each, box, window) for name, each in features.items()} | {
            TRUNK.output.name: cut(fine, inner, outer)
        }


class Refined(Derived):
    """The context [1, D, h, w] for one enlargement.

    Args:
        inputs: the node for refine's inputs.
        halo: the reach of refine: the number of cells around a box that the box's context depends on.
        enlargement: the context's enlargement.
        engine: the engine, with the refine graph.
    """

    def __init__(self, inputs: Node[Inputs], halo: int, enlargement: Enlargement, engine: Engine) -> None:
        super().__init__(inputs)
        self._halo, self._enlargement, self._engine = halo, enlargement, engine

    @staticmethod
    def cost(tiles: HaloTiling, manifest: Manifest, figures: Memory) -> Cost:
        """The cost of the tiles of a context, which are refined one at a time.

        Args:
            tiles: the tiles of the context, with the halo of refine.
            manifest: the model's manifest.
            figures: the recipe's memory figures.
        """
        return Cost(reading=(figures.refine_per_cell + fine_bytes(manifest)) * tiles.window.area)

    def read(self, box: Box) -> Values:
        """The context of some cells, on the backend's device."""
        window = box.grow(self._halo, self.size.box)
        return cut(self._engine.run(REFINE, self._source.read(window), self._enlargement), box, window)


def fine_bytes(manifest: Manifest) -> int:
    """The bytes of the fine features per cell. 0 for a model without a trunk."""
    return (manifest.fine_channels or 0) * FLOAT * manifest.patch**2
