"""Made the thumbnails here: ``python tests/data/make.py SAMPLE PHOTO``; one pixel is one cell of the latent."""

import sys
from pathlib import Path

from PIL import Image

CELLS = (120, 68)


def main(sample: str, photo: str) -> None:
    """Cuts the photograph as the sample's latent was cut, and reduces it."""
    image = Image.open(photo).convert("RGB")
    scale = min(image.width / CELLS[0], image.height / CELLS[1])
    width, height = CELLS[0] * scale, CELLS[1] * scale
    left, top = (image.width - width) / 2, (image.height - height) / 2
    small = image.resize(CELLS, Image.Resampling.BOX, box=(left, top, left + width, top + height))
    small.save(Path(__file__).parent / f"{sample}.png")


if __name__ == "__main__":
    main(*sys.argv[1:])
