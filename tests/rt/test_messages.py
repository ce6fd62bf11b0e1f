"""Errors name the true cause, and a step that works where they are shown."""

import errno
import json
import os
import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import infgen_rt
from infgen_rt.cli.main import main
from infgen_rt.errors import BackendError, BundleError, InfGenWarning, LatentError, OutputError

from . import tiny


@pytest.fixture
def half(tmp_path: Path) -> Path:
    """A bundle whose graphs are in float16 alone, which ONNX Runtime does not run on CPUs."""
    bundle = tiny.write_bundle(tmp_path / "half")
    (recipe,) = json.loads((bundle / "manifest.json").read_text())["recipes"]
    tiny.edit_manifest(bundle, recipes=[recipe | {"name": "onnx-fp16", "precision": "fp16"}])
    return bundle


@pytest.mark.parametrize("backend", ["auto", "onnxruntime"])
def test_graphs_that_no_device_here_runs_are_the_cause_and_not_the_installation(half: Path, backend: str) -> None:
    with pytest.raises(BackendError) as caught:
        infgen_rt.open(half, backend)
    text = str(caught.value)
    assert "'onnxruntime' runs none of the graphs of 'tiny' on CPU, which are onnx-fp16" in text
    assert "infgen-export CHECKPOINT --recipe onnx-fp32" in text and "pip install" not in text


def test_devices_tells_of_graphs_that_no_device_here_runs(half: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["devices", "--model", str(half)]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "onnxruntime" in line and "cuda" not in line]
    assert "runs none of the graphs" in line


def test_torch_that_auto_leaves_out_is_named(tmp_path: Path) -> None:
    bundle = tiny.write_bundle(tmp_path / "torch")
    (recipe,) = json.loads((bundle / "manifest.json").read_text())["recipes"]
    tiny.edit_manifest(bundle, recipes=[recipe | {"name": "torch-fp32", "target": "torch"}])
    code = f"import infgen_rt; infgen_rt.open({str(bundle)!r})"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    line = ran.stderr.splitlines()[-1]
    assert "pass backend='torch' (--backend torch)" in line and "pip install" not in line


def test_a_batch_is_as_many_pictures(decoder: infgen_rt.Decoder) -> None:
    latents = np.stack([tiny.random_latent(8, 12, seed) for seed in range(3)])
    pictures = decoder.pictures(latents[:, :, None], "2x", normalisation="model")
    assert [picture.size for picture in pictures] == [(192, 128)] * 3
    for picture, latent in zip(pictures, latents, strict=True):
        assert np.array_equal(picture.read(), decoder.picture(latent, "2x", normalisation="model").read())


def test_decoders_and_pictures_say_what_they_are(decoder: infgen_rt.Decoder) -> None:
    picture = decoder.picture(tiny.random_latent(8, 12), "2x", normalisation="model")
    assert repr(decoder).startswith("<Decoder of tiny 1, flux2 latents, on onnxruntime cpu in fp32, ")
    assert repr(picture) == "<Picture 192x128 of a latent of 12x8 cells (96x64), on onnxruntime cpu>"


@pytest.mark.parametrize(
    ("which", "text"),
    [
        (lambda decoder, picture: decoder, "call infgen_rt.open in each process"),
        (lambda decoder, picture: picture, "pass its latent and size and make it there, or pass read()"),
    ],
    ids=["decoder", "picture"],
)
def test_pickling_says_what_to_do_instead(decoder: infgen_rt.Decoder, which: Callable[..., object], text: str) -> None:
    picture = decoder.picture(tiny.random_latent(8, 12), normalisation="model")
    with pytest.raises(TypeError, match=text.replace("(", r"\(").replace(")", r"\)")):
        pickle.dumps(which(decoder, picture))


def test_a_cause_is_warned_of_once_by_a_decoder(decoder: infgen_rt.Decoder) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for seed in range(5):
            picture = decoder.picture(2 * tiny.random_latent(8, 12, seed), (96, 128 + 16 * seed))
            picture.at(f"{5 + seed}x")
    assert sorted(each.message.cause for each in caught if isinstance(each.message, InfGenWarning)) == [
        "not normalised",
        "scale",
        "shape",
    ]
    # It points at the line that asked, not into the package.
    assert {Path(each.filename) for each in caught} == {Path(__file__)}


def test_nothing_is_left_of_standard_output(decoder: infgen_rt.Decoder, bundle: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "latent.npy", tiny.random_latent(8, 12))
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    command = [sys.executable, "-m", "infgen_rt", "decode", str(tmp_path / "latent.npy"), "-o", "-", "--quiet"]
    with subprocess.Popen(
        [*command, "--model", str(bundle)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"TMPDIR": str(temporary)},
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        said = process.stderr.read()
    assert process.returncode == 1 and said.startswith(b"Error: cannot write to standard output"), said
    assert list(temporary.iterdir()) == []


class Unreadable:
    """Files that the system refuses to read, as it does for other users than root."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("open", "read_bytes"):
            real = getattr(Path, name)

            def refuse(path: Path, *arguments: Any, real: Any = real, **options: Any) -> Any:
                if path.suffix in (".json", ".npy"):
                    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
                return real(path, *arguments, **options)

            monkeypatch.setattr(Path, name, refuse)


def test_what_may_not_be_read_is_not_called_damaged(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(tmp_path / "latent.npy", tiny.random_latent(4, 4))
    Unreadable(monkeypatch)
    with pytest.raises(BundleError, match=r"manifest.json cannot be read: Permission denied$"):
        infgen_rt.open(bundle)
    with pytest.raises(LatentError, match=r"latent.npy cannot be read: Permission denied$"):
        infgen_rt.load_latent(tmp_path / "latent.npy")


def test_a_file_in_the_place_of_a_folder_is_called_one(decoder: infgen_rt.Decoder, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    picture = decoder.picture(tiny.random_latent(4, 4), normalisation="model")
    with pytest.raises(OutputError, match="out.png cannot be a file here: Not a directory"):
        picture.save(tmp_path / "file" / "out.png")
    with pytest.raises(OutputError, match="cannot write in .*none: there is no such folder"):
        picture.save(tmp_path / "none" / "out.png")


def test_a_link_to_itself_is_called_one(decoder: infgen_rt.Decoder, tmp_path: Path) -> None:
    (tmp_path / "out.png").symlink_to("out.png")
    with pytest.raises(OutputError, match="a symbolic link that leads to itself: remove it, or choose another name"):
        decoder.picture(tiny.random_latent(4, 4), normalisation="model").save(tmp_path / "out.png")


def test_plan_says_which_folder_is_in_the_way(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in").mkdir()
    np.save(tmp_path / "in/latent.npy", tiny.random_latent(4, 4))
    latent = str(tmp_path / "in/latent.npy")
    for arguments, text in (
        ([latent, "-o", str(tmp_path)], f"{tmp_path} is a folder: expected a picture's name for -o, such as"),
        ([str(tmp_path / "in"), "-o", "a.png"], f"{tmp_path / 'in'} is a folder: expected the latent in it, {latent}"),
    ):
        assert main(["plan", *arguments, "--model", str(bundle)]) == 2
        assert text in capsys.readouterr().err


def test_a_region_outside_of_a_display_says_what_it_counts_in(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "latent.npy", tiny.random_latent(20, 30))
    arguments = ["plan", str(tmp_path / "latent.npy"), "-o", str(tmp_path / "a.png"), "--model", str(bundle)]
    assert main([*arguments, "--size", "200x200", "--fit", "cover", "--region", "150,0,100,100"]) == 2
    said = capsys.readouterr().err
    assert "which is 200x200; with --display or --fit, that is the part which is shown" in said


@pytest.mark.parametrize(
    ("latent", "size", "cause", "step"),
    [
        (tiny.random_latent(8, 12) * 3, None, "deviation", "unless a scaling after the sampler is left out or added"),
        (tiny.random_latent(8, 12) + 0.5, None, "mean", "unless a shift after the sampler is left out or added"),
        (tiny.random_latent(8, 12), "5x", "scale", "; 384x256 is within that"),
        (tiny.random_latent(8, 12), (200, 64), "shape", "would keep its shape"),
    ],
)
def test_warnings_end_with_a_step(
    decoder: infgen_rt.Decoder, latent: np.ndarray, size: str | tuple[int, int] | None, cause: str, step: str
) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        decoder.picture(latent, size, normalisation="model")
    told = {each.message.cause: str(each.message) for each in caught if isinstance(each.message, InfGenWarning)}
    assert step in told[cause]
