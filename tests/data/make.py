"""Makes the files here. One pixel of a thumbnail is one cell of the latent.

    python tests/data/make.py thumbnail SAMPLE PHOTO
    python tests/data/make.py spaces PHOTO TEACHERS
    python tests/data/make.py plain STUDY

The second command encodes the middle of a photograph with the tiny autoencoder of each latent space. The
third takes the folder that ``benchmarks.studies.normalisation`` has written, and keeps the parts of its drawn pictures
whose latents in the VAE's own normalisation look most like normalised ones.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from benchmarks.studies.normalisation import parts
from infgen_rt.common.pixels import FloatArray
from infgen_rt.latent.evidence import level
from infgen_rt.latent.spaces import LatentSpace, latent_space
from infgen_training.teacher import Teacher
from infgen_training.views import to_tensor

FOLDER = Path(__file__).parent
CELLS, FEW = (120, 68), (40, 30)
SPACES = ("sd15", "sdxl", "sd3", "flux1")


def thumbnail(sample: str, photo: str) -> None:
    """Cuts the photograph as the sample's latent was cut, and reduces it."""
    cut(Path(photo), CELLS, 1).save(FOLDER / f"{sample}.png")


def spaces(photo: str, teachers: str) -> None:
    """A latent of each space, as diffusion models scale it, and the thumbnail."""
    image = cut(Path(photo), FEW, 8)
    latents = {}
    for space in SPACES:
        teacher = Teacher.load(Path(teachers) / f"{space}_autoencoder.py")
        with torch.inference_mode():
            latents[space] = teacher.encode(to_tensor(np.asarray(image))[None])[0].half().contiguous()
    save_file(latents, FOLDER / "spaces.safetensors")
    image.resize(FEW, Image.Resampling.BOX).save(FOLDER / "spaces.png")


def plain(study: str) -> None:
    """The hardest part of 16x16 cells of a dozen drawn pictures, half of them of one colour."""
    space, found = latent_space("flux2"), {}
    with np.load(Path(study) / "drawn.npz") as archive:
        for name in archive.files:
            cuts = [part.astype(np.float32) for part in parts(archive[name], 16, 16)]
            found[name] = min(cuts, key=lambda part: hardness(space.denormalise(part), space))
    chosen: list[str] = []
    for kind in ("one colour", "drawn"):
        names = [name for name in found if name.endswith(kind)]
        chosen += sorted(names, key=lambda name: hardness(space.denormalise(found[name]), space))[:6]
    np.savez_compressed(FOLDER / "plain_pictures.npz", **{name: found[name].astype(np.float16) for name in chosen})


def hardness(latent: FloatArray, space: LatentSpace) -> float:
    """Small if one of the VAE's own latents looks like a normalised one."""
    return level(latent, space) + 3 * max(0.0, float(latent.std()) - 0.85)


def cut(photo: Path, cells: tuple[int, int], side: int) -> Image.Image:
    """The middle of a photograph with the ratio of a latent's sides, with so many pixels per cell."""
    image = Image.open(photo).convert("RGB")
    scale = min(image.width / cells[0], image.height / cells[1])
    width, height = cells[0] * scale, cells[1] * scale
    left, top = (image.width - width) / 2, (image.height - height) / 2
    size = (cells[0] * side, cells[1] * side)
    return image.resize(size, Image.Resampling.BOX, box=(left, top, left + width, top + height))


if __name__ == "__main__":
    {"thumbnail": thumbnail, "spaces": spaces, "plain": plain}[sys.argv[1]](*sys.argv[2:])
