import io
import json
import struct
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

import infgen_rt
from infgen_rt.errors import InfGenWarning, LatentError
from infgen_rt.latent.arrays import as_latent, load_latent
from infgen_rt.latent.spaces import latent_space

from . import tiny

LATENT = tiny.random_latent(6, 10)
FLUX2 = latent_space("flux2")
PATCHIFIED = LATENT.reshape(32, 3, 2, 5, 2).transpose(0, 2, 4, 1, 3).reshape(128, 3, 5)
PACKED = PATCHIFIED.reshape(128, 15).T
DTYPES = {"float16": np.float16, "float32": np.float32, "float64": np.float64, "bfloat16": ml_dtypes.bfloat16}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("container", ["npy", "npz", "safetensors"])
@pytest.mark.parametrize("batch", [False, True])
def test_files_of_every_kind_and_dtype(tmp_path: Path, dtype: str, container: str, batch: bool) -> None:
    stored = (LATENT[None] if batch else LATENT).astype(DTYPES[dtype])
    path = tmp_path / f"latent.{container}"
    if container == "npy":
        np.save(path, stored)
    elif container == "npz":
        np.savez_compressed(path, anything=stored)
    else:
        save_file({"latent": stored, "other": np.zeros(3, np.int64)}, path)
    latent = load_latent(path)
    assert latent.dtype == np.float32 and latent.flags.c_contiguous
    assert np.array_equal(latent, LATENT.astype(DTYPES[dtype]).astype(np.float32))


@pytest.mark.parametrize("stored", [np.asfortranarray(LATENT), LATENT.astype(">f4")], ids=["fortran", "big-endian"])
def test_unusual_npy_layouts(tmp_path: Path, stored: np.ndarray) -> None:
    np.save(tmp_path / "latent.npy", stored)
    assert np.array_equal(load_latent(tmp_path / "latent.npy"), LATENT)


def test_the_array_is_chosen_by_its_name(tmp_path: Path) -> None:
    np.savez(tmp_path / "two.npz", a=LATENT, b=LATENT * 0.9)
    with pytest.raises(LatentError, match="holds a, b; say which"):
        load_latent(tmp_path / "two.npz")
    assert np.array_equal(load_latent(tmp_path / "two.npz", key="b"), LATENT * np.float32(0.9))


@pytest.mark.parametrize(
    "value",
    [LATENT, LATENT[None], PATCHIFIED, PATCHIFIED[None], PACKED, PACKED[None]],
    ids=["plain", "batch", "patchified", "patchified batch", "packed", "packed batch"],
)
def test_every_packing_gives_the_same_latent(value: np.ndarray) -> None:
    # 90 pixels are floored to five packed tokens, as the pipeline does.
    assert np.array_equal(as_latent(value, FLUX2, latent_size=(90, 48)), LATENT)


def test_the_vaes_own_latents_are_normalised() -> None:
    mean, std = np.array(FLUX2.vae_mean), np.array(FLUX2.vae_std)
    raw = (PATCHIFIED * std[:, None, None] + mean[:, None, None]).reshape(32, 2, 2, 3, 5)
    raw = raw.transpose(0, 3, 1, 4, 2).reshape(32, 6, 10)
    assert np.abs(as_latent(raw, FLUX2, normalisation="vae") - LATENT).max() < 1e-5
    assert as_latent(raw[:, :5, :7], FLUX2, normalisation="vae") == pytest.approx(LATENT[:, :5, :7], abs=1e-5)
    with pytest.warns(InfGenWarning, match="pass normalisation='vae'"):
        as_latent(raw, FLUX2)


def test_normalising_twice_is_noticed() -> None:
    with pytest.warns(InfGenWarning, match="leave out normalisation='vae'"):
        as_latent(LATENT * 0.9, FLUX2, normalisation="vae")


@pytest.mark.parametrize("value", [np.zeros((32, 4, 4)), np.full((32, 4, 4), 0.8)])
def test_odd_statistics_are_warned_of_and_go_on(value: np.ndarray) -> None:
    with pytest.warns(InfGenWarning):
        assert as_latent(value, FLUX2).shape == (32, 4, 4)


@pytest.mark.filterwarnings("error")
def test_noise_is_a_plausible_latent() -> None:
    as_latent(np.random.default_rng(0).normal(size=(32, 16, 16)), FLUX2, normalisation="model")


class Tensor:
    """What the package knows of a torch tensor."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def detach(self) -> "Tensor":
        return self

    def cpu(self) -> "Tensor":
        return self

    def float(self) -> "Tensor":
        return Tensor(self.array.astype(np.float32))

    def is_floating_point(self) -> bool:
        return True

    def numpy(self) -> np.ndarray:
        return self.array


def test_torch_tensors_are_known_by_their_manners() -> None:
    assert np.array_equal(as_latent(Tensor(LATENT.astype(ml_dtypes.bfloat16)[None]), FLUX2).shape, LATENT.shape)


def nan_at(*index: int) -> np.ndarray:
    latent = LATENT.copy()
    latent[index] = np.nan
    latent[-1, -1, -1] = np.inf
    return latent


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (LATENT[:16], r"shape \[16, 6, 10\] is not a latent's: expected \[32, h, w\]"),
        (np.stack([LATENT] * 3), "a batch of 3: Decoder.pictures"),
        (np.zeros((2, 16, 128)), "16 packed tokens, which a 64x64 picture gives"),
        (LATENT[:, :0], "not a latent's"),
        (LATENT[0, 0], "not a latent's"),
        (np.float32(3), "not a latent's"),
        (LATENT[None, None], "not a latent's"),
        (PACKED, r"15 packed tokens: say .*--latent-size"),
        (np.zeros((16, 128)), "16 packed tokens, which a 64x64 picture gives"),
        (nan_at(3, 2, 1), r"2 of 1,920 numbers are NaN or infinite, the first at \[3, 2, 1\]"),
        (np.full((32, 4, 4), 1e300), "512 of 512 numbers are NaN or infinite"),
        (LATENT.astype(np.uint8), "numbers are uint8"),
        (LATENT.astype(complex), "numbers are complex128"),
        (LATENT.astype(object), "numbers are object"),
        ([["a"]], "numbers are <U1"),
        (LATENT * 20, "not a latent's numbers"),
    ],
)
def test_unusable_latents_are_refused(value: object, text: str) -> None:
    with pytest.raises(LatentError, match=text):
        as_latent(value, FLUX2)


def test_a_wrong_packed_size_is_refused() -> None:
    with pytest.raises(LatentError, match="15 packed tokens do not make a latent of 64x64 pixels, which has 16"):
        as_latent(PACKED, FLUX2, latent_size=(64, 64))


def npy(array: np.ndarray, **options: bool) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, **options)
    return stream.getvalue()


def zipped(**members: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return stream.getvalue()


def safetensors(header: object, content: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + content


def lying_npy() -> bytes:
    """A header that promises a petabyte."""
    content = npy(np.zeros((1, 1), np.float32))
    return content.replace(b"(1, 1), }" + b" " * 14, b"(9999999, 99999999), }" + b" ")


F32 = {"dtype": "F32", "shape": [32, 1, 1], "data_offsets": [0, 128]}
HOSTILE = {
    "empty": (b"", "damaged or not"),
    "text": (b"this is not a latent at all, honestly", "damaged or not"),
    "truncated npy": (npy(LATENT)[:-100], "truncated"),
    "npy header only": (npy(LATENT)[:20], "damaged or not"),
    "longer npy": (npy(LATENT) + b"x", "truncated or damaged"),
    "lying npy": (lying_npy(), "truncated or damaged"),
    "pickled npy": (npy(np.array([{"a": 1}], object), allow_pickle=True), "pickle"),
    "pickled npz": (zipped(**{"a.npy": npy(np.array([None]), allow_pickle=True)}), "pickle"),
    "torch pickle": (zipped(**{"archive/data.pkl": b"\x80\x02."}), "PyTorch pickle"),
    "empty npz": (zipped(), "holds no array"),
    "truncated npz": (zipped(**{"a.npy": npy(LATENT)})[:-30], "damaged or not"),
    "zip of rubbish": (zipped(**{"a.npy": b"rubbish"}), "damaged or not"),
    "integers": (npy(np.zeros((32, 4, 4), np.int64)), "numbers are int64"),
    "records": (npy(np.zeros(3, [("a", "f4")])), "numbers are"),
    "truncated safetensors": (safetensors({"latent": F32}, b"\0" * 127), "truncated"),
    "safetensors of lies": (
        safetensors({"latent": F32 | {"shape": [32, 9, 9]}}, b"\0" * 128),
        "truncated or damaged",
    ),
    "negative offset": (safetensors({"latent": F32 | {"data_offsets": [-128, 0]}}, b"\0" * 128), "truncated"),
    "integer safetensors": (safetensors({"latent": F32 | {"dtype": "I64"}}, b"\0" * 256), "is I64"),
    "safetensors list": (safetensors([1, 2]), "damaged or not"),
    "huge header": (struct.pack("<Q", 2**62) + b"{}", "damaged or not"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_in_one_line(tmp_path: Path, name: str) -> None:
    content, text = HOSTILE[name]
    path = tmp_path / "latent.bin"
    path.write_bytes(content)
    with pytest.raises(LatentError, match=text) as caught:
        load_latent(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_missing_files_and_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LatentError, match="does not exist"):
        load_latent(tmp_path / "none.npy")
    with pytest.raises(LatentError, match="cannot be read"):
        load_latent(tmp_path)


def test_unknown_samples_and_spaces_are_refused() -> None:
    with pytest.raises(LatentError, match="sample 'nothing' is unknown"):
        infgen_rt.load_sample("nothing")
    with pytest.raises(LatentError, match="known are flux2"):
        latent_space("nothing")


@pytest.mark.parametrize(
    ("name", "channels", "scale", "shift"),
    [("sd15", 4, 0.18215, 0.0), ("sdxl", 4, 0.13025, 0.0), ("sd3", 16, 1.5305, 0.0609), ("flux1", 16, 0.3611, 0.1159)],
)
def test_spaces_that_are_only_scaled(name: str, channels: int, scale: float, shift: float) -> None:
    space = latent_space(name)
    stored = np.random.default_rng(0).normal(0, 1, (channels, 6, 8)).astype(np.float32)
    assert np.array_equal(as_latent(stored, space), stored)
    raw = stored / np.float32(scale) + np.float32(shift)
    assert np.abs(as_latent(raw, space, normalisation="vae") - stored).max() < 1e-5


def test_packed_latents_of_flux1() -> None:
    latent = np.random.default_rng(0).normal(0, 1, (16, 4, 6)).astype(np.float32)
    packed = latent.reshape(16, 2, 2, 3, 2).transpose(1, 3, 0, 2, 4).reshape(1, 6, 64)
    assert np.array_equal(as_latent(packed, latent_space("flux1"), latent_size=(48, 32)), latent)
