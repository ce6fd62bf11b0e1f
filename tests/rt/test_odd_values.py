"""Values that are almost right: they are used as they mean, or refused with the package's own errors."""

import os
import threading
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import infgen_rt
from infgen_rt.errors import BackendError, LatentError, PlanError
from infgen_rt.latent import files
from infgen_rt.latent.arrays import as_latent
from infgen_rt.latent.spaces import latent_space

from . import tiny

FLUX2 = latent_space("flux2")
LATENT = tiny.random_latent(6, 10)


def convert(value: Any) -> np.ndarray:
    return as_latent(value, FLUX2, normalisation="model")


@pytest.mark.parametrize(
    "value",
    [
        np.asfortranarray(LATENT),
        LATENT.astype(">f4"),
        np.ascontiguousarray(LATENT[:, ::-1])[:, ::-1],
        LATENT.astype(np.longdouble),
        np.ma.masked_array(LATENT, mask=False),
        memoryview(LATENT),
        LATENT.tolist(),
    ],
    ids=["Fortran order", "big endian", "backwards", "long double", "nothing masked", "memory view", "lists"],
)
def test_an_array_of_any_layout_is_the_same_latent(value: Any) -> None:
    assert np.array_equal(convert(value), LATENT)


def test_tensors_of_any_layout_are_the_same_latent() -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.from_numpy(LATENT.copy())
    for value in (
        tensor.clone().requires_grad_(),
        tensor[None].to(memory_format=torch.channels_last),
        torch._neg_view(-tensor),
        list(tensor.clone().requires_grad_()),
        tensor.double(),
    ):
        assert np.array_equal(convert(value), LATENT)


def test_tensors_without_numbers_or_of_a_layout_that_numpy_lacks_are_refused() -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.from_numpy(LATENT.copy())
    for value in (torch.empty(32, 8, 8, device="meta"), tensor.to_sparse()):
        with pytest.raises(LatentError, match="Tensor cannot be converted to an array: .*; pass a NumPy array"):
            convert(value)


class Refuses:
    """An array of a library that does not convert it, as arrays on a graphics card."""

    def __array__(self, *_: object, **__: object) -> np.ndarray:
        raise TypeError("Implicit conversion\nis not allowed")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (Refuses(), "the Refuses cannot be converted to an array: Implicit conversion is not allowed; pass"),
        (np.ma.masked_array(LATENT, mask=LATENT > 1), "masked: fill them first"),
        ("latent.npy", "not the name of a file: load_latent"),
        (Path("latent.npy"), "not the name of a file: load_latent"),
        (infgen_rt.load_sample("harbour"), "not a Sample: pass its latent attribute"),
        ((each for each in [LATENT]), "not a generator of latents: pass a list or an array"),
        (Image.new("RGB", (64, 64)), r"not a picture: Decoder\.encode makes a latent of one"),
        ({"latent": LATENT}, "not a dict: pass its array"),
        (None, "numbers are object"),
        ([LATENT, LATENT[:, 1:]], "parts have different shapes"),
    ],
)
def test_what_is_no_array_is_refused(value: Any, text: str) -> None:
    with pytest.raises(LatentError, match=text):
        convert(value)


@pytest.mark.parametrize(
    ("value", "size"),
    [
        (np.int64(2), (160, 96)),
        (np.float32(2), (160, 96)),
        (Fraction(2), (160, 96)),
        ((np.int64(160), Decimal(96)), (160, 96)),
        (np.array([160, 96]), (160, 96)),
        ((160.0, 96.0), (160, 96)),
    ],
)
def test_numbers_of_any_type_are_sizes(decoder: infgen_rt.Decoder, value: Any, size: tuple[int, int]) -> None:
    assert decoder.picture(LATENT, value, normalisation="model").size == size


@pytest.mark.parametrize(
    "value", [True, b"2x", {160, 96}, {160: 1, 96: 2}, (160.5, 96), (160, 96, 3), (float("inf"), 1), Decimal(2)]
)
def test_what_is_no_size_is_refused(decoder: infgen_rt.Decoder, value: Any) -> None:
    with pytest.raises(PlanError, match="is not understood"):
        decoder.picture(LATENT, value, normalisation="model")


@pytest.mark.parametrize("value", [(0.5, 0, 4, 4), b"\0\0\4\4", {0, 1, 2, 3}, (0, 0, 4)])
def test_what_is_no_region_is_refused(decoder: infgen_rt.Decoder, value: Any) -> None:
    with pytest.raises(PlanError, match="is not understood"):
        decoder.picture(LATENT, normalisation="model").read(value)


@pytest.mark.parametrize("value", [0, -1, 10**9, 1.5, "2"])
def test_an_impossible_number_of_threads_is_refused(bundle: Path, value: Any) -> None:
    with pytest.raises(BackendError, match="threads are not possible: expected a whole number from 1 to 1024"):
        infgen_rt.open(bundle, threads=value)


def test_pixels_are_read_into_writable_arrays_only(decoder: infgen_rt.Decoder) -> None:
    picture = decoder.picture(LATENT, normalisation="model")
    shape = (*picture.size[::-1], 3)
    for out in (np.broadcast_to(np.zeros(3, np.uint8), shape), [1]):
        with pytest.raises(PlanError, match="cannot be written to"):
            picture.read(out=out)  # type: ignore[call-overload]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_file_is_read_as_far_as_it_goes_and_never_further_than_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pipe's length, like that of a device or of a file that grows, is not known before."""
    np.save(tmp_path / "latent.npy", LATENT)
    content = (tmp_path / "latent.npy").read_bytes()
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)

    def write(data: bytes) -> None:
        with pipe.open("wb") as file:
            try:
                file.write(data)
                file.flush()
            except BrokenPipeError:  # as wanted: the reader stops
                pass

    for length, right in ((len(content), True), (len(content) - 1, False)):
        monkeypatch.setattr(files, "MAX_FILE", length)
        thread = threading.Thread(target=write, args=(content,))
        thread.start()
        if right:
            assert np.array_equal(infgen_rt.load_latents(pipe, normalisation="model")[0], LATENT)
        else:
            with pytest.raises(LatentError, match="larger than .*, the most that is read"):
                infgen_rt.load_latents(pipe)
        thread.join()
