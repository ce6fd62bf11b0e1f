"""The sample latents that come with the package, with which the decoder can be tried."""

import json
from dataclasses import dataclass
from pathlib import Path

from infgen_rt.common.arguments import TEXT
from infgen_rt.common.pixels import FloatArray
from infgen_rt.errors import LatentError
from infgen_rt.latent.arrays import as_latent
from infgen_rt.latent.files import read_array
from infgen_rt.latent.spaces import latent_space

FOLDER = Path(__file__).parents[1] / "samples"


@dataclass(frozen=True, eq=False)
class Sample:
    """A latent made from a freely licensed photograph.

    Attributes:
        name: the sample's name.
        title: a description of the photograph.
        source: the photograph's origin.
        licence: the photograph's licence.
        latent: float32 [channels, h, w], in the space of FLUX.2 and the diffusion model's normalisation.

    Examples:
        >>> import infgen_rt
        >>> infgen_rt.load_sample("harbour").licence
        'CC0-1.0'
    """

    name: str
    title: str
    source: str
    licence: str
    latent: FloatArray


def sample_names() -> tuple[str, ...]:
    """The names of the samples, in alphabetical order.

    Examples:
        >>> import infgen_rt
        >>> infgen_rt.sample_names()
        ('colosseum', 'harbour', 'osprey')
    """
    return tuple(sorted(_index()))


def load_sample(name: str) -> Sample:
    """Load a sample.

    Raises:
        LatentError: there is no sample with this name.

    Examples:
        >>> import infgen_rt
        >>> sample = infgen_rt.load_sample("harbour")
        >>> sample.latent.shape
        (32, 68, 120)
    """
    TEXT.check(name=name)
    index = _index()
    if name not in index:
        raise LatentError(f"sample {name!r} is unknown: there are {', '.join(sorted(index))}")
    stored = read_array(FOLDER / f"{name}.npz")
    return Sample(name, **index[name], latent=as_latent(stored, latent_space("flux2")))


def _index() -> dict[str, dict[str, str]]:
    """The title, source and licence of each sample, by its name."""
    index: dict[str, dict[str, str]] = json.loads((FOLDER / "index.json").read_text(encoding="utf-8"))
    return index
