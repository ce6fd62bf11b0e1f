import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
from PIL import Image

import infgen_rt
from infgen_rt.cli.main import main
from infgen_rt.geometry.shapes import Size

from . import tiny
from .test_writers import small_disk


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a latent."""
    np.save(tmp_path / "latent.npy", tiny.random_latent(8, 12))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def decode(bundle: Path) -> list[str]:
    # The numbers of such a small latent do not show its normalisation, so the option is given.
    return ["decode", "latent.npy", "-o", "out.png", "--model", str(bundle), "--normalisation", "model"]


def test_decode_writes_the_picture(folder: Path, decode: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*decode, "--size", "2x"]) == 0
    with Image.open("out.png") as image:
        assert image.size == (192, 128)
    printed = capsys.readouterr()
    assert printed.out.startswith("out.png: 192x128, ") and printed.err == ""


def test_region_tile_memory_and_threads(folder: Path, decode: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    options = [
        "--region",
        "10,20,50,40",
        "--tile",
        "32",
        "--memory",
        "64MiB",
        "--threads",
        "1",
        "--backend",
        "onnxruntime",
    ]
    assert main([*decode, "--size", "384x256", *options, "--quiet"]) == 0
    with Image.open("out.png") as image:
        part = np.asarray(image).astype(int)
    whole = tiny.decode_whole(np.load("latent.npy"), (384, 256))[20:60, 10:60]
    assert np.abs(part - np.floor(whole * 255 + 0.5)).max() <= 1
    printed = capsys.readouterr()
    assert printed.out == printed.err == ""


def test_16_bits_and_pyramids(folder: Path, decode: list[str]) -> None:
    assert main([*decode, "--bits", "16"]) == 0
    assert Path("out.png").read_bytes()[24] == 16
    assert main([*decode, "-o", "out.dzi", "--tile-format", "png"]) == 0
    with Image.open("out_files/7/0_0.png") as image:
        assert image.size == (96, 64)


def test_json_is_one_object_that_says_what_was_done(
    folder: Path, decode: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*decode, "--size", "300x200", "--tile", "64", "--json"]) == 0
    printed = capsys.readouterr()
    report = json.loads(printed.out)
    assert printed.out.count("\n") == 1
    assert report["size"] == [300, 200] and report["model"] == "tiny"
    assert report["backend"]["name"] == "onnxruntime" and report["backend"]["reason"]
    assert report["plan"]["stages"][0]["tiles"] == 20
    assert set(report["seconds"]) == {"open", "prefill", "decode", "encode", "total"}
    assert sum(report["seconds"].values()) == pytest.approx(2 * report["seconds"]["total"])
    assert report["warnings"] == []


def read(path: str) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image).astype(int)


def test_a_display_is_covered_and_only_what_is_seen_is_written(folder: Path, decode: list[str]) -> None:
    assert main([*decode, "--size", "3834x2556", "--region", "1327,0,1179,2556"]) == 0
    assert main([*decode, "-o", "cover.png", "--display", "iphone-16"]) == 0
    assert np.array_equal(read("cover.png"), read("out.png"))
    assert main([*decode, "-o", "part.png", "--display", "iphone-16", "--region", "100,200,30,40"]) == 0
    assert np.abs(read("part.png") - read("cover.png")[200:240, 100:130]).max() <= 1


def test_fits_to_a_size(folder: Path, decode: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*decode, "-o", "whole.png", "--size", "210x140"]) == 0
    for how, shape, of_whole in [
        ("cover", (140, 100, 3), np.s_[:, 55:155]),
        ("contain", (67, 100, 3), None),
        ("stretch", (140, 100, 3), None),
    ]:
        assert main([*decode, "-o", f"{how}.png", "--size", "100x140", "--fit", how]) == 0
        pixels = read(f"{how}.png")
        assert pixels.shape == shape
        if of_whole is not None:
            assert np.abs(pixels - read("whole.png")[of_whole]).max() <= 1
    assert "stretches" in capsys.readouterr().err


def test_this_machines_screen_is_asked_for(folder: Path, decode: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infgen_rt.display.named.screen_size", lambda: Size(200, 100))
    assert main([*decode, "--display", "auto"]) == 0
    assert read("out.png").shape == (100, 200, 3)


PLANNED = ["--size", "300x200", "--fit", "cover", "--tile", "64", "--region", "10,20,100,90"]


def test_a_plan_says_what_decode_does_and_writes_nothing(
    folder: Path, decode: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", *decode[1:], *PLANNED, "--json"]) == 0
    assert [path.name for path in folder.iterdir()] == ["latent.npy"]
    planned = json.loads(capsys.readouterr().out)
    assert main([*decode, *PLANNED, "--json"]) == 0
    done = json.loads(capsys.readouterr().out)
    assert planned == {name: done[name] for name in done if name not in ("seconds", "peak_memory")}
    assert planned["format"] == "PNG" and planned["size"] == [100, 90] and planned["array_bytes"] == 27_000
    assert planned["parts"] == 4 and planned["plan"]["stages"][0]["tiles"] == 20


def test_a_plan_in_words(folder: Path, decode: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *decode[1:], *PLANNED]) == 0
    text = capsys.readouterr().out
    assert "latent 12x8 -> picture 300x200, 20 tiles" in text and "memory: about" in text
    assert "backend: onnxruntime on CPU, fp32" in text
    assert "region: 10,20,100,90, decoded in 4 parts, 0.0 MiB of pixels" in text
    assert "output: out.png, 100x90, PNG" in text


def test_stages(folder: Path, decode: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    for options in (["--stages", "2,2.5"], ["--max-scale", "2.5", "--force"]):
        assert main([*decode, "--size", "5x", *options, "--json"]) == 0
        report = json.loads(capsys.readouterr().out)
        first, last = report["plan"]["stages"]
        assert first["size"] == [8 * side for side in last["latent"]] and last["size"] == [480, 320]
        assert report["plan"]["encoded_tiles"] == [1] and report["seconds"]["reencode"] > 0
        expected = tiny.decode_stages(np.load("latent.npy"), [first["size"], (480, 320)])
        assert np.abs(read("out.png") - np.floor(expected * 255 + 0.5)).max() <= 1
    assert main(["plan", *decode[1:], "--force", "--size", "5x", "--stages", "2,2.5"]) == 0
    text = capsys.readouterr().out
    assert "stage 1: latent 12x8 -> picture 192x128" in text and "stage 2: latent 24x16 -> picture 480x320" in text


def test_displays_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["displays"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:3] == ["macbook-air-13", "2560x1664", "laptop"]
    assert main(["displays", "--json"]) == 0
    known = json.loads(capsys.readouterr().out)
    assert len(known) == len(lines) >= 40
    assert known["iphone-16"] == {"title": "iPhone 16", "kind": "phone", "width": 1179, "height": 2556}


def test_warnings_are_one_line_each_and_in_the_json(
    folder: Path, decode: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*decode, "--size", "96x128", "--json"]) == 0
    printed = capsys.readouterr()
    assert printed.err.startswith("Warning: 96x128 stretches") and printed.err.count("\n") == 1
    assert len(json.loads(printed.out)["warnings"]) == 1


def test_packed_latents_and_the_vaes_normalisation(folder: Path, decode: list[str]) -> None:
    np.save("latent.npy", np.random.default_rng(0).normal(0, 1.4, (24, 128)).astype(np.float32))
    assert main(decode) == 2
    assert main([*decode, "--latent-size", "96\N{MULTIPLICATION SIGN}64", "--normalisation", "vae"]) == 0
    with Image.open("out.png") as image:
        assert image.size == (96, 64)


@pytest.fixture
def bad(folder: Path, bundle: Path) -> Path:
    np.save("nan.npy", np.full((32, 4, 4), np.nan, np.float32))
    np.save("channels.npy", np.zeros((4, 64, 64), np.float32))
    np.save("object.npy", np.array([{}], object), allow_pickle=True)
    Path("short.npy").write_bytes(Path("latent.npy").read_bytes()[:500])
    Path("there.png").write_text("precious")
    (folder / "broken").mkdir()
    (folder / "broken" / "manifest.json").write_text("{}")
    return folder


BAD = {
    "missing latent": (["none.npy"], "does not exist"),
    "truncated": (["short.npy"], "truncated"),
    "nan": (["nan.npy"], "512 of 512 numbers are NaN"),
    "channels": (["channels.npy"], "expected [32, h, w]"),
    "object": (["object.npy"], "pickle"),
    "no latent": ([], "either a LATENT file or --sample"),
    "two latents": (["latent.npy", "--sample", "x"], "either a LATENT file or --sample"),
    "unknown sample": (["--sample", "x"], "sample 'x' is unknown"),
    "zero size": (["latent.npy", "--size", "0x0"], "out of bounds"),
    "negative size": (["latent.npy", "--size", "-4x4"], "out of bounds"),
    "huge size": (["latent.npy", "--size", "999999x9"], "out of bounds"),
    "unknown display": (["latent.npy", "--display", "macbok-air-13"], "did you mean macbook-air-13"),
    "empty name": (["latent.npy", "-o", ""], "a name is empty"),
    "empty latent": ([""], "a name is empty"),
    "empty region": (["latent.npy", "--region", ""], "not understood"),
    "no ending": (["latent.npy", "-o", "pictures"], f"a name such as pictures.png, or pictures{os.sep} for a folder"),
    "key of a sample": (["--sample", "osprey", "--key", "latent"], "a sample has one"),
    "no name before the ending": (["latent.npy", "-o", ".png"], "has no name before its ending"),
    "another latent size": (["latent.npy", "--latent-size", "512x512"], "has 96x64 pixels, and not 512x512"),
    "a stage without a size": (["latent.npy", "--stages", "2"], "pass a size of 2x, or smaller scales"),
    "a long name without an ending": (["latent.npy", "-o", "a" * 300], "no known picture format"),
    "stages without a size": (["latent.npy", "--stages", "2,2"], "pass a size of 4x, or smaller scales"),
    "format and name": (["latent.npy", "-o", "p.png", "--format", "jpg"], "contradicts p.png"),
    "display and size": (["latent.npy", "--display", "tv-4k", "--size", "4k"], "exclude each other"),
    "fit to nothing": (["latent.npy", "--fit", "cover"], "expected --display, or --size"),
    "fit to a factor": (["latent.npy", "--fit", "cover", "--size", "2x"], "expected --display, or --size"),
    "unknown fit": (["latent.npy", "--fit", "crop", "--size", "9x9"], "'cover', 'contain', 'stretch'"),
    "region of a display": (["latent.npy", "--display", "tv-4k", "--region", "0,1,3840,2160"], "which is 3840x2160"),
    "memory for the format": (["latent.npy", "-o", "a.jpg", "--size", "48x", "--memory", "100MB"], "write 8-bit .png"),
    "unreadable size": (["latent.npy", "--size", "large"], "not understood"),
    "beyond the format": (["latent.npy", "--size", "16384x100", "-o", "a.webp"], "at most 16,383"),
    "bits of the format": (["latent.npy", "--bits", "16", "-o", "a.jpg"], "does not hold 16 bits"),
    "bits": (["latent.npy", "--bits", "12"], "--bits"),
    "tile format": (["latent.npy", "--tile-format", "gif", "-o", "a.dzi"], "--tile-format"),
    "region": (["latent.npy", "--region", "0,0,999,9"], "outside the picture"),
    "existing": (["latent.npy", "-o", "there.png"], "--force"),
    "unwritable": (["latent.npy", "-o", "none/out.png"], "cannot write in none"),
    "format": (["latent.npy", "-o", "out.bmp"], "no known picture format"),
    "missing model": (["latent.npy", "--model", "none"], "does not exist"),
    "a space as a model": (["latent.npy", "--model", "FLUX.2-dev"], "did you mean space='flux2' (--space flux2)?"),
    "memory without a unit": (
        ["latent.npy", "--memory", "2"],
        "memory of 2 bytes is less than any picture needs: did you",
    ),
    "broken model": (["latent.npy", "--model", "broken"], "pass another folder or zip"),
    "unknown backend": (["latent.npy", "--backend", "abacus"], "'abacus' is unknown"),
    "absent device": (["latent.npy", "--backend", "onnxruntime", "--device", "cuda:9"], "knows no device 'cuda:9'"),
    "small memory": (["latent.npy", "--memory", "1MB"], "too small"),
    "odd memory": (["latent.npy", "--memory", "lots"], "not understood"),
    "tile": (["latent.npy", "--tile", "13"], "multiple of 8"),
    "unreadable stages": (["latent.npy", "--stages", "2x2"], "stages '2x2' are not understood"),
    "stages that miss": (["latent.npy", "--size", "6x", "--stages", "2,2"], "make the last one 3"),
    "stages twice": (["latent.npy", "--stages", "1", "--max-scale", "2"], "exclude each other"),
    "no enlarging": (["latent.npy", "--max-scale", "1"], "1.1 or more"),
    "threads": (["latent.npy", "--threads", "0"], "--threads"),
    "option": (["latent.npy", "--colour"], "--colour"),
}


@pytest.mark.parametrize("command", ["decode", "plan"])
@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_changes_nothing(
    bad: Path, bundle: Path, capsys: pytest.CaptureFixture[str], name: str, command: str
) -> None:
    arguments, text = BAD[name]
    before = {path: path.read_bytes() for path in bad.rglob("*") if path.is_file()}
    # Options given twice: the last wins.
    assert main([command, "-o", "out.png", "--model", str(bundle), *arguments]) == 2
    printed = capsys.readouterr()
    last = printed.err.splitlines()[-1]
    assert last.startswith("Error: ") and text in last and printed.out == ""
    assert all(line.startswith("Warning: ") for line in printed.err.splitlines()[:-1])
    assert {path: path.read_bytes() for path in bad.rglob("*") if path.is_file()} == before


def test_work_that_fails_ends_with_one(folder: Path, decode: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with small_disk():
        assert main(decode) == 1
    assert capsys.readouterr().err == "Error: cannot write out.png: File too large\n"


@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (1, 129)])
def test_signals_leave_nothing(folder: Path, decode: list[str], number: int, code: int) -> None:
    np.save("latent.npy", tiny.random_latent(60, 90))
    command = [sys.executable, "-m", "infgen_rt", *decode, "--size", "20x", "--tile", "64"]
    # Tests that were started in the background may have been told to ignore some, which children inherit.
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, preexec_fn=lambda: signal.signal(number, signal.SIG_DFL)
    )
    while not list(folder.glob(".out.png.*")):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == code
    assert "Traceback" not in errors
    assert [path.name for path in folder.iterdir()] == ["latent.npy"]


def test_info_on_a_bundle(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(bundle)]) == 0
    assert "licence: CC0-1.0" in capsys.readouterr().out
    assert main(["info", str(bundle), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["name"] == "tiny" and facts["recipes"] == ["onnx-fp32 (onnx, fp32)"]


def test_info_on_a_latent(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "latent.npy", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["cells"] == [12, 8] and facts["native_size"] == [96, 64]
    assert facts["std"] == pytest.approx(0.8, abs=0.05)


def test_info_on_a_latent_of_another_space_asks_for_it_as_decode_does(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save("sdxl.npy", np.ones((4, 128, 128), np.float32))
    assert main(["info", "sdxl.npy"]) == 2
    assert "may be of sd15, sdxl or flux2: say which it is" in capsys.readouterr().err
    assert main(["info", "sdxl.npy", "--space", "sdxl"]) == 0
    assert "native_size: 1024, 1024" in capsys.readouterr().out


def test_info_on_the_installation(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert "onnxruntime" in facts["backends"]
    assert all({"training", "verification"} <= model.keys() for model in facts["model"]["models"].values())
    assert main(["info"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) < 20 and max(map(len, lines)) < 160  # a wall of text would hide the samples


def test_a_folder_of_latents_is_no_latent_and_no_bundle(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("latents").mkdir()
    Path("latent.npy").rename("latents/latent.npy")
    assert main(["info", "latents"]) == 2
    assert f"is a folder of latents: pass one of them, such as {Path('latents/latent.npy')}" in capsys.readouterr().err
    with pytest.raises(infgen_rt.LatentError, match="latents is a folder: pass one of the files in it"):
        infgen_rt.load_latents("latents")


def test_a_wrong_option_does_not_suggest_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--model", "m"]) == 2
    told = capsys.readouterr().err
    assert "--model" in told and "--help" not in told


def test_info_on_nothing_is_bad_input(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "none"]) == 2
    assert capsys.readouterr().err.startswith("Error: none does not exist")


@pytest.mark.parametrize("command", [[], ["decode"], ["plan"], ["view"], ["serve"], ["displays"], ["info"], ["unpack"]])
def test_help(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command, "--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("Usage: infgen-rt")
    assert not command or "Examples:\n  infgen-rt" in text


def test_without_a_command_help_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "decode" in capsys.readouterr().out


def test_a_progress_bar_is_shown_on_a_terminal_only(folder: Path, decode: list[str]) -> None:
    pty = pytest.importorskip("pty", reason="terminals are POSIX")
    parent, child = pty.openpty()
    process = subprocess.Popen([sys.executable, "-m", "infgen_rt", *decode], stderr=child, stdout=subprocess.DEVNULL)
    os.close(child)
    shown = b""
    try:
        while piece := os.read(parent, 4096):
            shown += piece
    except OSError:  # the other end is closed
        pass
    assert process.wait() == 0
    assert b"100%" in shown and b"encode" in shown


OUT = ["out/0.png", "out/1.png", "out/2.png"]


@pytest.fixture
def batch(folder: Path, bundle: Path) -> list[str]:
    for number in range(3):
        np.save(f"{number}.npy", tiny.random_latent(4, 5, seed=number))
    Path("bad.npy").write_bytes(b"none")
    options = ["--model", str(bundle), "--size", "2x", "--normalisation", "model"]
    return ["decode", "0.npy", "bad.npy", "1.npy", "2.npy", "-o", "out", *options]


def test_a_name_with_a_slash_at_its_end_is_a_new_folder(batch: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    options = batch[batch.index("out") + 1 :]
    assert main(["decode", "0.npy", "-o", "deep/new/", *options]) == 0
    assert [path.name for path in Path("deep/new").iterdir()] == ["0.png"]
    assert main(["plan", "0.npy", "-o", "another/", *options]) == 2
    assert "is a folder: expected a picture's name" in capsys.readouterr().err and not Path("another").exists()


def test_resuming_is_only_advised_if_a_picture_is_done(batch: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    options = batch[batch.index("-o") :]
    np.save("worse.npy", np.zeros((1, 1), np.float32))
    assert main(["decode", "bad.npy", "worse.npy", *options]) == 1
    assert capsys.readouterr().err.endswith("Error: 2 of 2 latents failed, for the reasons above\n")


def test_several_latents_go_into_a_folder_and_a_bad_one_is_passed_over(
    batch: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(batch) == 1
    printed = capsys.readouterr()
    assert sorted(path.name for path in Path("out").iterdir()) == ["0.png", "1.png", "2.png"]
    assert [Path(line.split(": ")[0]).as_posix() for line in printed.out.splitlines()] == OUT
    lines = printed.err.splitlines()
    assert "bad.npy" in lines[0] and lines[-1].startswith(
        "Error: 1 of 4 latents failed, for the reasons above; --resume"
    )
    for number in range(3):
        expected = tiny.decode_whole(np.load(f"{number}.npy"), (80, 64))
        with Image.open(f"out/{number}.png") as image:
            assert np.abs(np.asarray(image).astype(int) - np.floor(expected * 255 + 0.5)).max() <= 1


def test_resuming_leaves_what_is_there(batch: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    batch.remove("bad.npy")
    Path("out").mkdir()
    Path("out/1.png").write_text("precious")
    assert main([*batch, "--json"]) == 1
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [Path(entry["output"]).as_posix() for entry in printed] == OUT
    assert "exists" in printed[1]["error"]
    Path("out/2.png").unlink()
    assert main([*batch, "--resume"]) == 0
    assert capsys.readouterr().out.startswith(str(Path("out/2.png"))) and Path("out/1.png").read_text() == "precious"


def test_a_folder_is_for_one_latent_too(batch: list[str]) -> None:
    Path("out").mkdir()
    assert main(["decode", "0.npy", "-o", "out", "--format", "jpg", *batch[7:]]) == 0
    assert [path.name for path in Path("out").iterdir()] == ["0.jpg"]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            lambda: Path("sub").mkdir() or np.save("sub/0.npy", tiny.random_latent(4, 4)),
            f"would both be {Path('out/0.png')}",
        ),
        (lambda: Path("out").write_text("precious"), "cannot be a folder of pictures"),
    ],
)
def test_what_is_wrong_with_a_batch_is_found_before_it_starts(
    batch: list[str], change: Callable[[], object], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    change()
    arguments = ["decode", *(["sub/0.npy"] if Path("sub").exists() else []), *batch[1:]]
    assert main(arguments) == 2
    assert text in capsys.readouterr().err
    assert not Path("out/1.png").exists()


@pytest.mark.parametrize("option", ["--force", "--resume"])
def test_numbers_of_a_batch_never_take_another_latents_picture(
    batch: list[str], option: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infgen_rt.writers.names.ignores_case", lambda folder: True)
    Path("in").mkdir()
    np.save("in/a.npy", np.stack([tiny.random_latent(4, 4, seed) for seed in range(2)]))
    np.save("in/A-1.npy", tiny.random_latent(4, 4, 2))
    assert main(["decode", "in", *batch[5:], option]) == 1
    assert f"{Path('in/A-1.npy')} and {Path('in/a.npy')} would both be {Path('out/a-1.png')}" in capsys.readouterr().err
    assert [path.name for path in Path("out").iterdir()] == ["A-1.png"]


def test_a_latent_that_fails_is_named_with_its_place_in_its_batch(
    batch: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    latents = np.stack([tiny.random_latent(4, 4, seed) for seed in range(3)])
    latents[1, 0, 0, 0] = np.nan
    np.save("several.npy", latents)
    assert main(["decode", "0.npy", "several.npy", *batch[5:]]) == 1
    assert "Error: several.npy: latent 2 of 3: 1 of 512 numbers are NaN or infinite" in capsys.readouterr().err


def test_a_folder_without_latents_or_a_pictures_name_for_a_folder_is_refused(
    batch: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("out").mkdir()
    assert main(["decode", *batch[5:]]) == 2
    assert "expected either LATENT files or --sample NAME" in capsys.readouterr().err
    assert main(["decode", "0.npy", "1.npy", "-o", "picture.PNG", *batch[7:]]) == 2
    assert "picture.PNG is a picture's name, but several latents" in capsys.readouterr().err
    assert not Path("picture.PNG").exists()


def test_hidden_files_of_a_folder_are_left_out(batch: list[str]) -> None:
    Path("in").mkdir()
    np.save("in/0.npy", tiny.random_latent(4, 4))
    Path("in/._0.npy").write_bytes(b"what macOS keeps")
    assert main(["decode", "in", *batch[5:]]) == 0
    assert [path.name for path in Path("out").iterdir()] == ["0.png"]


def test_a_folder_that_cannot_be_read_is_told_in_one_line(
    batch: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("in").mkdir()

    def refuse(path: Path) -> NoReturn:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", refuse)
    assert main(["decode", "in", *batch[5:]]) == 2
    assert capsys.readouterr().err == "Error: the folder in cannot be read: Permission denied\n"


def test_a_plan_is_of_one_latent(batch: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *batch[1:]]) == 2
    assert "4 latents: expected one" in capsys.readouterr().err


@pytest.fixture
def eleven(folder: Path) -> np.ndarray:
    latents = np.stack([tiny.random_latent(8, 12, seed) for seed in range(11)])
    np.save("batch.npy", latents)
    return latents


def test_a_batch_becomes_numbered_pictures(eleven: np.ndarray, decode: list[str]) -> None:
    assert main([*decode[:1], "batch.npy", *decode[2:]]) == 0
    assert [path.name for path in sorted(Path().glob("*.png"))] == [f"out-{number:02}.png" for number in range(1, 12)]
    whole = tiny.decode_whole(eleven[10], (96, 64))
    assert np.abs(read("out-11.png") - np.floor(whole * 255 + 0.5)).max() <= 1


def test_a_plan_of_a_batch_says_how_many(
    eleven: np.ndarray, decode: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", "batch.npy", *decode[2:]]) == 0
    assert "output: out-01.png, 96x64, PNG, 11 of these, to out-11.png" in capsys.readouterr().out


def test_a_folder_is_decoded_with_its_batches_and_one_warning_for_each_cause(
    eleven: np.ndarray, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("latents").mkdir()
    np.save("latents/many.npy", eleven[:2])
    np.save("latents/one.npy", eleven[2])
    Path("latents/notes.txt").write_text("not a latent")
    command = ["decode", "latents", "-o", "pictures", "--model", str(bundle), "--size", "96x128", "--json"]
    command += ["--normalisation", "model"]
    assert main(command) == 0
    printed = capsys.readouterr()
    assert sorted(path.name for path in Path("pictures").iterdir()) == ["many-1.png", "many-2.png", "one.png"]
    assert printed.err.count("\n") == 1 and printed.err.startswith("Warning: 96x128 stretches")
    assert [len(json.loads(line)["warnings"]) for line in printed.out.splitlines()] == [1, 1, 1]
    Path("pictures/many-2.png").unlink()
    assert main([*command, "--resume"]) == 0
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    left_out = {Path(each["output"]).name for each in told if each.get("left_out")}
    assert left_out == {"many-1.png", "one.png"}
    assert [Path(each["output"]).name for each in told if "seconds" in each] == ["many-2.png"]


def test_pictures_that_are_there_are_left_out_and_counted(
    eleven: np.ndarray, decode: list[str], bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    numbered = [*decode[:1], "batch.npy", *decode[2:]]
    assert main(numbered) == 0
    kept = Path("out-02.png").stat().st_mtime_ns
    Path("out-03.png").unlink()
    capsys.readouterr()
    assert main([*numbered, "--resume"]) == 0
    assert "10 of 11 pictures were there already, and were left out" in capsys.readouterr().err
    assert Path("out-03.png").exists() and Path("out-02.png").stat().st_mtime_ns == kept
    for command in (numbered, ["plan", *numbered[1:]]):
        assert main([*command, "--resume"]) == 0
        assert "11 of 11 pictures were there already" in capsys.readouterr().err
    Path("latents").mkdir()
    for number in range(3):
        np.save(f"latents/{number}.npy", eleven[number])
    folder = ["decode", "latents", "-o", "some/where", "--model", str(bundle), "--normalisation", "model"]
    folder += ["--format", "dzi"]
    assert main(folder) == 0
    shutil.rmtree("some/where/1_files")
    capsys.readouterr()
    # A pyramid without its tiles is no picture.
    assert main([*folder, "--resume"]) == 1
    told = capsys.readouterr().err
    assert "2 of 2 pictures were there already" in told
    assert "1.dzi is not complete, because 1_files is missing: remove it" in told
    np.save("latents/more.npy", eleven[:4])
    many = [*folder[:3], "numbered", *folder[4:-2]]
    assert main(many) == 0
    Path("numbered/more-2.png").unlink()
    capsys.readouterr()
    assert main([*many, "--resume"]) == 0
    assert "6 of 7 pictures were there already" in capsys.readouterr().err


def test_an_empty_folder_is_refused(folder: Path, decode: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    Path("empty").mkdir()
    assert main([*decode[:1], "empty", *decode[2:]]) == 2
    assert capsys.readouterr().err == (
        "Error: the folder empty has no latent: expected files ending in .npy, .npz, .safetensors, .latent\n"
    )


def piped(arguments: list[str], content: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "infgen_rt", *arguments], input=content, capture_output=True, check=False
    )


@pytest.mark.parametrize("ending", ["png", "jpg", "tif"])
def test_from_standard_input_to_standard_output(folder: Path, bundle: Path, ending: str) -> None:
    options = ["--model", str(bundle), "--format", ending, "--json", "--normalisation", "model"]
    ran = piped(["decode", "-", "-o", "-", *options], Path("latent.npy").read_bytes())
    assert ran.returncode == 0, ran.stderr
    told = json.loads(ran.stderr)
    assert told["format"] and told["output"] == "-"
    assert [path.name for path in folder.iterdir()] == ["latent.npy"]
    file = f"same.{ending}"
    assert main(["decode", "latent.npy", "-o", file, "--model", str(bundle), "--normalisation", "model"]) == 0
    assert Path(file).read_bytes() == ran.stdout


def test_streams_that_cannot_be_used_say_why(eleven: np.ndarray, bundle: Path) -> None:
    model = ["--model", str(bundle)]
    for arguments, content, code, text in [
        (["decode", "batch.npy", "-o", "-"], b"", 2, b"11 pictures cannot all be standard output"),
        (["decode", "latent.npy", "batch.npy", "-o", "-"], b"", 2, b"2 latents cannot all be standard output"),
        (["decode", "latent.npy", "-o", "-", "--format", "dzi"], b"", 2, b"a .dzi is many files"),
        (["decode", "-", "-o", "out.png"], b"", 2, b"standard input is empty"),
        (["decode", "-", "-o", "out.png"], b"rubbish, and much of it", 2, b"standard input is damaged or not"),
    ]:
        ran = piped([*arguments, *model], content)
        assert (ran.returncode, ran.stdout) == (code, b"") and text in ran.stderr, ran.stderr


def test_a_plan_of_standard_output_does_not_name_a_temporary_file(folder: Path, bundle: Path) -> None:
    plan = ["plan", "latent.npy", "-o", "-", "--model", str(bundle), "--normalisation", "model"]
    assert b"output: -, 96x64, PNG" in piped(plan).stdout
    assert json.loads(piped([*plan, "--json"]).stdout)["output"] == "-"


def test_info_on_standard_input_and_a_batch(eleven: np.ndarray) -> None:
    ran = piped(["info", "-", "--json"], Path("batch.npy").read_bytes())
    assert json.loads(ran.stdout)["pictures"] == 11


def test_a_picture_never_replaces_its_own_latent(
    folder: Path, decode: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """The ending of a latent's name does not matter, so it may be that of a picture."""
    latent = Path(decode[1]).read_bytes()
    (folder / "latent.png").write_bytes(latent)
    assert main([decode[0], str(folder / "latent.png"), *decode[2:], "-o", str(folder / "latent.png"), "--force"]) == 2
    assert "is the latent itself" in capsys.readouterr().err
    assert (folder / "latent.png").read_bytes() == latent
