import io
import re
import shutil
import signal
import struct
import subprocess
import sys
import threading
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal
from xml.etree import ElementTree

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms

import infgen_rt
from infgen_rt.common.memory import MIB
from infgen_rt.errors import Cancelled, OutputError, WriteError
from infgen_rt.geometry.shapes import Size
from infgen_rt.writers import FORMATS, Layer, appearing, check_output
from infgen_rt.writers.bands import cut
from infgen_rt.writers.tiff import most_bytes

from . import tiny

LATENT = tiny.random_latent(9, 12)
FLAT = [suffix for suffix in FORMATS if suffix != ".dzi"]


@pytest.fixture
def picture(decoder: infgen_rt.Decoder) -> infgen_rt.Picture:
    return decoder.picture(LATENT, "2x", tile=64)


@contextmanager
def small_disk() -> Iterator[None]:
    """No file can grow past 4 kB: the next write to one fails half-way."""
    resource = pytest.importorskip("resource", reason="limits are POSIX")
    _, hard = limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def tree(folder: Path) -> dict[str, bytes]:
    """Every file under a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def write_image(path: Path, image: np.ndarray, band: int, **options: Any) -> None:
    """Write an array through the writers, without a model."""
    size = Size(image.shape[1], image.shape[0])
    bits = 8 * image.itemsize
    bands = iter([image[start : start + band] for start in range(0, size.height, band)])
    form = check_output(path, size, False, bits, **options)
    with appearing(path, form) as partial:
        form.write(partial, [Layer(size, bits, bands)])


def photo(height: int, width: int) -> np.ndarray:
    """Gradients, noise and hard edges: every filter path."""
    rng = np.random.default_rng(3)
    y, x = np.mgrid[:height, :width]
    image = np.stack([x * 255 // width, y * 255 // height, (x // 7 + y // 5) % 2 * 255], -1)
    return (image + rng.integers(0, 9, image.shape)).clip(0, 255).astype(np.uint8)


def photo16(height: int, width: int) -> np.ndarray:
    """The same with noise in the lower byte too."""
    noise = np.random.default_rng(4).integers(0, 256, (height, width, 3))
    return (photo(height, width).astype(np.uint16) * 256 + noise).astype(np.uint16)


def read_png(path: Path) -> np.ndarray:
    """Levels of a PNG whose rows all have Paeth's filter, straight from the specification; Pillow reads 8 bits only."""
    data, position, packed = path.read_bytes(), 8, b""
    while position < len(data):
        (length,) = struct.unpack(">I", data[position : position + 4])
        kind, body = data[position + 4 : position + 8], data[position + 8 : position + 8 + length]
        assert struct.unpack(">I", data[position + 8 + length :][:4])[0] == zlib.crc32(kind + body)
        if kind == b"IHDR":
            width, height, bits = struct.unpack(">IIB", body[:9])
        packed += body if kind == b"IDAT" else b""
        position += 12 + length
    pixel = 3 * bits // 8
    rows = np.frombuffer(zlib.decompress(packed), np.uint8).reshape(height, 1 + pixel * width)
    assert (rows[:, 0] == 4).all()
    out = np.zeros((height + 1, pixel * (width + 1)), int)
    for y in range(1, height + 1):
        for x in range(pixel, pixel * (width + 1)):
            left, up, corner = out[y, x - pixel], out[y - 1, x], out[y - 1, x - pixel]
            guess = min((left, up, corner), key=lambda value: abs(left + up - corner - value))
            out[y, x] = (rows[y - 1, x - pixel + 1] + guess) % 256
    levels = out[1:, pixel:].astype(np.uint8).reshape(height, width, pixel)
    return levels if bits == 8 else levels.view(">u2").astype(np.uint16)


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (517, 211)])
@pytest.mark.parametrize("band", [1, 64, 100])
def test_png_is_bit_exact(tmp_path: Path, size: tuple[int, int], band: int) -> None:
    width, height = size
    image = photo(height, width)
    write_image(tmp_path / "a.png", image, band)
    with Image.open(tmp_path / "a.png") as read:
        assert read.mode == "RGB" and read.info["srgb"] == 0
        assert np.array_equal(np.asarray(read), image)


@pytest.mark.parametrize(("size", "band"), [((1, 1), 1), ((3, 50), 20), ((61, 31), 16)])
def test_png_of_16_bits_is_bit_exact(tmp_path: Path, size: tuple[int, int], band: int) -> None:
    image = photo16(*size)
    write_image(tmp_path / "a.png", image, band)
    assert np.array_equal(read_png(tmp_path / "a.png"), image)
    with Image.open(tmp_path / "a.png") as read:
        # Another reader, which drops the lower bytes.
        assert np.array_equal(np.asarray(read), image >> 8)


@pytest.mark.parametrize("make", [photo, photo16])
@pytest.mark.parametrize(("size", "band"), [((1, 1), 1), ((600, 3), 64), ((255, 513), 100), ((512, 256), 300)])
def test_tiff_is_bit_exact_and_tiled(
    tmp_path: Path, make: Callable[[int, int], np.ndarray], size: tuple[int, int], band: int
) -> None:
    image = make(*size)
    write_image(tmp_path / "a.tif", image, band)
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        assert not file.is_bigtiff and file.pages[0].is_tiled
        assert np.array_equal(file.pages[0].asarray(), image)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".dzi"])
def test_memory_does_not_grow_with_the_picture(tmp_path: Path, suffix: str) -> None:
    size, band = Size(512, 24_576), 128
    form = check_output(tmp_path / f"a{suffix}", size, False)
    bands = (np.zeros((band, size.width, 3), np.uint8) for _ in range(0, size.height, band))
    tracemalloc.start()
    with appearing(tmp_path / f"a{suffix}", form) as partial:
        form.write(partial, [Layer(size, 8, bands)])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # Two bands, and what filtering and compressing take for themselves.
    allowed = form.memory(size, 8) + 2 * band * size.width * 3 + 5 * MIB
    assert peak < allowed < 3 * size.area


@given(st.data())
def test_cutting_keeps_every_row(data: st.DataObject) -> None:
    rows = data.draw(st.integers(2, 9), "rows")
    overlap = data.draw(st.integers(0, 1), "overlap")
    heights = data.draw(st.lists(st.integers(1, 12), min_size=1, max_size=6), "bands")
    height = sum(heights)
    image = np.arange(height, dtype=np.uint8)[:, None, None].repeat(3, 2)
    taken = []

    def bands() -> Iterator[np.ndarray]:
        for start, count in zip(np.cumsum([0, *heights]), heights, strict=False):
            yield image[start : start + count]
            taken.append(count)

    windows = list(cut(Layer(Size(1, height), 8, bands()), rows, overlap))
    expected = [image[max(0, top - overlap) : top + rows + overlap] for top in range(0, height, rows)]
    assert [window.tolist() for window in windows] == [window.tolist() for window in expected]
    assert taken == heights


def test_png_compresses(tmp_path: Path) -> None:
    image = photo(400, 600)
    write_image(tmp_path / "a.png", image, 100)
    Image.fromarray(image).save(tmp_path / "pillow.png")
    assert (tmp_path / "a.png").stat().st_size < 1.15 * (tmp_path / "pillow.png").stat().st_size


@pytest.mark.parametrize("suffix", FLAT)
def test_every_format_shows_the_picture(tmp_path: Path, picture: infgen_rt.Picture, suffix: str) -> None:
    path = tmp_path / f"picture{suffix.upper()}"
    picture.save(path)
    with Image.open(path) as image:
        assert image.size == (192, 144)
        difference = np.asarray(image).astype(int) - np.asarray(picture)
    # The tiny model's pixels are noisy: lossy formats keep only its colours.
    colours = difference.reshape(9, 16, 12, 16, 3).mean((1, 3))
    assert np.abs(difference).max() == 0 if suffix in (".png", ".tif", ".tiff") else np.abs(colours).max() < 8
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("suffix", FLAT)
def test_every_format_is_tagged_as_srgb_and_the_same_each_time(
    tmp_path: Path, picture: infgen_rt.Picture, suffix: str
) -> None:
    for name in "ab":
        picture.save(tmp_path / f"{name}{suffix}")
    with Image.open(tmp_path / f"a{suffix}") as image:
        if suffix == ".png":
            assert image.info["srgb"] == 0
        else:
            assert_srgb(image)
    assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()


def assert_srgb(image: Image.Image) -> None:
    profile = ImageCms.ImageCmsProfile(io.BytesIO(image.info["icc_profile"]))
    assert "sRGB" in ImageCms.getProfileDescription(profile)
    colours = Image.fromarray(photo(20, 30))
    same = ImageCms.profileToProfile(colours, profile, ImageCms.createProfile("sRGB"))
    assert np.abs(np.asarray(same).astype(int) - np.asarray(colours)).max() <= 1


@pytest.mark.parametrize(("suffix", "read"), [(".png", read_png), (".tif", tifffile.imread)])
def test_16_bits_hold_more_than_8(
    tmp_path: Path, picture: infgen_rt.Picture, suffix: str, read: Callable[[Path], np.ndarray]
) -> None:
    path = tmp_path / f"a{suffix}"
    picture.save(path, bits=16)
    levels = read(path)
    assert levels.dtype == np.uint16
    assert np.array_equal(levels, np.floor(picture.read(dtype=np.float32) * np.float32(65535) + np.float32(0.5)))


@pytest.mark.parametrize("suffix", [".jpg", ".webp", ".avif", ".dzi"])
def test_16_bits_are_refused_where_there_are_8(tmp_path: Path, picture: infgen_rt.Picture, suffix: str) -> None:
    with pytest.raises(OutputError, match="does not hold 16 bits: write .png, .tif, .tiff"):
        picture.save(tmp_path / f"a{suffix}", bits=16)
    with pytest.raises(OutputError, match="does not hold 12 bits: expected 8 or 16"):
        picture.save(tmp_path / "a.png", bits=12)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_a_format_that_pillow_lacks_is_refused(
    tmp_path: Path, picture: infgen_rt.Picture, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.init()
    monkeypatch.delitem(Image.SAVE, "AVIF")
    with pytest.raises(OutputError, match="built without AVIF"):
        picture.save(tmp_path / "a.avif")


def test_a_region_is_that_part_of_the_picture(tmp_path: Path, picture: infgen_rt.Picture) -> None:
    picture.save(tmp_path / "part.png", region=(30, 40, 101, 99))
    with Image.open(tmp_path / "part.png") as image:
        difference = np.asarray(image).astype(int) - np.asarray(picture)[40:139, 30:131]
    assert np.abs(difference).max() <= 1


def test_an_existing_file_is_replaced_only_by_force(tmp_path: Path, picture: infgen_rt.Picture) -> None:
    path = tmp_path / "a.png"
    path.write_text("precious")
    with pytest.raises(OutputError, match="exists: pass force=True"):
        picture.save(path)
    assert path.read_text() == "precious"
    picture.save(path, force=True)
    assert path.read_bytes().startswith(b"\x89PNG")


def test_a_file_that_appears_meanwhile_is_not_replaced(tmp_path: Path, picture: infgen_rt.Picture) -> None:
    path = tmp_path / "a.png"
    with pytest.raises(OutputError, match="exists"):
        picture.save(path, progress=lambda progress: path.write_text("precious"))
    assert path.read_text() == "precious" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.gif", "no known picture format"),
        ("a", "no known picture format"),
        ("none/a.png", "cannot write in"),
        ("d.png", "a folder"),
    ],
)
def test_impossible_outputs_are_refused_before_decoding(
    tmp_path: Path, picture: infgen_rt.Picture, name: str, text: str
) -> None:
    (tmp_path / "d.png").mkdir()
    steps: list[object] = []
    with pytest.raises(OutputError, match=text):
        picture.save(tmp_path / name, progress=steps.append)
    assert not steps


@pytest.mark.parametrize(("suffix", "side"), [(".jpg", 65_500), (".webp", 16_383), (".avif", 65_536)])
def test_a_formats_limit_is_checked_before_decoding(
    tmp_path: Path, decoder: infgen_rt.Decoder, suffix: str, side: int
) -> None:
    latent = tiny.random_latent(1, 128)
    with pytest.warns(infgen_rt.InfGenWarning):
        picture = decoder.picture(latent, (side + 1, 2))
    with pytest.raises(OutputError, match=f"at most {side:,} pixels per side and the picture is {side + 1}x2"):
        picture.save(tmp_path / f"a{suffix}")
    assert not list(tmp_path.iterdir())


def test_a_format_written_from_memory_counts_it(tmp_path: Path, bundle: Path) -> None:
    with infgen_rt.open(bundle, memory="20MiB") as decoder:
        picture = decoder.picture(tiny.random_latent(64, 64), "4x")
        with pytest.raises(OutputError, match="writing JPEG needs .* for 2048x2048, of 20.0 MiB"):
            picture.save(tmp_path / "a.jpg")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
def test_progress_goes_from_prefill_to_the_complete_file(
    tmp_path: Path, picture: infgen_rt.Picture, suffix: str
) -> None:
    path = tmp_path / f"a{suffix}"
    steps: list[tuple[infgen_rt.Progress, bool]] = []
    picture.save(path, progress=lambda step: steps.append((step, path.exists())))
    # Three rows of three tiles.
    stages = ["prefill", *(["decode"] * 3 + ["encode"]) * 3, "encode"]
    assert [step.stage for step, _ in steps] == stages
    assert [step.done for step, _ in steps] == list(range(1, 15))
    assert steps[-1][0].fraction == 1.0
    assert [exists for _, exists in steps] == [False] * 13 + [True]
    assert str(steps[-1][0]) == "encode 14/14 (100%)"


@pytest.mark.parametrize("event", [True, False])
def test_cancelling_stops_at_the_next_tile_and_leaves_nothing(
    tmp_path: Path, picture: infgen_rt.Picture, event: bool
) -> None:
    stop = threading.Event()
    steps: list[infgen_rt.Progress] = []

    def on_progress(step: infgen_rt.Progress) -> None:
        steps.append(step)
        if step.done == 3:
            stop.set()

    with pytest.raises(Cancelled):
        picture.save(tmp_path / "a.png", progress=on_progress, cancel=stop if event else stop.is_set)
    assert len(steps) == 3 and not list(tmp_path.iterdir())
    picture.save(tmp_path / "a.png")


@pytest.mark.parametrize("suffix", FORMATS)
def test_cancelling_counts_until_the_file_is_there(tmp_path: Path, picture: infgen_rt.Picture, suffix: str) -> None:
    steps: list[infgen_rt.Progress] = []

    def cancelled() -> bool:
        # While the last row, or the whole picture, is being encoded.
        return len(steps) > 1 and steps[-1].done == steps[-1].total - 1

    with pytest.raises(Cancelled):
        picture.save(tmp_path / f"a{suffix}", progress=steps.append, cancel=cancelled)
    assert not list(tmp_path.iterdir())


@pytest.fixture(params=FORMATS)
def precious(request: pytest.FixtureRequest, tmp_path: Path, decoder: infgen_rt.Decoder) -> Path:
    """A picture of each format, of another latent."""
    path = tmp_path / "out" / f"a{request.param}"
    path.parent.mkdir()
    decoder.picture(tiny.random_latent(4, 4)).save(path)
    return path


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, OSError("cut off")])
def test_any_failure_leaves_what_was_there(
    precious: Path, picture: infgen_rt.Picture, error: type[BaseException]
) -> None:
    before = tree(precious.parent)

    def fail(step: infgen_rt.Progress) -> None:
        if step.done == 4:
            raise error

    with pytest.raises(OSError if isinstance(error, OSError) else error):
        picture.save(precious, force=True, progress=fail)
    assert tree(precious.parent) == before


def test_a_full_disk_is_one_error_and_leaves_what_was_there(precious: Path, picture: infgen_rt.Picture) -> None:
    before = tree(precious.parent)
    with small_disk(), pytest.raises(WriteError, match=f"^cannot write {re.escape(str(precious))}: File too large$"):
        picture.save(precious, force=True)
    assert tree(precious.parent) == before


def test_a_folder_that_is_removed_meanwhile_is_one_error(precious: Path, picture: infgen_rt.Picture) -> None:
    def remove(step: infgen_rt.Progress) -> None:
        if step.done == 4:
            shutil.rmtree(precious.parent)

    with pytest.raises(WriteError, match="its folder was removed meanwhile$"):
        picture.save(precious, force=True, progress=remove)
    assert not precious.parent.exists()


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="signals are POSIX")
@pytest.mark.parametrize("step", [4, -1])
def test_a_killed_process_leaves_what_was_there(precious: Path, bundle: Path, step: int) -> None:
    """Killed while it decodes, and when all is written but nothing is in its place."""
    before = tree(precious.parent)
    code = """
import os, signal, sys, infgen_rt
from tests.rt import tiny
bundle, path, last = sys.argv[1:]
def kill(step):
    if step.done == int(last) % step.total:
        os.kill(os.getpid(), signal.SIGKILL)
infgen_rt.open(bundle).picture(tiny.random_latent(9, 12), "2x", tile=64).save(path, force=True, progress=kill)
"""
    command = [sys.executable, "-c", code, str(bundle), str(precious), str(step)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    left = tree(precious.parent)
    assert {name: data for name, data in left.items() if not name.startswith(".")} == before


def test_force_replaces_all_of_it(precious: Path, picture: infgen_rt.Picture) -> None:
    picture.save(precious, force=True)
    picture.save(precious.with_name(f"new{precious.suffix}"))
    new = {name.replace("new", "a"): data for name, data in tree(precious.parent).items() if name.startswith("new")}
    assert new == {name: data for name, data in tree(precious.parent).items() if name.startswith("a")}


@pytest.mark.parametrize("name", ["2023/1_2.png", "0/notes.txt", "1/0_0.png", "0"])
def test_a_folder_that_is_no_pyramid_is_never_replaced(tmp_path: Path, picture: infgen_rt.Picture, name: str) -> None:
    mine = tmp_path / "holiday_files" / name
    mine.parent.mkdir(parents=True)
    mine.write_text("precious")
    with pytest.raises(OutputError, match="holiday_files"):
        picture.save(tmp_path / "holiday.dzi", force=True)
    assert mine.read_text() == "precious" and [path.name for path in tmp_path.iterdir()] == ["holiday_files"]


def test_files_get_the_users_usual_permissions(tmp_path: Path, picture: infgen_rt.Picture) -> None:
    (tmp_path / "usual").touch()
    picture.save(tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_mode == (tmp_path / "usual").stat().st_mode


def read_level(folder: Path, size: tuple[int, int], ending: str) -> np.ndarray:
    """Put a level together, and check that tiles agree where they overlap."""
    width, height = size
    level = np.full((height, width, 3), -1)
    names = {f"{x}_{y}.{ending}" for x in range(-(-width // 254)) for y in range(-(-height // 254))}
    assert {path.name for path in folder.iterdir()} == names
    for name in names:
        column, row = map(int, name.split(".")[0].split("_"))
        left, top = max(0, column * 254 - 1), max(0, row * 254 - 1)
        right, bottom = min(width, column * 254 + 255), min(height, row * 254 + 255)
        with Image.open(folder / name) as image:
            assert image.size == (right - left, bottom - top)
            tile = np.asarray(image).astype(int)
        there = level[top:bottom, left:right]
        if ending == "png":
            assert np.array_equal(there[there >= 0], tile[there >= 0])
        level[top:bottom, left:right] = tile
    return level


def shrink(image: np.ndarray) -> np.ndarray:
    """Means of two by two pixels; what lacks at odd edges is left out."""
    height, width = image.shape[:2]
    padded = np.pad(image.astype(float), [(0, height % 2), (0, width % 2), (0, 0)], "edge")
    return padded.reshape(-(-height // 2), 2, -(-width // 2), 2, 3).mean((1, 3))


@pytest.mark.parametrize(("size", "band"), [((1, 1), 1), ((509, 255), 100), ((254, 763), 254), ((300, 508), 64)])
def test_a_pyramid_holds_every_power_of_two(tmp_path: Path, size: tuple[int, int], band: int) -> None:
    image = photo(*size)
    write_image(tmp_path / "a.dzi", image, band, tile_format="png")
    top, above = (max(size) - 1).bit_length(), image
    assert {path.name for path in (tmp_path / "a_files").iterdir()} == {str(level) for level in range(top + 1)}
    for number in range(top, -1, -1):
        height, width = (-(-side // 2 ** (top - number)) for side in size)
        level = read_level(tmp_path / "a_files" / str(number), (width, height), "png")
        if number == top:
            assert np.array_equal(level, image)
        else:
            assert np.abs(level - shrink(above)).max() <= 0.5
        above = level
    root = ElementTree.parse(tmp_path / "a.dzi").getroot()
    space = "{http://schemas.microsoft.com/deepzoom/2008}"
    assert root.tag == f"{space}Image" and root.attrib == {"Format": "png", "Overlap": "1", "TileSize": "254"}
    assert root.find(f"{space}Size").attrib == {"Width": str(size[1]), "Height": str(size[0])}


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.tif", "a.dzi"])
def test_progress_reaches_its_total(tmp_path: Path, decoder: infgen_rt.Decoder, name: str) -> None:
    steps: list[infgen_rt.Progress] = []
    decoder.picture(LATENT, "2x", tile=64).save(tmp_path / name, progress=steps.append)
    assert [step.done for step in steps] == list(range(1, steps[0].total + 1))


@pytest.mark.parametrize("ending", ["jpg", "png"])
def test_levels_are_decoded_at_their_own_size(
    tmp_path: Path, decoder: infgen_rt.Decoder, ending: Literal["jpg", "png"]
) -> None:
    """At 4, 2, 1 and 0.5 times the latent's own size; below, the model was not trained."""
    steps: list[infgen_rt.Progress] = []
    decoder.picture(LATENT, "4x", tile=64).save(tmp_path / "a.dzi", tile_format=ending, progress=steps.append)
    levels = {
        number: read_level(tmp_path / "a_files" / str(number), size, ending)
        for number, size in ((9, (384, 288)), (8, (192, 144)), (7, (96, 72)), (6, (48, 36)), (5, (24, 18)))
    }
    # JPEG blurs this model's noise.
    margin = 0 if ending == "png" else 60
    for number, factor in ((9, 4), (8, 2), (7, 1), (6, 0.5)):
        decoded = np.asarray(decoder.picture(LATENT, factor, tile=64)).astype(int)
        assert np.abs(levels[number] - decoded).max() <= margin
    assert np.abs(levels[5] - shrink(levels[6])).max() <= max(0.5, margin)
    assert [step.stage for step in steps].count("prefill") == 1
    assert steps[-1].done == steps[-1].total == len(steps)


def test_a_pyramid_of_a_region_is_shrunk_from_it(tmp_path: Path, picture: infgen_rt.Picture) -> None:
    picture.save(tmp_path / "a.dzi", region=(30, 40, 101, 99), tile_format="png")
    top = read_level(tmp_path / "a_files" / "7", (101, 99), "png")
    assert np.abs(top - np.asarray(picture)[40:139, 30:131]).max() <= 1
    assert np.abs(read_level(tmp_path / "a_files" / "6", (51, 50), "png") - shrink(top)).max() <= 0.5


@pytest.mark.parametrize(("ending", "tag"), [("jpg", "icc_profile"), ("png", "srgb")])
def test_a_pyramids_tiles_are_tagged(
    tmp_path: Path, picture: infgen_rt.Picture, ending: Literal["jpg", "png"], tag: str
) -> None:
    picture.save(tmp_path / "a.dzi", tile_format=ending)
    for path in (tmp_path / "a_files").rglob(f"*.{ending}"):
        with Image.open(path) as image:
            assert tag in image.info


def test_a_folder_of_other_things_is_never_replaced(tmp_path: Path, picture: infgen_rt.Picture) -> None:
    """Browsers keep the parts of a saved page under the same name."""
    (tmp_path / "a_files").mkdir()
    (tmp_path / "a_files" / "page.css").write_text("precious")
    with pytest.raises(OutputError, match="a_files exists and is a folder of other things"):
        picture.save(tmp_path / "a.dzi", force=True)
    assert tree(tmp_path) == {"a_files/page.css": b"precious"}


@pytest.mark.parametrize("fails", [1, 2, 3, 4])
def test_a_pyramid_that_cannot_be_moved_leaves_what_was_there(
    tmp_path: Path, picture: infgen_rt.Picture, monkeypatch: pytest.MonkeyPatch, fails: int
) -> None:
    picture.save(tmp_path / "a.dzi")
    before = tree(tmp_path)
    rename, moves = Path.rename, []

    def fail(source: Path, target: Path) -> Path:
        moves.append(source)
        if len(moves) == fails:
            raise PermissionError(13, "Permission denied")
        return rename(source, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(WriteError, match="Permission denied"):
        picture.save(tmp_path / "a.dzi", force=True, tile_format="png")
    assert tree(tmp_path) == before


@pytest.mark.parametrize(("size", "bits", "big"), [((37_000, 37_000), 8, False), ((38_000, 38_000), 8, True)])
def test_a_tiff_that_might_pass_4_gib_is_a_bigtiff(size: tuple[int, int], bits: Literal[8, 16], big: bool) -> None:
    assert (most_bytes(Size(*size), bits) > 2**32 - 1) is big
    assert (most_bytes(Size(size[0] // 2, size[1]), 16) > 2**32 - 1) is big


def test_no_tiff_is_larger_than_was_reckoned(tmp_path: Path) -> None:
    """Noise, which no compression makes smaller."""
    for number, side in enumerate((1, 256, 700)):
        noise = np.random.default_rng(side).integers(0, 256, (side, side, 3), np.uint8)
        path = tmp_path / f"{number}.tif"
        write_image(path, noise, 64)
        assert path.stat().st_size <= most_bytes(Size(side, side), 8)


@pytest.mark.parametrize("suffix", [".jpg", ".webp", ".avif", ".dzi"])
def test_quality_makes_files_smaller_or_nearer(tmp_path: Path, picture: infgen_rt.Picture, suffix: str) -> None:
    sizes = []
    for quality in (30, None, 100):
        folder = tmp_path / str(quality)
        folder.mkdir()
        picture.save(folder / f"a{suffix}", quality=quality)
        sizes.append(sum(len(data) for data in tree(folder).values()))
    assert sizes == sorted(set(sizes))


@pytest.mark.parametrize("suffix", [".jpg", ".webp", ".avif", ".dzi"])
def test_quality_may_be_an_integer_of_numpy(tmp_path: Path, picture: infgen_rt.Picture, suffix: str) -> None:
    for name, quality in (("own", 80), ("numpy", np.int64(80))):
        (tmp_path / name).mkdir()
        picture.save(tmp_path / name / f"a{suffix}", quality=quality)
    assert tree(tmp_path / "own") == tree(tmp_path / "numpy")


@pytest.mark.parametrize("suffix", [".webp", ".png", ".tif"])
def test_without_loss_every_level_is_kept(tmp_path: Path, picture: infgen_rt.Picture, suffix: str) -> None:
    picture.save(tmp_path / f"a{suffix}", lossless=True)
    with Image.open(tmp_path / f"a{suffix}") as image:
        assert np.array_equal(np.asarray(image.convert("RGB")), picture.read())


@pytest.mark.parametrize(
    ("name", "options", "text"),
    [
        ("a.png", {"quality": 90}, "PNG is always without loss and has no quality"),
        ("a.tif", {"quality": 90}, "TIFF is always without loss"),
        ("a.jpg", {"lossless": True}, "JPEG cannot be without loss"),
        ("a.avif", {"lossless": True}, "AVIF cannot be without loss"),
        ("a.webp", {"lossless": True, "quality": 5}, "pass one of the two"),
        ("a.jpg", {"quality": 0}, "expected 1 to 100"),
        ("a.dzi", {"lossless": True}, "write png tiles"),
        ("a.dzi", {"quality": 101}, "expected 1 to 100"),
        ("a.dzi", {"quality": 50, "tile_format": "png"}, "write jpg tiles"),
        ("a.png", {"tile_format": "png"}, "has no tiles in files of their own: leave out the tile format, or write"),
        ("a.tif", {"tile_format": "jpg"}, "has no tiles in files of their own"),
    ],
)
def test_a_quality_that_a_format_has_not_is_refused(
    tmp_path: Path, picture: infgen_rt.Picture, name: str, options: dict[str, Any], text: str
) -> None:
    with pytest.raises(OutputError, match=text):
        picture.save(tmp_path / name, **options)
    assert not list(tmp_path.iterdir())
