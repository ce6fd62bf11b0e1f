"""Runs one way of decoding a latent, in its own process, which ``benchmarks.process`` starts.

It reads an ``Order`` as JSON from standard input, and prints its measurements as JSON. Times begin with a latent in
memory, and end with a uint8 picture in memory, or in a file if the order names a picture file. Graphs are loaded before
the time begins. The first picture of a process takes longer than later ones, for which memory is at hand and
operations are prepared. ``seconds`` is the time of the first picture, and ``again`` the median of later ones.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from math import inf
from threading import Event, Timer
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray
from PIL import Image

import infgen_rt
from infgen_rt.backend.protocol import load_backend
from infgen_rt.common.memory import peak_memory
from infgen_rt.common.pixels import to_bytes

Values = NDArray[np.float32]
BOX = 1024
"""Side of a viewport in pixels."""
FIRST = 256
"""Side of a first tile in pixels."""
LATER = 3
"""Number of pictures after the first."""
LONG = 20.0
"""Seconds that a first picture takes at least if no other follows it. Its process is not repeated either."""


def infgen(order: dict[str, Any], latent: Values) -> dict[str, Any]:
    """Decodes the whole picture with this project, into an array or into a picture file."""
    output = order["output"]
    with _open(order) as decoder:
        wanted = {"stages": order["stages"], "max_scale": inf if order["one_stage"] else None, "tile": order["tile"]}
        plan = partial(decoder.picture, latent, tuple(order["size"]), **wanted)
        plan()  # loads the graphs that the size needs
        found: dict[str, float] = {}
        if output and not output.endswith(".npy"):
            start = time.perf_counter()
            picture = plan()
            form = picture.check_save(output, force=True)
            planned, _ = picture.for_saving(form, picture.size, 8).memory_to_save(form, picture.size, 8)
            picture.save(output, force=True)
            found["seconds"] = time.perf_counter() - start
        else:
            found = _pictures(lambda: plan().read())
            picture = plan()
            planned = picture.plan.memory
            if output:
                np.save(output, picture.read())
        return {**found, "arithmetic": decoder.backend.arithmetic, "planned": planned}


def first_tile(order: dict[str, Any], latent: Values) -> dict[str, Any]:
    """Decodes a first tile and then the whole picture with this project. Times are in seconds since the epoch."""
    with _open(order) as decoder:
        picture = decoder.picture(latent, tuple(order["size"]))
        picture.read((0, 0, min(FIRST, picture.size.width), min(FIRST, picture.size.height)))
        first = time.time()
        picture.read()
        return {"first": first, "finished": time.time()}


def viewport(order: dict[str, Any], latent: Values) -> dict[str, Any]:
    """Reads the middle of a picture as a viewer does: for the first time, again, and moved by half its width."""
    with _open(order) as decoder:
        plan = partial(decoder.picture, latent, tuple(order["size"]), max_scale=inf)
        plan()  # loads the graphs that the size needs
        start = time.perf_counter()
        picture = plan()
        width, height = (min(BOX, side) for side in picture.size)
        box = ((picture.size.width - width) // 2, (picture.size.height - height) // 2, width, height)
        seconds = [_timed(lambda: picture.read(box), start), _timed(lambda: picture.read(box))]
        moved = (max(0, box[0] - width // 2), *box[1:])
        return {"seconds": seconds[0], "again": seconds[1], "moved": _timed(lambda: picture.read(moved))}


def cancelling(order: dict[str, Any], latent: Values) -> dict[str, Any]:
    """Measures how long saving a picture goes on after it is cancelled, at several times after its start."""
    waited = []
    with _open(order) as decoder:
        for moment in order["moments"]:
            cancel = Event()
            times: list[float] = []

            def stop(cancel: Event = cancel, times: list[float] = times) -> None:
                times.append(time.perf_counter())
                cancel.set()

            timer = Timer(moment, stop)
            picture = decoder.picture(latent, tuple(order["size"]), stages=order["stages"])
            timer.start()
            try:
                picture.save(order["output"], force=True, cancel=cancel)
            except infgen_rt.Cancelled:
                waited.append(time.perf_counter() - times[0])
            timer.cancel()
    return {"seconds": waited}


def closing(order: dict[str, Any], latent: Values) -> dict[str, Any]:
    """Measures the memory of the process before a decoder is opened, after a picture, and after it is closed."""
    load_backend(order["backend"])
    resident = [psutil.Process().memory_info().rss]
    decoder = _open(order)
    picture = decoder.picture(latent, tuple(order["size"]))
    for _ in picture.tiles():
        pass
    resident.append(psutil.Process().memory_info().rss)
    decoder.close()
    del picture, decoder
    resident.append(psutil.Process().memory_info().rss)
    return {"resident": resident}


def graph(order: dict[str, Any], latent: Values) -> dict[str, Any]:
    """Runs a classic decoder on the whole latent, then an upscaler if there is one, and resamples to the size."""
    decode = _network(order, order["model"])
    enlarge = _network(order, order["upscaler"]) if order["upscaler"] else None

    def picture() -> None:
        image = decode(latent[None])
        if enlarge is not None:
            image = enlarge(np.clip(image, 0, 1))
        _resampled(image[0], order)

    return _pictures(picture)


def diffusers(order: dict[str, Any], latent: Values) -> dict[str, Any]:
    """Runs the full VAE of ``diffusers`` in PyTorch, in tiles if the order says so, and resamples to the size."""
    import torch

    from benchmarks.peers import FullDecoder

    torch.set_num_threads(order["threads"])
    network = FullDecoder().eval()
    if order["tiling"]:
        network.vae.enable_tiling()

    def picture() -> None:
        with torch.inference_mode():
            image = network(torch.from_numpy(latent[None])).numpy()
        _resampled(image[0], order)

    return _pictures(picture)


def products(order: dict[str, Any], latent: Values) -> dict[str, Any]:
    """Measures multiply-adds per second of a large matrix product, which is the most that an engine reaches here."""
    side, repeat = 2048, 5
    matrix = np.random.default_rng(0).normal(0, 1, (side, side)).astype(np.float32)
    multiply = _network(order, order["model"])
    multiply(matrix)
    times = [_timed(lambda: multiply(matrix)) for _ in range(repeat)]
    return {"rate": side**3 / sorted(times)[repeat // 2]}


def _pictures(picture: Callable[[], object]) -> dict[str, float]:
    """Makes a first picture and, unless it takes long, some more.

    Args:
        picture: Makes a picture.

    Returns:
        ``seconds`` and ``again``, and ``finished``, which is when the first picture was finished, in seconds since the
        epoch. If there was no other picture, ``again`` is the time of the first.
    """
    seconds, finished = _timed(picture), time.time()
    later = [_timed(picture) for _ in range(LATER)] if seconds < LONG else [seconds]
    return {"seconds": seconds, "again": statistics.median(later), "finished": finished}


def _timed(work: Callable[[], object], start: float | None = None) -> float:
    began = time.perf_counter() if start is None else start
    work()
    return time.perf_counter() - began


def _open(order: dict[str, Any]) -> infgen_rt.Decoder:
    options = {name: order[name] for name in ("device", "precision", "threads", "memory")}
    return infgen_rt.open(order["model"], order["backend"], **options)


def _network(order: dict[str, Any], file: str) -> Callable[[Values], Values]:
    """Loads an ONNX graph into an engine. OpenVINO computes in float32 if the precision is ``exact``."""
    if order["backend"] == "onnxruntime":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = order["threads"]
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        return lambda value: np.asarray(session.run(None, {name: value})[0])
    from infgen_runtimes.openvino import shared_core

    settings = {"INFERENCE_NUM_THREADS": order["threads"]}
    exact = {"INFERENCE_PRECISION_HINT": "f32"} if order["precision"] == "exact" else {}
    compiled = shared_core().compile_model(file, "CPU", {**settings, **exact})
    return lambda value: np.asarray(compiled([value])[0])


def _resampled(image: Values, order: dict[str, Any]) -> None:
    """Resamples as in the evaluation: by bicubic to enlarge, and by Lanczos to reduce an upscaler's picture."""
    picture = Image.fromarray(to_bytes(image))
    if picture.size != tuple(order["size"]):
        how = Image.Resampling.LANCZOS if order["upscaler"] else Image.Resampling.BICUBIC
        picture = picture.resize(tuple(order["size"]), how)
    np.asarray(picture)


KINDS = {"infgen": infgen, "first_tile": first_tile, "viewport": viewport, "graph": graph, "diffusers": diffusers}
KINDS |= {"products": products, "cancelling": cancelling, "closing": closing}


def main() -> None:
    """Carries out the order on standard input."""
    order = json.load(sys.stdin)
    result = KINDS[order["kind"]](order, np.load(order["latent"]))
    json.dump({**result, "peak": peak_memory()}, sys.stdout)


if __name__ == "__main__":
    main()
