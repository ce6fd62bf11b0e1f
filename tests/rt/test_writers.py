import os
import threading
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
from PIL import Image

import infgen_rt
from infgen_rt.errors import Cancelled, OutputError, WriteError
from infgen_rt.geometry import Size
from infgen_rt.writers import FORMATS, open_writer

from . import tiny

LATENT = tiny.random_latent(9, 12)


@pytest.fixture
def picture(decoder: infgen_rt.Decoder) -> infgen_rt.Picture:
    return decoder.picture(LATENT, "2x", tile=64)


def full_disk(path: Path) -> BinaryIO:
    return Path("/dev/full").open("wb")


def photo(height: int, width: int) -> np.ndarray:
    """Gradients, noise and hard edges: every filter path."""
    rng = np.random.default_rng(3)
    y, x = np.mgrid[:height, :width]
    image = np.stack([x * 255 // width, y * 255 // height, (x // 7 + y // 5) % 2 * 255], -1)
    return (image + rng.integers(0, 9, image.shape)).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (517, 211)])
@pytest.mark.parametrize("band", [1, 64, 100])
def test_png_is_bit_exact(tmp_path: Path, size: tuple[int, int], band: int) -> None:
    width, height = size
    image = photo(height, width)
    with open_writer(tmp_path / "a.png", Size(width, height)) as writer:
        for start in range(0, height, band):
            writer.write(image[start : start + band])
    with Image.open(tmp_path / "a.png") as read:
        assert read.mode == "RGB" and read.info["srgb"] == 0
        assert np.array_equal(np.asarray(read), image)


def test_png_compresses(tmp_path: Path, picture: infgen_rt.Picture) -> None:
    image = photo(400, 600)
    with open_writer(tmp_path / "a.png", Size(600, 400)) as writer:
        writer.write(image)
    Image.fromarray(image).save(tmp_path / "pillow.png")
    assert (tmp_path / "a.png").stat().st_size < 1.15 * (tmp_path / "pillow.png").stat().st_size


@pytest.mark.parametrize("suffix", FORMATS)
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


@pytest.mark.parametrize(("suffix", "side"), [(".jpg", 65_500), (".webp", 16_383)])
def test_a_formats_limit_is_checked_before_decoding(
    tmp_path: Path, decoder: infgen_rt.Decoder, suffix: str, side: int
) -> None:
    latent = tiny.random_latent(1, 128)
    with pytest.warns(infgen_rt.InfGenWarning):
        picture = decoder.picture(latent, (side + 1, 2))
    with pytest.raises(OutputError, match=f"at most {side:,} pixels a side and the picture is {side + 1}x2"):
        picture.save(tmp_path / f"a{suffix}")
    assert not list(tmp_path.iterdir())


def test_a_format_written_from_memory_counts_it(tmp_path: Path, bundle: Path) -> None:
    with infgen_rt.open(bundle, memory="20MiB") as decoder:
        picture = decoder.picture(tiny.random_latent(64, 64), "4x")
        with pytest.raises(OutputError, match="JPEG is written from memory and needs"):
            picture.save(tmp_path / "a.jpg")
    assert not list(tmp_path.iterdir())


def test_progress_goes_from_prefill_to_the_complete_file(tmp_path: Path, picture: infgen_rt.Picture) -> None:
    path = tmp_path / "a.png"
    steps: list[tuple[infgen_rt.Progress, bool]] = []
    picture.save(path, progress=lambda step: steps.append((step, path.exists())))
    tiles = picture.plan.stages[0].count
    assert [step.stage for step, _ in steps] == ["prefill"] + ["decode"] * tiles + ["encode"]
    assert [step.done for step, _ in steps] == list(range(1, tiles + 3))
    assert steps[-1][0].fraction == 1.0
    assert [exists for _, exists in steps] == [False] * (tiles + 1) + [True]
    assert str(steps[-1][0]) == f"encode {tiles + 2}/{tiles + 2} (100%)"


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


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_any_failure_leaves_nothing(
    tmp_path: Path, picture: infgen_rt.Picture, suffix: str, error: type[BaseException]
) -> None:
    def fail(step: infgen_rt.Progress) -> None:
        if step.done == 4:
            raise error

    with pytest.raises(error):
        picture.save(tmp_path / f"a{suffix}", progress=fail)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_a_full_disk_is_an_error_and_leaves_nothing(
    tmp_path: Path, picture: infgen_rt.Picture, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    monkeypatch.setattr("infgen_rt.writers._create", full_disk)
    with pytest.raises(WriteError, match="No space left"):
        picture.save(tmp_path / f"a{suffix}")
    assert not list(tmp_path.iterdir())


def test_files_get_the_users_usual_permissions(tmp_path: Path, picture: infgen_rt.Picture) -> None:
    (tmp_path / "usual").touch()
    picture.save(tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_mode == (tmp_path / "usual").stat().st_mode
