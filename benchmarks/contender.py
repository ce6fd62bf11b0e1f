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

from infgen_rt.memory import peak_memory
from infgen_rt.pixels import to_bytes


def infgen(order: dict[str, Any], latent: NDArray[np.float32]) -> float:
    """This project: whole picture as an array, or a PNG when there is an output."""
    import infgen_rt

    with infgen_rt.open(order["model"], backend="onnxruntime", threads=order["threads"]) as decoder:
        start = time.perf_counter()
        picture = decoder.picture(latent, tuple(order["size"]))
        if order["output"]:
            picture.save(order["output"], force=True)
        else:
            picture.read()
        return time.perf_counter() - start


def teacher(order: dict[str, Any], latent: NDArray[np.float32]) -> float:
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
    return time.perf_counter() - start


def main() -> None:
    """Runs the contender named in the order on standard input."""
    order = json.load(sys.stdin)
    latent = np.load(order["latent"])
    seconds = {"infgen": infgen, "teacher": teacher}[order["contender"]](order, latent)
    json.dump({"seconds": seconds, "peak": peak_memory()}, sys.stdout)


if __name__ == "__main__":
    main()
