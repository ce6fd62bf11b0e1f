import io
import json
import struct
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

import infgen_rt
from infgen_rt.errors import InfGenWarning, LatentError
from infgen_rt.latent.arrays import as_latent, as_latents, load_latent, load_latents
from infgen_rt.latent.choosing import space_of
from infgen_rt.latent.evidence import is_foreign, normalisation_of
from infgen_rt.latent.spaces import latent_space

from . import tiny

LATENT = tiny.random_latent(6, 10)
FLUX2 = latent_space("flux2")
DATA = Path(__file__).parents[1] / "data"
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


def test_a_name_for_the_only_array_of_a_npy_file_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "latent.npy", LATENT)
    with pytest.raises(LatentError, match="is not 'b'; leave out the key"):
        load_latent(tmp_path / "latent.npy", key="b")


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
    with pytest.warns(InfGenWarning, match="pass normalisation='model'"):
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
        (np.full((32, 2, 128), np.inf), "8,192 of 8,192 numbers are NaN or infinite"),
        (LATENT.astype(np.uint8), "numbers are uint8"),
        (LATENT.astype(complex), "numbers are complex128"),
        (LATENT.astype(object), "numbers are object"),
        ([["a"]], "numbers are <U1"),
        ({"samples": LATENT}, r"not a dict: pass its array, as value\['samples'\]"),
        (np.zeros((32, 4, 4), ml_dtypes.float8_e4m3fn), "numbers are float8, which keeps too little"),
        (np.zeros((1, 64, 64)), r"tokens of 64 numbers are those of flux1"),
        (LATENT * 20, "not a latent's numbers"),
    ],
)
def test_unusable_latents_are_refused(value: object, text: str) -> None:
    """Without NumPy's own warnings before the error."""
    with warnings.catch_warnings(), pytest.raises(LatentError, match=text):
        warnings.simplefilter("error", RuntimeWarning)
        as_latent(value, FLUX2)


def test_the_size_of_a_plain_latent_is_checked() -> None:
    for size in ((80, 48), (87, 55), (95, 63)):  # pipelines round down
        assert np.array_equal(as_latent(LATENT, FLUX2, latent_size=size), LATENT)
    for size in ((48, 80), (79, 48), (512, 512), (0, 0)):
        with pytest.raises(LatentError, match="has 80x48 pixels, and not"):
            as_latent(LATENT, FLUX2, latent_size=size)


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
    "empty": (b"", "is empty"),
    "text": (b"this is not a latent at all, honestly", "damaged or not"),
    "truncated npy": (npy(LATENT)[:-100], "truncated"),
    "npy header only": (npy(LATENT)[:20], "damaged or not"),
    "longer npy": (npy(LATENT) + b"x", "truncated or damaged"),
    "lying npy": (lying_npy(), "truncated or damaged"),
    "pickled npy": (npy(np.array([{"a": 1}], object), allow_pickle=True), "pickle"),
    "pickled npz": (zipped(**{"a.npy": npy(np.array([None]), allow_pickle=True)}), "pickle"),
    "torch pickle": (zipped(**{"archive/data.pkl": b"\x80\x02."}), "PyTorch or Python pickle, .* numpy.save"),
    "old torch pickle": (b"\x80\x02\x8a\nl\xfcF", "PyTorch or Python pickle, .* numpy.save"),
    "picture": (b"\x89PNG\r\n", "is a PNG picture"),
    "web page": (b"<!doctype html><html>", "is a web page"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1", "run git lfs pull"),
    "bundle": (zipped(**{"manifest.json": b"{}"}), "is a model bundle, and not a latent: .*--model"),
    "float8 npy": (npy(np.zeros((32, 4, 4), ml_dtypes.float8_e4m3fn)), "one byte each, as .npy keeps float8"),
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
    "float8 safetensors": (safetensors({"latent": F32 | {"dtype": "F8_E4M3"}}, b"\0" * 128), "convert it before"),
    "two usual names": (
        safetensors({"latent": F32, "latents": F32}, b"\0" * 128),
        "holds latent, latents; say which to read",
    ),
    "many names": (safetensors({f"t{i}": F32 for i in range(90)}, b"\0" * 128), "and 82 more; say which .*--key"),
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
    with pytest.raises(LatentError, match="is a folder: pass one of the files in it"):
        load_latent(tmp_path)


def test_unknown_samples_and_spaces_are_refused() -> None:
    with pytest.raises(LatentError, match="sample 'nothing' is unknown"):
        infgen_rt.load_sample("nothing")
    with pytest.raises(LatentError, match="known are sd15, sdxl, sd3, flux1, flux2"):
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


def smooth(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    """Numbers of unit deviation whose neighbours are alike along the last two axes, as a picture's."""
    values = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    for axis in (-1, -2):
        values = sum(np.roll(values, shift, axis) for shift in range(5))
    return np.asarray(values / values.std(), np.float32)


BATCH = np.stack([tiny.random_latent(6, 10, seed) for seed in range(3)])
BATCH_PATCHIFIED = BATCH.reshape(3, 32, 3, 2, 5, 2).transpose(0, 1, 3, 5, 2, 4).reshape(3, 128, 3, 5)


@pytest.mark.parametrize(
    "value",
    [
        BATCH,
        BATCH[:, :, None],
        BATCH_PATCHIFIED,
        BATCH_PATCHIFIED[:, :, None],
        BATCH_PATCHIFIED.reshape(3, 128, 15).transpose(0, 2, 1),
    ],
    ids=["plain", "frames", "patchified", "patchified frames", "packed"],
)
def test_a_batch_is_as_many_latents(value: np.ndarray, tmp_path: Path) -> None:
    latents = as_latents(value, FLUX2, latent_size=(80, 48))
    assert np.array_equal(np.stack(latents), BATCH)
    with pytest.raises(LatentError, match="a batch of 3: Decoder.pictures"):
        as_latent(value, FLUX2, latent_size=(80, 48))
    np.save(tmp_path / "batch.npy", value)
    assert len(load_latents(tmp_path / "batch.npy", latent_size=(80, 48))) == 3
    with pytest.raises(LatentError, match=r"batch.npy holds a batch of 3: load_latents"):
        load_latent(tmp_path / "batch.npy", latent_size=(80, 48))


@pytest.mark.parametrize("value", [LATENT[:, None], LATENT[None, :, None], PATCHIFIED[None, :, None]])
def test_one_frame_is_a_picture(value: np.ndarray) -> None:
    assert np.array_equal(as_latent(value, FLUX2), LATENT)


@pytest.mark.parametrize("shape", [(32, 5, 6, 10), (1, 32, 5, 6, 10), (1, 128, 5, 6, 10), (128, 5, 6, 10)])
def test_a_video_is_called_one(shape: tuple[int, ...]) -> None:
    with pytest.raises(LatentError, match="a video's latent of 5 frames.* pass one frame"):
        space_of(np.zeros(shape, np.float32))
    with pytest.raises(LatentError, match="a video's latent of 5 frames.* pass one frame"):
        as_latents(np.zeros(shape, np.float32), FLUX2)


@pytest.mark.filterwarnings("ignore::infgen_rt.InfGenWarning")
def test_as_many_packed_pictures_as_there_are_channels_do_not_become_one() -> None:
    pictures = smooth(0, (32, 32, 24, 24))
    packed = pictures.reshape(32, 32, 12, 2, 12, 2).transpose(0, 2, 4, 1, 3, 5).reshape(32, 144, 128)
    latents = as_latents(packed, FLUX2, latent_size=(192, 192), normalisation="model")
    assert np.array_equal(np.stack(latents), pictures)
    with pytest.raises(LatentError, match="may be 32 packed pictures of 144 tokens .*--latent-size"):
        as_latents(packed, FLUX2)
    wide = smooth(1, (32, 144, 128))
    assert np.array_equal(as_latent(wide, FLUX2, normalisation="model"), wide)
    assert np.array_equal(as_latent(wide, FLUX2, normalisation="model", latent_size=(1024, 1152)), wide)


@pytest.mark.parametrize(
    ("shape", "text"),
    [
        ((16, 8, 8), r"16 channels are those of sd3 or flux1: say which, as space='sd3' \(--space sd3\)"),
        ((4, 8, 8), "4 channels are those of sd15 or sdxl"),
        ((8, 8, 32), "with its last axis first"),
        ((7, 8, 8), r"with or without a batch axis$"),
    ],
)
def test_a_shape_of_another_space_is_named(shape: tuple[int, ...], text: str) -> None:
    with pytest.raises(LatentError, match=text):
        as_latents(np.zeros(shape, np.float32), FLUX2)


SAMPLES = infgen_rt.sample_names()


# Parts of the latents of drawn pictures: one colour, text, lines and the like. Their numbers are smaller than others.
with np.load(DATA / "plain_pictures.npz") as _archive:
    PLAIN = {name: _archive[name].astype(np.float32) for name in _archive.files}
SHAPES = [(8, 8), (16, 16), (32, 32), (32, 60), (48, 48), (64, 64)]


def parts(latent: np.ndarray, rows: int, columns: int) -> Iterator[np.ndarray]:
    for y in range(0, latent.shape[1] - rows + 1, 12):
        for x in range(0, latent.shape[2] - columns + 1, 20):
            yield latent[:, y : y + rows, x : x + columns]


def in_bfloat16(latent: np.ndarray) -> np.ndarray:
    return latent.astype(ml_dtypes.bfloat16).astype(np.float32)


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_a_photographs_normalisation_is_told_from_its_numbers(name: str, rows: int, columns: int) -> None:
    for part in parts(infgen_rt.load_sample(name).latent, rows, columns):
        raw = in_bfloat16(FLUX2.denormalise(part))
        assert normalisation_of(raw, FLUX2) == "vae"
        with pytest.warns(InfGenWarning, match="normalisation='vae'"):
            as_latent(raw, FLUX2)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            as_latent(raw, FLUX2, normalisation="vae")
        assert normalisation_of(in_bfloat16(part), FLUX2) != "vae"


@pytest.mark.parametrize("name", SAMPLES)
def test_a_normalised_photograph_is_not_asked_about(name: str) -> None:
    latent = infgen_rt.load_sample(name).latent
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        as_latent(in_bfloat16(latent), FLUX2)


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("cells", [16, 8])
def test_the_vaes_own_latents_are_never_taken_for_normalised_ones_in_silence(name: str, cells: int) -> None:
    """Also those of pictures of few colours, whose numbers are nearly as small as those of normalised latents."""
    for part in parts(PLAIN[name], cells, cells):
        with pytest.warns(InfGenWarning, match="normalisation='vae'"):
            as_latent(in_bfloat16(FLUX2.denormalise(part)), FLUX2)


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("said", ["model", "vae"])
def test_a_picture_of_one_colour_is_not_taken_for_one_of_another_space(name: str, said: str) -> None:
    """In a black picture, for example, cells differ only at the border."""
    latent = PLAIN[name] if said == "model" else FLUX2.denormalise(PLAIN[name])
    assert not is_foreign(latent, FLUX2)
    assert not is_foreign(in_bfloat16(latent), FLUX2)


@pytest.mark.filterwarnings("error")
def test_a_latent_whose_channels_are_all_alike_is_of_no_other_space() -> None:
    ramp = np.broadcast_to(np.linspace(-1e-3, 1e-3, 400, dtype=np.float32), (32, 3, 400))
    assert not is_foreign(ramp, FLUX2)


@pytest.mark.parametrize("name", SAMPLES)
def test_nothing_is_inferred_if_the_batch_norms_statistics_contradict_the_level(name: str) -> None:
    """The VAE's own latent, scaled to the level of a normalised one."""
    raw = FLUX2.denormalise(infgen_rt.load_sample(name).latent * np.float32(0.57))
    assert raw.std() < 0.9
    assert normalisation_of(raw, FLUX2) is None


@pytest.mark.filterwarnings("error", "ignore::infgen_rt.errors.InfGenWarning")
@pytest.mark.parametrize("value", [1.001, 0.1, 0.0])
@pytest.mark.parametrize("slope", [0.0, 0.001])
def test_a_latent_of_one_value_and_a_ramp_show_no_picture(value: float, slope: float) -> None:
    """The mean of equal numbers is rounded, so that they seem to differ from it. A ramp has no fine detail."""
    latent = np.full((4, 3, 400), value, np.float32) + np.float32(slope) * np.arange(400, dtype=np.float32)
    for space in ("sd15", "sdxl"):
        as_latents(latent, latent_space(space))
    with pytest.raises(LatentError, match="may be of sd15 or sdxl: say which"):
        space_of(latent)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("deviation", [0.8, 0.9, 1.0, 1.1])
def test_a_normalisation_that_cannot_be_told_is_asked_about_and_not_guessed(seed: int, deviation: float) -> None:
    """Cells are too few to tell, so at most a sure answer may be right."""
    latent = smooth(seed, (32, 12, 12))
    latent = latent / latent.std() * np.float32(deviation)
    likely = normalisation_of(latent, FLUX2)
    raw = FLUX2.denormalise(latent / np.float32(1.76))
    assert not (likely == "vae" and normalisation_of(raw, FLUX2) == "model")
    if likely is None:
        with pytest.warns(InfGenWarning, match="do not show .*normalisation='vae'.*normalisation='model'") as caught:
            as_latent(latent, FLUX2)
        assert [getattr(each.message, "cause", "") for each in caught] == ["normalisation"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        as_latent(latent, FLUX2, normalisation="model") if likely != "vae" else None


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("layout", ["plain", "patchified"])
def test_a_latent_of_another_model_is_warned_of(name: str, layout: str) -> None:
    """The real latent's numbers under other channels: of its deviation, its mean and its smoothness."""
    latent = infgen_rt.load_sample(name).latent
    order = np.random.default_rng(0).permutation(32)
    foreign = latent[order]
    if layout == "patchified":  # 128 channels that have nothing to do with one another, as LTX-Video's
        foreign = np.concatenate(
            [latent[order, y : y + 32, x : x + 32] for y, x in [(0, 0), (0, 60), (34, 8), (30, 80)]]
        )
        foreign = foreign[np.random.default_rng(1).permutation(128)]
    with pytest.warns(InfGenWarning, match="are not correlated like") as caught:
        as_latents(foreign, FLUX2, normalisation="model")
    assert "foreign" in [getattr(each.message, "cause", "") for each in caught]


@pytest.mark.parametrize("name", SAMPLES)
def test_any_part_of_a_picture_is_of_its_space(name: str) -> None:
    latent = infgen_rt.load_sample(name).latent
    for top in range(0, 52, 16):
        for left in range(0, 104, 16):
            assert not is_foreign(latent[:, top : top + 16, left : left + 16], FLUX2)
