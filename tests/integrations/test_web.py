"""The package for browsers, `integrations/web`, in a headless Chromium against Python.

The tests in Chromium are left out where there is no Node, no Chromium, or where the package's own dependencies are not
installed:

    cd integrations/web && npm ci
    CHROMIUM=/usr/bin/chromium-headless-shell pytest -m slow -n0 tests/integrations/test_web.py

They decode in WebAssembly with one thread, because a Chromium without a graphics card has no WebGPU.
"""

import hashlib
import http.client
import json
import os
import re
import shutil
import subprocess
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

import infgen_rt
from infgen_rt.bundle.folder import DEFAULT_BUNDLE
from infgen_rt.common.pixels import ByteArray, FloatArray
from infgen_rt.latent.files import read_array
from infgen_rt.latent.samples import FOLDER as SAMPLES
from infgen_rt.spaces import latent_space, latent_spaces

from ..rt import tiny

WEB = Path(__file__).parents[2] / "integrations" / "web"
NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
CHROMIUM = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


def _lacking() -> str:
    """Why the package cannot run here, or nothing."""
    if not shutil.which("node") or not shutil.which("npm"):
        return "no Node and npm"
    if not (WEB / "node_modules").is_dir():
        return "the package's dependencies are not installed: run npm ci in integrations/web"
    return "" if CHROMIUM else "no Chromium: CHROMIUM names one"


in_chromium = pytest.mark.skipif(bool(_lacking()), reason=_lacking())
Save = Callable[[Path, FloatArray], Path]


def as_npy(path: Path, latent: FloatArray) -> Path:
    np.save(path.with_suffix(".npy"), latent.astype(np.float16))
    return path.with_suffix(".npy")


def as_bfloat16(path: Path, latent: FloatArray) -> Path:
    save_file({"latent": latent[None].astype(ml_dtypes.bfloat16)}, path.with_suffix(".safetensors"))
    return path.with_suffix(".safetensors")


def as_comfyui(path: Path, latent: FloatArray) -> Path:
    """As ComfyUI's SaveLatent writes it, which holds the VAE's own latents for these spaces."""
    raw = latent_space("sdxl").denormalise(latent)[None]
    save_file(
        {"latent_tensor": raw, "latent_format_version_0": np.empty(0, np.float32)}, path.with_suffix(".safetensors")
    )
    return path.with_suffix(".safetensors")


def as_patchified(path: Path, latent: FloatArray) -> Path:
    channels, height, width = latent.shape
    squares = latent.reshape(channels, height // 2, 2, width // 2, 2).transpose(0, 2, 4, 1, 3)
    np.savez(path.with_suffix(".npz"), latent=squares.reshape(1, 4 * channels, height // 2, width // 2))
    return path.with_suffix(".npz")


def as_packed(path: Path, latent: FloatArray) -> Path:
    channels, height, width = latent.shape
    squares = latent.reshape(channels, height // 2, 2, width // 2, 2).transpose(1, 3, 0, 2, 4)
    np.save(path.with_suffix(".npy"), np.asfortranarray(squares.reshape(height * width // 4, 4 * channels)))
    return path.with_suffix(".npy")


@dataclass(frozen=True)
class Case:
    """A latent of noise, or of a part of a sample for FLUX.2, and the picture of it."""

    title: str
    space: str
    size: str | tuple[int, int]
    cells: tuple[int, int] = (10, 12)
    save: Save = as_npy
    region: tuple[int, int, int, int] | None = None
    options: dict[str, Any] = field(default_factory=dict)
    normalisation: str | None = None

    def latent(self) -> FloatArray:
        height, width = self.cells
        if self.space == "flux2":
            return infgen_rt.load_sample("osprey").latent[:, 20 : 20 + height, 40 : 40 + width]
        channels = latent_space(self.space).channels
        return np.random.default_rng(1).normal(0, 0.8, (channels, height, width)).astype(np.float32)


CASES = (
    # With so little memory, statistics, contexts and pictures are made in many parts.
    Case("parts", "flux2", (237, 150), (12, 14), options={"memory": 1e6}),
    Case("patchified", "flux2", "1.25x", save=as_patchified, region=(8, 13, 55, 60)),
    Case("vae", "flux2", "1x", normalisation="vae"),
    Case("comfyui", "sdxl", "1x", save=as_comfyui),
    Case("bfloat16", "sd15", "1.5x", save=as_bfloat16),
    Case("half", "sd3", "4x"),
    Case("packed", "flux1", "2.5x", save=as_packed, options={"latentSize": {"width": 96, "height": 80}}),
    Case("reduced", "sdxl", "0.6x"),
    Case("beyond", "sdxl", "5.3x", region=(100, 60, 201, 150)),
)


@dataclass(frozen=True)
class Decoded:
    """What a job wrote."""

    folder: Path
    report: dict[str, Any]

    def pixels(self, title: str) -> ByteArray:
        found = self.report["cases"][title]
        assert "error" not in found, found["error"]
        raw = (self.folder / f"{title}.rgb").read_bytes()
        return np.frombuffer(raw, np.uint8).reshape(found["height"], found["width"], 3)


def run(folder: Path, cases: list[dict[str, Any]], model: Path = DEFAULT_BUNDLE, **more: Any) -> Decoded:
    """Run a job of `test/browser.mjs`."""
    cases = [{name: value for name, value in case.items() if value is not None} for case in cases]
    job = {"browser": CHROMIUM, "model": str(model), "out": str(folder), "cases": cases, **more}
    (folder / "job.json").write_text(json.dumps(job))
    command = ["node", "test/browser.mjs", str(folder / "job.json")]
    done = subprocess.run(command, cwd=WEB, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr
    return Decoded(folder, json.loads((folder / "report.json").read_text()))


def by_python(
    latent: Any, space: str | None, size: Any, model: Path | None = None, region: Any = None, **options: Any
) -> ByteArray:
    with infgen_rt.open(model, "onnxruntime", space=space, precision="exact", threads=1) as decoder:
        decoder.notices.warn = lambda *_: None  # type: ignore[method-assign]
        return decoder.picture(latent, size, max_scale=inf, **options).read(region)


def with_global_prefill(bundle: Path) -> Path:
    """A bundle whose prefill has to see the whole latent, because it has no statistics."""
    content = tiny.global_prefill_graph()
    (bundle / "onnx-fp32/prefill.onnx").write_bytes(content)
    manifest = json.loads((bundle / "manifest.json").read_text())
    digest = hashlib.sha256(content).hexdigest()
    manifest["files"]["onnx-fp32/prefill.onnx"] = {"sha256": digest, "bytes": len(content)}
    del manifest["recipes"][0]["graphs"]["statistics"]
    (bundle / "manifest.json").write_text(json.dumps({**manifest, "moments": None}))
    return bundle


def assert_equal(found: ByteArray, expected: ByteArray) -> None:
    """Within one level, and the same nearly everywhere."""
    assert found.shape == expected.shape
    differences = np.abs(found.astype(int) - expected)
    assert differences.max() <= 1
    assert np.count_nonzero(differences) < 1e-2 * differences.size


@pytest.fixture(scope="module")
def built() -> None:
    for script in ("check", "build"):
        subprocess.run(["npm", "run", script], cwd=WEB, check=True, capture_output=True, timeout=300)


@pytest.fixture(scope="module")
def decoded(built: None, tmp_path_factory: pytest.TempPathFactory) -> Decoded:
    folder = tmp_path_factory.mktemp("web")
    jobs = []
    for case in CASES:
        file = case.save(folder / case.title, case.latent())
        size = case.size if isinstance(case.size, str) else dict(zip(("width", "height"), case.size, strict=True))
        jobs.append(
            {
                "title": case.title,
                "latent": str(file),
                "space": case.space,
                "size": size,
                "region": case.region and dict(zip(("x", "y", "width", "height"), case.region, strict=True)),
                "normalisation": case.normalisation,
                "backend": "wasm",
                **case.options,
            }
        )
    # A shipped sample at the middle of its picture at four times its size.
    region = {"x": 1824, "y": 840, "width": 96, "height": 64}
    sample = {"title": "sample", "latent": str(SAMPLES / "osprey.npz"), "size": "4x", "region": region}
    jobs.append({**sample, "space": "flux2", "backend": "wasm", "memory": 1e8})
    common = {"latent": str(folder / "half.npy"), "size": "1x"}
    jobs.append({"title": "ambiguous", **common, "backend": "wasm"})
    jobs.append({"title": "webgpu", **common, "space": "sd3", "backend": "webgpu"})
    jobs.append({"title": "outside", **common, "space": "sd3", "backend": "wasm", "region": {**region, "x": 4}})
    jobs.append({"title": "space", **common, "space": "flux2", "backend": "wasm"})
    jobs.append({"title": "stopped", **common, "space": "sd3", "backend": "wasm", "stops": True})
    return run(folder, jobs)


@in_chromium
@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.title)
def test_pixels_are_pythons_in_every_space_layout_and_scale(case: Case, decoded: Decoded) -> None:
    latent_size = (96, 80) if case.title == "packed" else None
    file = next(decoded.folder.glob(f"{case.title}.[ns]*"))
    expected = by_python(
        read_array(file),
        case.space,
        case.size,
        region=case.region,
        normalisation=case.normalisation,
        latent_size=latent_size,
    )
    assert_equal(decoded.pixels(case.title), expected)


@in_chromium
@pytest.mark.slow
def test_a_part_of_a_shipped_sample_is_pythons(decoded: Decoded) -> None:
    latent = infgen_rt.load_sample("osprey").latent
    assert_equal(decoded.pixels("sample"), by_python(latent, "flux2", "4x", region=(1824, 840, 96, 64)))


@in_chromium
@pytest.mark.slow
def test_what_is_refused_rejects_the_promise_with_what_to_do(decoded: Decoded) -> None:
    expected = {
        "ambiguous": ("latent", "may be of sd3 or flux1: say which it is"),
        "webgpu": (
            "backend",
            'WebGPU cannot be used: the browser gives no WebGPU adapter; use another browser, or backend: "wasm"',
        ),
        "outside": ("plan", "reaches outside the picture, which is 96x80"),
        "space": ("latent", "is not that of flux2 latents: expected [32, h, w]"),
        "stopped": ("cancelled", "the work was stopped"),
    }
    for title, (kind, words) in expected.items():
        found = decoded.report["cases"][title]
        assert (found["name"], found["kind"]) == ("InfGenError", kind)
        assert words in found["error"]


@in_chromium
@pytest.mark.slow
def test_bundles_in_a_zip_without_enlargements_or_with_global_prefill_are_decoded(built: None, tmp_path: Path) -> None:
    latent = tiny.random_latent(9, 11)
    np.save(tmp_path / "latent.npy", latent)
    models = {
        "one": tiny.write_bundle(tmp_path / "one"),
        "several": tiny.write_bundle(tmp_path / "several", enlargements=tiny.ENLARGEMENTS),
        "global": with_global_prefill(tiny.write_bundle(tmp_path / "global")),
    }
    jobs = []
    for title, model in models.items():
        with zipfile.ZipFile(tmp_path / f"{title}.zip", "w") as archive:
            for file in filter(Path.is_file, model.rglob("*")):
                archive.write(file, file.relative_to(model))
        bundle = str(tmp_path / f"{title}.zip")
        jobs.append(
            {
                "title": title,
                "latent": str(tmp_path / "latent.npy"),
                "bundle": bundle,
                "size": "1.7x",
                "backend": "wasm",
                "memory": 1e6,
            }
        )
    found = run(tmp_path, jobs)
    for title, model in models.items():
        assert_equal(found.pixels(title), by_python(latent, None, "1.7x", model))


@in_chromium
@pytest.mark.slow
def test_the_page_refuses_in_words_shows_what_is_dropped_and_saves_it(built: None, tmp_path: Path) -> None:
    latent = infgen_rt.load_sample("osprey").latent[:, 20:32, 40:56]
    np.save(tmp_path / "latent.npy", latent)
    Image.new("RGB", (8, 8)).save(tmp_path / "wrong.png")
    page = {"latent": str(tmp_path / "latent.npy"), "wrong": str(tmp_path / "wrong.png"), "size": "2.3x"}
    report = run(tmp_path, [], page={**page, "screenshot": str(tmp_path / "page.png")}).report
    assert report["refusal"].startswith("wrong.png is a picture, and not a latent")
    assert report["problem"] == ""
    assert report["model"] == "flux2 latent of 16x12 cells, 294x221 pixels, on wasm"
    expected = by_python(latent, "flux2", "2.3x")
    assert_equal(np.asarray(Image.open(tmp_path / "saved.png")), expected)
    # What the page shows has the picture's colours, which a blank canvas has not.
    shown = np.asarray(Image.open(tmp_path / "page.png").convert("RGB"))[200:450, 350:610]
    middle = expected[60:160, 90:200]
    assert np.abs(shown.mean(axis=(0, 1)) - middle.mean(axis=(0, 1))).max() < 30
    assert shown.std() > 20


@pytest.mark.slow
@pytest.mark.skipif(bool(_lacking()), reason=_lacking())
def test_bad_files_are_refused_without_decoding(built: None) -> None:
    done = subprocess.run(["node", "--test", "test/files.test.mjs"], cwd=WEB, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@contextmanager
def serving(folder: Path) -> Iterator[tuple[int, Callable[[str], AbstractContextManager[http.client.HTTPResponse]]]]:
    """The page's server for a folder that has `dist/page`: its process, and blocks with the answer for a path."""
    shutil.copy(WEB / "serve.mjs", folder)
    command = ["node", str(folder / "serve.mjs"), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server, ExitStack() as opened:
        opened.callback(server.terminate)
        assert server.stdout is not None
        found = re.search(r"http://([\d.]+):(\d+)/", server.stdout.readline())
        assert found is not None
        host, port = found[1], int(found[2])

        @contextmanager
        def get(path: str) -> Iterator[http.client.HTTPResponse]:
            with closing(http.client.HTTPConnection(host, port, timeout=20)) as connection:
                connection.request("GET", path)
                with connection.getresponse() as answer:
                    yield answer

        yield server.pid, get


@pytest.mark.skipif(not shutil.which("node"), reason="no Node")
def test_the_server_answers_malformed_requests_and_goes_on(tmp_path: Path) -> None:
    (tmp_path / "dist" / "page").mkdir(parents=True)
    (tmp_path / "dist" / "page" / "index.html").write_text("the page")
    with serving(tmp_path) as (_, get):
        statuses = []
        for path in ("/%", "//", "/..%2f..%2fserve.mjs", "/none", "/"):
            with get(path) as answer:
                statuses.append(answer.status)
    assert statuses == [400, 400, 404, 404, 200]


@pytest.mark.skipif(not shutil.which("node") or not Path("/proc/self/fd").exists(), reason="no Node or no /proc")
def test_the_server_closes_files_that_a_browser_leaves_and_survives_those_that_it_cannot_read(tmp_path: Path) -> None:
    page = tmp_path / "dist" / "page"
    page.mkdir(parents=True)
    (page / "index.html").write_text("the page")
    (page / "large.bin").write_bytes(bytes(30_000_000))
    # Even root cannot read a file whose name leads to the memory of a process.
    (page / "unreadable.bin").symlink_to("/proc/self/mem")
    with serving(tmp_path) as (process, get):

        def descriptors() -> int:
            return len(list(Path(f"/proc/{process}/fd").iterdir()))

        before = descriptors()
        for _ in range(20):
            with get("/large.bin") as answer:  # the connection closes in the middle of the file
                assert answer.read(1000) == bytes(1000)
        with pytest.raises((http.client.HTTPException, OSError)), get("/unreadable.bin") as answer:
            answer.read()
        until = time.monotonic() + 60
        while descriptors() > before + 2 and time.monotonic() < until:
            time.sleep(0.05)
        assert descriptors() <= before + 2
        with get("/") as answer:
            assert answer.read() == b"the page"


def test_the_table_of_latent_spaces_is_pythons() -> None:
    table = json.loads((WEB / "src" / "latent" / "spaces.json").read_text(encoding="utf-8"))
    fields = ("title", "channels", "packed", "patchified", "comfyui_raw", "vae_mean", "vae_std")
    expected = {
        name: {each: json.loads(json.dumps(getattr(space, each))) for each in fields}
        for name, space in latent_spaces().items()
    }
    assert table == expected


def test_the_lock_names_no_other_registry_than_the_public_one() -> None:
    lock = json.loads((WEB / "package-lock.json").read_text(encoding="utf-8"))
    sources = [each["resolved"] for each in lock["packages"].values() if "resolved" in each]
    assert all(source.startswith("https://registry.npmjs.org/") for source in sources)
