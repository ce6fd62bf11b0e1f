"""More of `test_fuzz`: bundles of several models, options together, text of pictures, and statistics of latents."""

import contextlib
import io
import json
import shutil
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st
from PIL import Image

import infgen_rt
from infgen_rt.bundle.folder import Bundle
from infgen_rt.bundle.manifest import MANIFEST
from infgen_rt.bundle.several import read_models, write_models
from infgen_rt.cli.main import main
from infgen_rt.latent.arrays import as_latents
from infgen_rt.latent.choosing import space_of
from infgen_rt.latent.spaces import latent_spaces

from . import tiny
from .test_fuzz import JSON, SCALARS, TEXTS, edits, fuzz, only_own_errors

# Bundles of several models.


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of two models that share all files. Only its first one can decode."""
    folder = tiny.write_bundle(tmp_path_factory.mktemp("several"))
    first = Bundle.open(folder).manifest
    (folder / MANIFEST).write_text(write_models([first, replace(first, latent_space="sd15", latent_channels=4)]))
    return folder


def test_changed_manifests_of_several_models(several: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(several, tmp_path / "copy"))

    def body(manifest: Any, space: str | None) -> None:
        (copy / MANIFEST).write_text(json.dumps(manifest))
        with only_own_errors():
            for each in read_models(json.dumps(manifest)):
                write_models([each])
        with only_own_errors(), infgen_rt.open(copy, "onnxruntime", space=space, memory="64MiB") as decoder:
            str(decoder.picture(np.zeros((32, 2, 3), np.float32), "2x").plan)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            assert main(["info", str(copy)]) in (0, 1, 2)

    text = (several / MANIFEST).read_text()
    fuzz(body, 30, manifest=edits([text]), space=st.none() | st.sampled_from(["flux2", "sd15", "sd1.5", "", "\0"]))


# Options that are possible by themselves, together.

SOME: dict[str, st.SearchStrategy[str]] = {
    "size": st.sampled_from(["2x", "0.3x", "100x60", "x90", "4k", "33x2000"]),
    "display": st.sampled_from(["iphone-16", "auto", "4k"]),
    "fit": st.sampled_from(["cover", "contain", "stretch"]),
    "region": st.sampled_from(["0,0,8,8", "3,5,7,9", "40,20,8,12", "0,0,9999,1"]),
    "stages": st.sampled_from(["2", "2,2", "1.5,1.5", "0.5,4"]),
    "max-scale": st.sampled_from(["1.1", "2", "4"]),
    "tile": st.sampled_from(["8", "64", "512"]),
    "memory": st.sampled_from(["9MiB", "12MiB", "20MiB", "1GiB"]),
    "bits": st.sampled_from(["8", "16"]),
    "tile-format": st.sampled_from(["jpg", "png"]),
    "quality": st.sampled_from(["1", "100"]),
    "precision": st.sampled_from(["fast", "exact"]),
    "normalisation": st.sampled_from(["model", "vae"]),
    "latent-size": st.sampled_from(["48x32", "32x48"]),
    "space": st.sampled_from(["flux2", "z-image"]),
    "key": st.sampled_from(["latent", "none"]),
    "metadata": st.sampled_from(["a=b", "a", "=", "a=\ud800", "prompt={}"]),
    "sample": st.sampled_from(["harbour", ""]),
    "format": st.sampled_from(["png", "jpg", "tif", "dzi"]),
}
FLAGS = st.lists(st.sampled_from(["--lossless", "--force", "--resume", "--quiet", "--json"]), unique=True, max_size=3)
ENDINGS = st.sampled_from([".png", ".jpg", ".webp", ".avif", ".tif", ".dzi", "", "/"])


def test_options_together(bundle: Path, tmp_path: Path) -> None:
    latents = {
        "plain.npy": tiny.random_latent(4, 6),
        "packed.npy": np.zeros((6, 128), np.float32),
        "batch.npy": np.zeros((2, 32, 4, 6), np.float32),
        "short.npy": np.zeros((4, 4, 6), np.float32),
    }
    for name, latent in latents.items():
        np.save(tmp_path / name, latent)
    single = [*sorted(latents), ""]

    def body(names: list[str], options: dict[str, str], flags: list[str], ending: str, command: str) -> None:
        paths = [str(tmp_path / name) for name in names]
        output = str(tmp_path if ending == "/" else tmp_path / f"out{ending}")
        texts = [f"--{name}={text}" for name, text in options.items()]
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as said:
            code = main([command, *paths, "-o", output, "--model", str(bundle), *texts, *flags])
        assert code in (0, 1, 2)
        assert (code == 0) == (not any(line.startswith("Error: ") for line in said.getvalue().splitlines()))

    fuzz(
        body,
        25,
        names=st.lists(st.sampled_from(single), min_size=1, max_size=2) | st.just([]),
        options=st.lists(st.sampled_from(sorted(SOME)), max_size=4, unique=True).flatmap(
            lambda keys: st.fixed_dictionaries({key: SOME[key] for key in keys})
        ),
        flags=FLAGS,
        ending=ENDINGS,
        command=st.just("plan"),
    )


# Text in pictures.


def test_any_metadata(decoder: infgen_rt.Decoder, tmp_path: Path) -> None:
    picture = decoder.picture(tiny.random_latent(2, 3), normalisation="model")

    def body(metadata: dict[Any, Any], ending: str) -> None:
        path = tmp_path / f"out{ending}"
        with only_own_errors():
            picture.check_save(path, metadata=metadata, force=True)
            picture.save(path, metadata=metadata, force=True)
            with Image.open(path) as image:
                image.load()

    texts = st.text(max_size=20) | TEXTS
    fuzz(
        body,
        30,
        metadata=st.dictionaries(texts | SCALARS, texts | JSON, max_size=3) | st.dictionaries(texts, texts, max_size=3),
        ending=st.sampled_from([".png", ".jpg", ".webp", ".tif"]),
    )


# Numbers of latents.


@st.composite
def latents(draw: st.DrawFn) -> np.ndarray:
    """A latent with drawn statistics: noise, a ramp or a constant, of a mean and a deviation, with cells of its own."""
    channels = draw(st.sampled_from([4, 16, 32]))
    height, width = draw(st.sampled_from([(1, 1), (2, 3), (3, 400), (36, 36), (64, 48)]))
    random = np.random.default_rng(draw(st.integers(0, 3)))
    latent = {
        "noise": random.normal(size=(channels, height, width)),
        "ramp": np.broadcast_to(np.linspace(-1, 1, width), (channels, height, width)),
        "smooth": np.cumsum(random.normal(size=(channels, height, width)), axis=2) / 10,
        "constant": np.ones((channels, height, width)),
        "one channel": random.normal(size=(channels, height, width)) * (np.arange(channels) == 1)[:, None, None],
    }[draw(st.sampled_from(["noise", "ramp", "smooth", "constant", "one channel"]))]
    with np.errstate(all="ignore"):
        scaled = latent * draw(st.sampled_from([0.0, 1e-40, 1e-3, 0.5, 1.0, 4.0, 1e20, 3e38])) + draw(
            st.sampled_from([0.0, 1e-3, 2.0, -1e30, 3e38, float("nan"), float("inf")])
        )
        return scaled.astype(np.float32)


def test_latents_of_any_statistics() -> None:
    def body(latent: np.ndarray, space: str, said: Any) -> None:
        with only_own_errors(), warnings.catch_warnings():
            as_latents(latent, latent_spaces()[space], normalisation=said)
        with only_own_errors():
            space_of(latent)

    spaces = st.sampled_from(sorted(latent_spaces()))
    fuzz(body, 40, latent=latents(), space=spaces, said=st.sampled_from([None, "model", "vae"]))
