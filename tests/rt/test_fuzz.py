"""Whatever it is given, the package raises nothing but its own errors, and the command line ends with an exit code.

Inputs are mutations of `tests/corpus`, and of a tiny model. A short run is the same each time. A long run is

    INFGEN_FUZZ_MINUTES=60 OMP_NUM_THREADS=1 python -m pytest tests/rt/test_fuzz.py --numprocesses 0

What it finds becomes a file of the corpus, which every run tries first.
"""

import contextlib
import hashlib
import io
import json
import os
import shutil
import struct
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  (registers its dtypes)
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import infgen_rt
from infgen_rt.bundle.folder import Bundle
from infgen_rt.bundle.manifest import MANIFEST
from infgen_rt.cli.main import main
from infgen_rt.errors import InfGenError, InfGenWarning
from infgen_rt.latent.arrays import as_latents
from infgen_rt.latent.spaces import latent_spaces

from .. import guided
from . import tiny

CORPUS = Path(__file__).parents[1] / "corpus"
MINUTES = float(os.environ.get("INFGEN_FUZZ_MINUTES", "0"))
LATENTS = {path.name: path.read_bytes() for path in sorted((CORPUS / "latents").iterdir())}
MANIFESTS = {path.name: path.read_text() for path in sorted((CORPUS / "manifests").iterdir())}
ZIPS = {path.name: path.read_bytes() for path in sorted((CORPUS / "zips").iterdir())}
OPTIONS = [json.loads(line) for line in (CORPUS / "options.jsonl").read_text().splitlines()]


def fuzz(body: Callable[..., None], examples: int, **strategies: st.SearchStrategy[Any]) -> None:
    """Run a function on random values: a fixed number of examples, or until its share of the minutes is over."""
    run = settings(
        max_examples=100 if MINUTES else examples,
        derandomize=not MINUTES,
        phases=[Phase.generate, Phase.shrink] if MINUTES else [Phase.generate],
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )(given(**strategies)(body))
    if guided.INPUTS in os.environ:
        guided.choose(run.hypothesis.fuzz_one_input, MINUTES)
    until = time.monotonic() + 60 * MINUTES / len(guided.TARGETS)
    run()
    while time.monotonic() < until:
        run()


@contextlib.contextmanager
def only_own_errors() -> Iterator[None]:
    """Errors and warnings of the package are expected, with one line each. Others fail the test."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", InfGenWarning)
        try:
            yield
        except InfGenError as error:
            assert str(error) and "\n" not in str(error)


# Values.

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-2, 40)
    | st.integers()
    | st.sampled_from([2**31, 2**63, 10**30, -(10**30)])
    | st.floats()
    | st.text(max_size=8)
)
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4)
)


@st.composite
def mutations(draw: st.DrawFn, seeds: dict[str, bytes]) -> bytes:
    """A seed with some of its bytes changed, left out, repeated or taken from another seed."""
    content = seeds[draw(st.sampled_from(sorted(seeds)))]
    for _ in range(draw(st.integers(0, 4))):
        # Most of what decides is at the beginning and, in a zip, at the end.
        at = min(len(content), draw(st.integers(0, 200) | st.integers(0, len(content))))
        at = len(content) - at if draw(st.booleans()) else at
        gone = draw(st.integers(0, 8) | st.integers(0, max(0, len(content) - at)))
        other = seeds[draw(st.sampled_from(sorted(seeds)))]
        new = draw(st.binary(max_size=8) | st.sampled_from([b"", content[at : at + 64], other[at : at + 64]]))
        content = content[:at] + new + content[at + gone :]
    return content


@st.composite
def edits(draw: st.DrawFn, texts: list[str]) -> Any:
    """One of the JSON texts with some values replaced, left out or added."""
    value = json.loads(draw(st.sampled_from(texts)))
    for _ in range(draw(st.integers(1, 3))):
        value = draw(_edited(value))
    return value


@st.composite
def _edited(draw: st.DrawFn, value: Any) -> Any:
    keys: list[Any] = list(value) if isinstance(value, dict) else list(range(len(value)))
    if not keys:
        return draw(JSON)
    key = draw(st.sampled_from(keys))
    inner = value[key]
    if isinstance(inner, (dict, list)) and draw(st.integers(0, 3)):
        value[key] = draw(_edited(inner))
    elif draw(st.integers(0, 4)) == 0:
        del value[key]
    elif isinstance(inner, (int, float)) and draw(st.booleans()):
        value[key] = draw(st.integers(-2, 300) | st.floats(width=16) | st.integers())
    else:
        value[key] = draw(JSON)
    return value


# Latents.


def load(content: bytes, folder: Path) -> None:
    path = folder / "latent.bin"
    path.write_bytes(content)
    with only_own_errors():
        infgen_rt.load_latents(path)


@pytest.mark.parametrize("name", LATENTS)
def test_files_of_the_corpus_are_latents_or_refused(name: str, tmp_path: Path) -> None:
    load(LATENTS[name], tmp_path)


def test_changed_files(tmp_path: Path) -> None:
    fuzz(lambda content: load(content, tmp_path), 60, content=mutations(LATENTS))


HEADER = {"latent": {"dtype": "F16", "shape": [32, 2, 3], "data_offsets": [0, 384]}, "__metadata__": {"a": "b"}}


def test_changed_headers_of_safetensors(tmp_path: Path) -> None:
    def body(header: Any) -> None:
        text = json.dumps(header).encode()
        load(struct.pack("<Q", len(text)) + text + bytes(384), tmp_path)

    fuzz(body, 40, header=edits([json.dumps(HEADER)]))


SIDES = st.sampled_from([0, 1, 2, 3, 4, 8, 16, 32, 64, 128])
NUMBERS = st.sampled_from(
    ["f2", "f4", "f8", ">f4", "i4", "u1", "?", "c8", "U3", "O", "M8[s]", "f4,f4", "V2", "bfloat16", "float8_e4m3fn"]
)


def test_arrays_of_any_shape_and_kind() -> None:

    def body(shape: list[int], number: str, space: str, value: float, said: Any, pixels: Any) -> None:
        array = np.zeros(shape if np.prod(shape) < 1e6 else [0], number)
        with np.errstate(all="ignore"), contextlib.suppress(TypeError, ValueError, OverflowError):
            array[...] = value
        with only_own_errors():
            as_latents(array, latent_spaces()[space], normalisation=said, latent_size=pixels)

    fuzz(
        body,
        60,
        shape=st.lists(SIDES, max_size=6),
        number=NUMBERS,
        space=st.sampled_from(sorted(latent_spaces())),
        value=st.floats(),
        said=st.none() | st.sampled_from(["model", "vae", "", "x"]),
        pixels=st.none() | st.tuples(st.integers(-64, 128), st.integers(-64, 128)),
    )


# Bundles.


def use(path: Path) -> None:
    """Open a bundle, plan with it and decode a little."""
    with only_own_errors(), infgen_rt.open(path, "onnxruntime", memory="64MiB") as decoder:
        picture = decoder.picture(np.zeros((32, 2, 3), np.float32), "2x")
        str(picture.plan)
        picture.read((0, 0, 4, 4))


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle, tmp_path / "copy"))


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifests_of_the_corpus_are_used_or_refused(name: str, copy: Path) -> None:
    (copy / MANIFEST).write_text(MANIFESTS[name])
    use(copy)


def test_changed_manifests(copy: Path) -> None:
    texts = [(copy / MANIFEST).read_text()]

    def body(manifest: Any) -> None:
        (copy / MANIFEST).write_text(json.dumps(manifest))
        use(copy)

    fuzz(body, 30, manifest=edits(texts))


def unpack(content: bytes, folder: Path) -> None:
    path = folder / "bundle.zip"
    path.write_bytes(content)
    with only_own_errors():
        bundle = Bundle.open(path)
        for name in bundle.manifest.files:
            bundle.read(name)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        assert main(["info", str(path)]) in (0, 1, 2)


@pytest.mark.parametrize("name", ZIPS)
def test_zips_of_the_corpus_are_bundles_or_refused(name: str, tmp_path: Path) -> None:
    unpack(ZIPS[name], tmp_path)


def test_changed_zips(bundle: Path, tmp_path: Path) -> None:
    manifest, graph = json.loads((bundle / MANIFEST).read_text()), b"no graph, which is not read here"
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in manifest["files"]:
            manifest["files"][name] = {"sha256": hashlib.sha256(graph).hexdigest(), "bytes": len(graph)}
            archive.writestr(name, graph)
        archive.writestr(MANIFEST, json.dumps(manifest))
    fuzz(lambda content: unpack(content, tmp_path), 40, content=mutations({"bundle": stream.getvalue()} | ZIPS))


# Options and sizes.

FEW = st.integers(-1, 5000).map(str) | st.floats().map(str) | st.sampled_from(["9" * 400, "1" * 5000, "٣", ""])
TEXTS = st.one_of(
    FEW,
    st.text(max_size=6),
    st.tuples(FEW, st.sampled_from(["x", "X", "*", ",", ":"]), FEW).map("".join),
    st.tuples(FEW, st.sampled_from(["x", "GiB", "mb", "%", "k", " MiB"])).map("".join),
    st.lists(st.integers(-5, 300).map(str) | FEW, max_size=5).map(",".join),
    st.sampled_from(["4k", "8k", "auto", "iphone-16", "2x", "x2160", "3840x", "nan", "inf", "1e308x", "-1x"]),
)
NAMES = [
    "size",
    "region",
    "memory",
    "stages",
    "max-scale",
    "tile",
    "latent-size",
    "display",
    "fit",
    "threads",
    "device",
]
NAMES += ["quality", "bits", "normalisation", "key", "backend", "sample", "format", "precision", "space"]


def plan(arguments: list[str], bundle: Path, folder: Path) -> None:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        code = main(["plan", "-o", str(folder / "out.png"), "--model", str(bundle), *arguments])
    assert code in (0, 1, 2)


@pytest.fixture
def latent(tmp_path: Path) -> str:
    np.save(tmp_path / "latent.npy", tiny.random_latent(4, 6))
    return str(tmp_path / "latent.npy")


@pytest.mark.parametrize("options", OPTIONS, ids=lambda each: "".join(each)[:20])
def test_options_of_the_corpus_end_with_an_exit_code(
    options: list[str], bundle: Path, latent: str, tmp_path: Path
) -> None:
    plan([latent, *options], bundle, tmp_path)


def test_options_of_any_text(bundle: Path, latent: str, tmp_path: Path) -> None:
    def body(options: list[tuple[str, str]]) -> None:
        plan([latent, *(f"--{name}={text}" for name, text in options)], bundle, tmp_path)

    fuzz(body, 30, options=st.lists(st.tuples(st.sampled_from(NAMES), TEXTS), max_size=3))


VALUES = st.one_of(SCALARS, TEXTS, st.tuples(SCALARS, SCALARS), st.lists(SCALARS, max_size=4))


def test_plans_of_any_values(decoder: infgen_rt.Decoder) -> None:
    array = tiny.random_latent(4, 6)

    def body(size: Any, stages: Any, largest: Any, tile: Any, region: Any) -> None:
        with only_own_errors():
            picture = decoder.picture(array, size, stages=stages, max_scale=largest, tile=tile)
            str(picture.plan)
            picture.check_save("out.png", region=region)

    numbers = st.floats() | st.integers(-2, 64)
    fuzz(
        body,
        60,
        size=VALUES,
        stages=st.none() | st.lists(numbers, max_size=4) | st.just([2, 2]),
        largest=st.none() | numbers,
        tile=st.none() | st.integers(),
        region=st.none() | TEXTS | st.lists(SCALARS, max_size=5),
    )


# Arrays that NumPy's own strategies make.


def test_any_float_arrays() -> None:
    def body(array: Any) -> None:
        with only_own_errors():
            as_latents(array, latent_spaces()["flux2"])

    floats = arrays.arrays(np.float32, st.sampled_from([(32, 4, 4), (32, 5, 3), (1, 32, 1, 2, 2), (128, 2, 2)]))
    fuzz(body, 30, array=floats)
