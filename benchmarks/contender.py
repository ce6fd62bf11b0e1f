"""One way of turning a latent into a picture, run once in a process of its own; started by ``benchmarks.speed``.

Reads ``{"contender", "latent", "size", "model", "threads", "output"}`` as JSON, prints ``{"seconds", "peak"}``: seconds
from an array in memory to a uint8 picture in memory (or a file, for those that write one), graphs loaded before the
clock starts, and the process's peak resident memory in bytes.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

import infgen_rt
from infgen_rt.memory import peak_memory
from infgen_rt.pixels import to_bytes


def infgen(order: dict[str, Any], latent: NDArray[np.float32]) -> dict[str, Any]:
    """This project: whole picture as an array, or as a file that is not an array's."""
    output = order["output"]
    with _open(order) as decoder:
        start = time.perf_counter()
        picture = decoder.picture(latent, tuple(order["size"]))
        if output and not output.endswith(".npy"):
            picture.save(output, force=True)
            seconds = time.perf_counter() - start
        else:
            pixels = picture.read()
            seconds = time.perf_counter() - start
            if output:
                np.save(output, pixels)
        return {"seconds": seconds, "arithmetic": decoder.backend.arithmetic}


def first_tile(order: dict[str, Any], latent: NDArray[np.float32]) -> dict[str, Any]:
    """This project's first pixels, and when they were there, in seconds since the epoch."""
    with _open(order) as decoder:
        picture = decoder.picture(latent)
        picture.read((0, 0, *map(min, order["size"], picture.size)))
        return {"finished": time.time()}


def _open(order: dict[str, Any]) -> infgen_rt.Decoder:
    options = {name: order[name] for name in ("device", "precision", "threads")}
    return infgen_rt.open(order["model"], order["backend"], **options)


def teacher(order: dict[str, Any], latent: NDArray[np.float32]) -> dict[str, Any]:
    """A classic decoder graph in ONNX Runtime on the whole latent, then bicubic to the size if it is another."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = order["threads"]
    session = onnxruntime.InferenceSession(order["model"], options, providers=["CPUExecutionProvider"])
    start = time.perf_counter()
    (image,) = session.run(None, {"latent": latent[None]})
    picture = Image.fromarray(to_bytes(image[0]))
    if picture.size != tuple(order["size"]):
        picture = picture.resize(tuple(order["size"]), Image.Resampling.BICUBIC)
    np.asarray(picture)
    return {"seconds": time.perf_counter() - start}


def main() -> None:
    """Runs the contender named in the order on standard input."""
    order = json.load(sys.stdin)
    latent = np.load(order["latent"])
    result = {"infgen": infgen, "first_tile": first_tile, "teacher": teacher}[order["contender"]](order, latent)
    json.dump({**result, "peak": peak_memory()}, sys.stdout)


if __name__ == "__main__":
    main()
