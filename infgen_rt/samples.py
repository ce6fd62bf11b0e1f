"""The sample latents in the package, to try the decoder with."""

from dataclasses import dataclass
from pathlib import Path

from .errors import LatentError
from .files import read_array
from .latents import as_latent
from .pixels import FloatArray
from .spaces import latent_space

FOLDER = Path(__file__).parent / "samples"


@dataclass(frozen=True)
class Sample:
    """A latent made of a freely licensed photograph.

    Attributes:
        name: what to ask for it by.
        title: what it shows.
        source: the photograph's origin.
        licence: the photograph's licence.
        latent: float32 [channels, h, w].
    """

    name: str
    title: str
    source: str
    licence: str
    latent: FloatArray


def sample_names() -> tuple[str, ...]:
    """Names of the samples, in alphabetical order."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.safetensors")))


def load_sample(name: str) -> Sample:
    """Load a sample.

    Raises:
        LatentError: there is none of that name.
    """
    names = sample_names()
    if name not in names:
        raise LatentError(f"sample {name!r} is unknown: there are {', '.join(names) or 'none in this installation'}")
    array, metadata = read_array(FOLDER / f"{name}.safetensors")
    return Sample(
        name=name,
        title=metadata.get("title", ""),
        source=metadata.get("source", ""),
        licence=metadata.get("licence", ""),
        latent=as_latent(array, latent_space("flux2")),
    )
