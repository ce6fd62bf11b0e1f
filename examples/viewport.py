"""Reads one corner of a picture that is too large for memory, and shows what it would take to decode all of it.

python examples/viewport.py
"""

from PIL import Image

import infgen_rt

latent = infgen_rt.load_sample("harbour").latent

with infgen_rt.open(memory="500MiB") as decoder:
    picture = decoder.picture(latent, "4x")
    print(picture.plan)
    corner = picture.read((0, picture.size.height - 600, 800, 600))

Image.fromarray(corner).save("corner.png")
