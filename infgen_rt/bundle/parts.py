"""The parts of a manifest."""

from dataclasses import dataclass, field

from infgen_rt.bundle.graphs import Kind, graph_name, is_of_space


@dataclass(frozen=True)
class ModelInfo:
    """General information on a model.

    Attributes:
        name: its name.
        version: its version.
        licence: the licence of its weights.
        training: a description of its training, for people.
        parameters: the number of its parameters for each kind of graph.
    """

    name: str
    version: str
    licence: str
    training: str
    parameters: dict[str, int]


@dataclass(frozen=True)
class Halo:
    """The reach of each graph, which is the halo that its tiles need.

    Attributes:
        tokens: the reach of decode in tokens. A token's pixels depend on this many tokens on each side.
        cells: the reach of decode in cells of the context, from a token's centre. None for the whole context.
        encode_pixels: the reach of encode in pixels, around a cell.
        refine: the reach of refine in cells. In a model with a trunk, it is the reach of the trunk.
        prefill: the reach of prefill in cells.
        encode_latent: the reach of encode_latent in cells. 0 for a model whose encoder has no statistics.
    """

    tokens: int
    cells: float | None
    encode_pixels: int
    refine: int = 0
    prefill: int = 0
    encode_latent: int = 0


@dataclass(frozen=True)
class Enlargement:
    """One of a model's contexts, which is for pictures up to a certain scale.

    Attributes:
        factor: the scale of the picture that the context holds, which is also the largest scale that the context is
            for. None if it is for all scales.
        channels: the number of channels of the context.
        halo: the reach of trunk and refine together, in cells.
        work: the multiply-adds per cell of all graphs before decode. 0 if they were not counted.
    """

    factor: int | None
    channels: int
    halo: int
    work: int = 0

    def graph(self, kind: str) -> str:
        """The name of its graph of a kind: `refine`, `decode` or `decode_cells`."""
        return graph_name(kind, self.factor)


@dataclass(frozen=True)
class Shapes:
    """The smallest and the largest side that the graphs take.

    Attributes:
        latent: the sides of a latent, in cells.
        context: the sides of decode's part of a context, in cells.
        tokens: the sides of decode's tiles, in tokens.
    """

    latent: tuple[int, int]
    context: tuple[int, int]
    tokens: tuple[int, int]


@dataclass(frozen=True)
class Memory:
    """The measured memory of a recipe. The defaults are for figures that were not measured, or are not needed.

    Attributes:
        base: the bytes of the loaded graphs.
        prefill_per_cell: the bytes of prefill per cell that it runs on, halos included.
        decode_per_token: the bytes of decode per token, halos included.
        encode_per_cell: the bytes of encode per cell, halos included.
        refine_per_cell: the bytes of refine per cell, halos included.
        statistics_per_cell: the bytes of statistics per cell, halos included.
        trunk_per_cell: the bytes of the trunk per cell, halos included.
        encode_statistics_per_cell: the bytes of encode_statistics per cell, halos included.
        encode_latent_per_cell: the bytes of encode_latent per cell, halos included.
        decode_cells_per_token: the bytes of decode_cells per token, halos included.
        stages: the bytes that are added to `base` if there are several stages, for the loaded graphs of the encoder and
            of another enlargement.
    """

    base: int
    prefill_per_cell: int
    decode_per_token: int
    encode_per_cell: int = 64 * 2**10
    refine_per_cell: int = 32 * 2**10
    statistics_per_cell: int = 8 * 2**10
    trunk_per_cell: int = 0
    encode_statistics_per_cell: int = 8 * 2**10
    encode_latent_per_cell: int = 8 * 2**10
    decode_cells_per_token: int = 0
    stages: int = 0

    def loaded(self, stages: int) -> int:
        """The bytes of the graphs that are loaded for a number of stages."""
        return self.base + (self.stages if stages > 1 else 0)


@dataclass(frozen=True)
class FixedShape:
    """A shape that decode and encode take, as pairs of height and width.

    Attributes:
        tokens: decode's tile, in tokens.
        context: decode's part of the context, in cells.
        image: encode's picture, in pixels.
    """

    tokens: tuple[int, int]
    context: tuple[int, int]
    image: tuple[int, int]


@dataclass(frozen=True)
class Recipe:
    """One export of the model, for one target in one precision.

    Attributes:
        name: its name.
        target: the export target.
        precision: the precision of the weights: `fp32`, `fp16` or `int8`.
        graphs: the file of each graph, or its folder of files, by the graph's name. Prefill and decode are always
            there. In a model with enlargements, the names of refine, decode and decode_cells end with the factor.
        memory: the measured memory. None if the graphs were not run in their own runtime.
        shapes: the only shapes that decode and encode take. If it is empty, they take any shape.
        weights: the file of weights that the graphs refer to. None if the graphs' own files have all weights.
        compute_units: the units of an Apple device that suit each graph of a Core ML recipe, by the names of Swift's
            `MLComputeUnits`. Empty for other targets.
        space_weights: the file of weights that the graphs of the model's latent space refer to instead of `weights`.
            None if all graphs refer to `weights`, as those of a bundle's first model do.
    """

    name: str
    target: str
    precision: str
    graphs: dict[str, str]
    memory: Memory | None
    shapes: tuple[FixedShape, ...] = ()
    weights: str | None = None
    compute_units: dict[str, str] = field(default_factory=dict)
    space_weights: str | None = None

    def has(self, kind: Kind, enlargement: Enlargement | None = None) -> bool:
        """Whether it has the graph of a kind: that of an enlargement, if there is one graph per enlargement."""
        return (enlargement.graph(kind.name) if kind.enlarged and enlargement else kind.name) in self.graphs

    def weights_of(self, graph: str) -> tuple[str, ...]:
        """The files of weights that a graph's file refers to.

        A file that holds several graphs, as PyTorch's does, may refer to both files of weights.
        """
        several = list(self.graphs.values()).count(self.graphs[graph]) > 1
        own = (is_of_space(graph) and self.space_weights) or self.weights
        files = (self.space_weights, self.weights) if several else (own,)
        return tuple(file for file in files if file)

    @property
    def files(self) -> tuple[str, ...]:
        """All files that the recipe names. For a graph in a folder, it is the folder."""
        return (*self.graphs.values(), *(file for file in (self.weights, self.space_weights) if file is not None))


@dataclass(frozen=True)
class FileInfo:
    """The facts by which a file is checked.

    Attributes:
        sha256: its SHA-256, in hexadecimal.
        bytes: its length in bytes.
    """

    sha256: str
    bytes: int
