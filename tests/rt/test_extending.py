"""The code in docs/extending.md does what the page says of it."""

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import infgen_rt
from infgen_rt.backend.inputs import statistics_inputs
from infgen_rt.backend.protocol import GROUP, Options, load_backend
from infgen_rt.bundle.folder import Bundle
from infgen_rt.common.pixels import Bits
from infgen_rt.common.schema import parse
from infgen_rt.latent.arrays import as_latent
from infgen_rt.latent.spaces import LatentSpace
from infgen_rt.writers import FORMATS
from infgen_rt.writers.formats import Format

from . import tiny

PAGE = (Path(__file__).parents[2] / "docs" / "extending.md").read_text(encoding="utf-8")
LATENT = tiny.random_latent(5, 7)


def block(title: str) -> str:
    """The code of that title on the page."""
    found = re.findall(rf'^```\w+ title="{re.escape(title)}"\n(.*?)^```$', PAGE, re.MULTILINE | re.DOTALL)
    assert len(found) == 1
    return str(found[0])


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder that the page's backend is installed in, as pip would from the same two files."""
    folder = tmp_path / "site"
    project = tomllib.loads(block("pyproject.toml"))["project"]
    about = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n", encoding="utf-8"
    )
    entries = [f"{name} = {value}\n" for name, value in project["entry-points"][GROUP].items()]
    (about / "entry_points.txt").write_text(f"[{GROUP}]\n{''.join(entries)}", encoding="utf-8")
    (folder / "infgen_reference.py").write_text(block("infgen_reference.py"), encoding="utf-8")
    monkeypatch.syspath_prepend(folder)
    yield folder
    sys.modules.pop("infgen_reference", None)


def test_the_backend_is_short_and_needs_what_it_says(installed: Path) -> None:
    assert len(block("infgen_reference.py").splitlines()) < 60
    for requirement in tomllib.loads(block("pyproject.toml"))["project"]["dependencies"]:
        assert metadata.version(requirement.partition(">=")[0])


def test_the_backend_makes_the_same_picture(installed: Path, bundle: Path) -> None:
    with infgen_rt.open(bundle, "reference") as decoder, infgen_rt.open(bundle, "onnxruntime") as other:
        assert (decoder.backend.name, decoder.backend.device_name) == ("reference", "NumPy")
        pixels = decoder.picture(LATENT, "2x", tile=64).read().astype(int)
        assert np.abs(pixels - other.picture(LATENT, "2x", tile=64).read()).max() <= 1


def test_the_backend_loads_graphs_whose_weights_are_files_of_their_own(installed: Path) -> None:
    """As those of the bundle that ships are."""
    bundle = Bundle.open()
    recipe = next(recipe for recipe in bundle.manifest.recipes if recipe.name == "onnx-fp32")
    files = bundle.read_graph(recipe, "statistics")
    assert len(files) > 1
    session = load_backend("reference").load("statistics", files, Options())
    latent = infgen_rt.load_sample("osprey").latent[:, :6, :5]
    (found,) = session.run(statistics_inputs(latent, bundle.manifest)).values()
    assert found.shape == (2, *bundle.manifest.moments) and np.isfinite(found).all()


def test_the_command_knows_the_backend(installed: Path, bundle: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "latent.npy", LATENT)
    paths = os.pathsep.join([str(installed), *filter(None, [os.environ.get("PYTHONPATH")])])

    def run(*arguments: str) -> str:
        command = [sys.executable, "-m", "infgen_rt", *arguments, "--model", str(bundle), "--json"]
        options = {"cwd": tmp_path, "env": os.environ | {"PYTHONPATH": paths}}
        return subprocess.run(command, check=True, capture_output=True, text=True, **options).stdout

    assert "reference" in [fact["backend"] for fact in json.loads(run("devices"))]
    report = json.loads(run("decode", "latent.npy", "-o", "out.png", "--backend", "reference"))
    assert report["backend"]["name"] == "reference" and report["size"] == [56, 40]


def test_the_backends_errors_are_the_runtimes(installed: Path) -> None:
    from importlib import import_module

    from infgen_rt.backend.protocol import Options

    backend = import_module("infgen_reference").Backend()
    with pytest.raises(infgen_rt.BackendError, match="cannot load decode"):
        backend.load("decode", {"graph.onnx": b"rubbish"}, Options())
    session = backend.load("prefill", {"graph.onnx": tiny.prefill_graph()}, Options())
    with pytest.raises(infgen_rt.DecodeError, match="could not run"):
        session.run({"latent": LATENT})
    session.close()
    with pytest.raises(infgen_rt.DecodeError, match="closed"):
        session.run({"latent": LATENT[None]})


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> type[Format]:
    """The page's file format, in the table."""
    names: dict[str, type[Format]] = {}
    exec(block("ppm.py"), names)
    monkeypatch.setattr("infgen_rt.writers.FORMATS", table := dict(FORMATS))
    exec(block("registration"), names | {"FORMATS": table})
    return names["Ppm"]


@pytest.mark.parametrize("bits", [8, 16])
def test_one_line_registers_a_format(
    registered: type[Format], decoder: infgen_rt.Decoder, tmp_path: Path, bits: Bits
) -> None:
    picture = decoder.picture(LATENT, "2x", tile=64)
    picture.save(tmp_path / "a.ppm", bits=bits, region=(10, 20, 60, 50))
    content = (tmp_path / "a.ppm").read_bytes()
    header = f"P6 60 50 {2**bits - 1}\n".encode()
    assert content.startswith(header) and len(content) == len(header) + 60 * 50 * 3 * bits // 8
    expected = picture.read((10, 20, 60, 50), np.float32) * (2**bits - 1)
    levels = np.frombuffer(content[len(header) :], f">u{bits // 8}").reshape(50, 60, 3)
    assert np.abs(levels - expected).max() <= 1
    if bits == 8:
        with Image.open(tmp_path / "a.ppm") as image:
            assert np.array_equal(np.asarray(image), levels)
    with pytest.raises(infgen_rt.OutputError, match="exists"):
        picture.save(tmp_path / "a.ppm")


def test_a_latent_space_may_have_statistics_of_each_channel() -> None:
    space = parse(LatentSpace, json.loads(block("latent_spaces.json"))["example"], "example")
    mean, std = (np.array(values)[:, None, None] for values in (space.vae_mean, space.vae_std))
    latent = np.random.default_rng(0).normal(0, 1, (4, 5, 7))
    assert as_latent(latent * std + mean, space, normalisation="vae") == pytest.approx(latent, abs=1e-5)


def test_statistics_of_another_number_of_channels_are_refused() -> None:
    entry = json.loads(block("latent_spaces.json"))["example"] | {"vae_mean": [0.0, 0.0]}
    with pytest.raises(ValueError, match="2 statistics are not of 4 channels"):
        parse(LatentSpace, entry, "example")


def test_packed_tokens_are_of_two_cells_each_way() -> None:
    entry = json.loads(block("latent_spaces.json"))["example"] | {"cell_pixels": 16}
    space = parse(LatentSpace, entry, "example")
    assert as_latent(np.random.default_rng(0).normal(0, 1, (6, 16)), space, latent_size=(100, 64)).shape == (4, 4, 6)
    assert space.native_size(np.zeros((4, 4, 6), np.float32)) == (96, 64)
