"""Fills in a picture tile by tile, starting where the user looks, as in a viewer's window. It can be cancelled.

python examples/window.py
"""

import threading

import numpy as np
from PIL import Image

import infgen_rt

cancel = threading.Event()

with infgen_rt.open() as decoder:
    picture = decoder.picture(infgen_rt.load_sample("colosseum").latent, "1080p")
    # First show a soft preview of the whole picture, then sharp tiles, starting where the user looks.
    canvas = np.array(Image.fromarray(picture.preview()).resize(picture.size))
    for box, pixels in picture.tiles(start=(400, 600)):
        if cancel.is_set():
            break
        canvas[box.slices] = pixels
        print("drawn:", box)

Image.fromarray(canvas).save("window.png")
