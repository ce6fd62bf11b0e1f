"""Reads one corner of a large picture within a memory limit, and prints the plan for decoding all of it.

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
