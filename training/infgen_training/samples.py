"""Makes the sample latents that ship with the runtime: ``python -m infgen_training.samples --help``.

The values are rounded to multiples of 1/32, which is about a hundredth of their range. The rounded values compress to
about half of the size that they have in float16.
"""

from __future__ import annotations

import json
from pathlib import Path

import click
import numpy as np
from PIL import Image

from infgen_rt.errors import InputError
from infgen_training.config import PATCH
from infgen_training.options import FILE
from infgen_training.photos import open_photo
from infgen_training.teacher import AUTOENCODER, AUTOENCODER_HELP, Teacher
from infgen_training.views import to_tensor


@click.command()
@click.argument("photo", type=FILE)
@click.option("--teacher", type=AUTOENCODER, required=True, help=AUTOENCODER_HELP)
@click.option("--cells", type=(int, int), default=(120, 68), show_default=True, help="Latent width, height in cells.")
@click.option("--name", required=True)
@click.option("--title", required=True)
@click.option("--source", required=True)
@click.option("--licence", required=True)
@click.option("-o", "--output", type=click.Path(file_okay=False, path_type=Path), required=True)
def main(
    photo: Path, teacher: Path, cells: tuple[int, int], name: str, title: str, source: str, licence: str, output: Path
) -> None:
    """Encodes the middle of PHOTO as a sample latent, and adds it to the index in the output folder.

    PHOTO is cropped to the aspect ratio of the latent.
    """
    try:
        image, maker = open_photo(photo), Teacher.load(teacher)
    except (InputError, FileNotFoundError) as error:
        raise click.ClickException(str(error)) from error
    scale = min(image.width / cells[0], image.height / cells[1])
    width, height = cells[0] * scale, cells[1] * scale
    left, top = (image.width - width) / 2, (image.height - height) / 2
    size = (PATCH * cells[0], PATCH * cells[1])
    small = image.resize(size, Image.Resampling.BICUBIC, box=(left, top, left + width, top + height))
    latent = maker.encode(to_tensor(np.asarray(small))[None])[0].numpy()
    output.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(output / f"{name}.npz", latent=(np.round(latent * 32) / 32).astype(np.float16))
    file = output / "index.json"
    index = json.loads(file.read_text()) if file.exists() else {}
    index[name] = {"title": title, "source": source, "licence": licence}
    file.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
