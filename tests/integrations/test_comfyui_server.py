r"""The nodes in a real ComfyUI, whose server is started without a window on the CPU.

ComfyUI is not a part of this repository, so these tests are left out unless two variables name one:

    COMFYUI=/path/to/ComfyUI COMFYUI_PYTHON=/path/to/its/python \
        pytest -m slow -n0 tests/integrations/test_comfyui_server.py

They passed with ComfyUI 0.3.64 and 0.8.0. `test_comfyui.py` tests the nodes against stand-ins everywhere.
"""

import json
import os
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

import infgen_rt

from ..rt import tiny
from ..rt.test_metadata import carried

ROOT = Path(__file__).parents[2]
COMFYUI, PYTHON = os.environ.get("COMFYUI"), os.environ.get("COMFYUI_PYTHON")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (COMFYUI and PYTHON), reason="no ComfyUI: COMFYUI and COMFYUI_PYTHON name one"),
]
WORKFLOW = {"nodes": [], "links": [], "version": 0.4}
# A diffusion model that is small enough for a test, and its conditioning.
TINY_SAMPLER = """
import comfy.model_patcher, comfy.supported_models, torch

class TinyFlux:
    RETURN_TYPES = ("MODEL", "CONDITIONING")
    FUNCTION = "make"
    CATEGORY = "test"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}}

    def make(self):
        torch.manual_seed(0)
        config = comfy.supported_models.Flux2({
            "image_model": "flux2", "in_channels": 128, "out_channels": 128, "patch_size": 1, "vec_in_dim": None,
            "context_in_dim": 64, "hidden_size": 128, "mlp_ratio": 3.0, "num_heads": 1, "depth": 1,
            "depth_single_blocks": 1, "axes_dim": [32] * 4, "theta": 2000, "qkv_bias": False, "guidance_embed": True,
            "txt_ids_dims": [3], "global_modulation": True, "mlp_silu_act": True, "ops_bias": False,
        })
        config.set_inference_dtype(torch.float32, None)
        model = config.get_model({}, "", device="cpu")
        for weights in model.parameters():
            torch.nn.init.normal_(weights, std=0.02)
        patcher = comfy.model_patcher.ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))
        return patcher, [[torch.zeros(1, 4, 64), {"pooled_output": torch.zeros(1, 768)}]]

NODE_CLASS_MAPPINGS = {"TinyFlux": TinyFlux}
"""


class Server:
    """A running ComfyUI."""

    def __init__(self, port: int, folder: Path) -> None:
        self.address, self.folder = f"http://127.0.0.1:{port}", folder

    def call(self, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self.address + path, data, {"Content-Type": "application/json"}, method="GET" if data is None else "POST"
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            content = answer.read()
        return json.loads(content) if content else None

    def start(self, graph: dict[str, Any]) -> str:
        extra = {"extra_pnginfo": {"workflow": WORKFLOW}}
        identity: str = self.call("/prompt", {"prompt": graph, "extra_data": extra})["prompt_id"]
        return identity

    def wait(self, identity: str) -> dict[str, Any]:
        for _ in range(600):
            if identity in (history := self.call(f"/history/{identity}")):
                entry: dict[str, Any] = history[identity]
                return entry
            time.sleep(0.1)
        raise AssertionError("ComfyUI did not finish")

    def run(self, graph: dict[str, Any]) -> dict[str, Any]:
        return self.wait(self.start(graph))

    @property
    def output(self) -> Path:
        return self.folder / "output"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("comfyui")
    for name in ("custom_nodes", "input", "output", "models", "page"):
        (folder / name).mkdir()
    (folder / "page/index.html").touch()
    (folder / "custom_nodes/infgen").symlink_to(ROOT / "integrations/comfyui")
    (folder / "custom_nodes/tiny_sampler.py").write_text(TINY_SAMPLER)
    latent = tiny.random_latent(8, 12).reshape(1, 32, 4, 2, 6, 2).transpose(0, 1, 3, 5, 2, 4).reshape(1, 128, 4, 6)
    arrays = {"latent_tensor": np.ascontiguousarray(latent), "latent_format_version_0": np.zeros(0, np.float32)}
    save_file(arrays, folder / "input/flux2.latent")
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    options = ["--cpu", "--listen", "127.0.0.1", "--port", str(port), "--base-directory", str(folder)]
    options += ["--front-end-root", str(folder / "page"), "--disable-api-nodes", "--preview-method", "none"]
    paths = os.pathsep.join(str(ROOT / part) for part in ("", "runtimes", "model"))
    log = (folder / "log").open("w")
    process = subprocess.Popen(
        [str(PYTHON), "main.py", *options],
        cwd=COMFYUI,
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        stdout=log,
        stderr=subprocess.STDOUT,
    )
    server = Server(port, folder)
    try:
        for _ in range(1200):
            try:
                server.call("/system_stats")
                break
            except OSError:
                assert process.poll() is None, (folder / "log").read_text()
                time.sleep(0.5)
        yield server
    finally:
        process.terminate()
        process.wait()
        log.close()


def load(bundle: Path, changed: dict[str, Any] | None = None) -> dict[str, Any]:
    inputs = {"bundle": str(bundle), "space": "auto", "backend": "onnxruntime", "precision": "exact"}
    return {"class_type": "InfGenLoad", "inputs": {**inputs, "device": "", "memory": "", **(changed or {})}}


def graph(bundle: Path, save: dict[str, Any] | None = None, changed: dict[str, Any] | None = None) -> dict[str, Any]:
    """LoadLatent, InfGen Load, then InfGen Decode with Save Image, or InfGen Save."""
    nodes = {
        "1": load(bundle, changed),
        "2": {"class_type": "LoadLatent", "inputs": {"latent": "flux2.latent"}},
    }
    decoded = {"infgen": ["1", 0], "samples": ["2", 0], "scale": 2.0, "size": ""}
    if save is None:
        nodes["3"] = {"class_type": "InfGenDecode", "inputs": decoded}
        nodes["4"] = {"class_type": "SaveImage", "inputs": {"images": ["3", 0], "filename_prefix": "decoded"}}
    else:
        inputs = decoded | {"filename_prefix": "sub/saved", "format": "png", "bits": "8"} | save
        nodes["3"] = {"class_type": "InfGenSave", "inputs": inputs}
    return nodes


def direct(bundle: Path, size: str = "2x") -> np.ndarray:
    with infgen_rt.open(bundle, "onnxruntime", precision="exact") as decoder:
        return decoder.picture(tiny.random_latent(8, 12), size, normalisation="model").read()


def messages(entry: dict[str, Any]) -> dict[str, Any]:
    return dict(entry["status"]["messages"])


def test_the_nodes_are_listed(server: Server) -> None:
    for name, title in [
        ("InfGenLoad", "InfGen Load"),
        ("InfGenDecode", "InfGen Decode"),
        ("InfGenSave", "InfGen Save"),
        ("InfGenPreview", "InfGen Preview"),
    ]:
        assert server.call(f"/object_info/{name}")[name]["display_name"] == title


def test_a_decoded_image_has_the_pixels_of_the_package(server: Server, bundle: Path) -> None:
    entry = server.run(graph(bundle))
    assert entry["status"]["status_str"] == "success", entry["status"]
    (saved,) = entry["outputs"]["4"]["images"]
    with Image.open(server.output / saved["subfolder"] / saved["filename"]) as image:
        difference = np.asarray(image).astype(int) - direct(bundle)
    # ComfyUI's Save Image cuts what is behind the point, and the package rounds.
    assert np.abs(difference).max() <= 1


@pytest.mark.parametrize("form", ["png", "tiff", "dzi"])
def test_a_saved_file_has_the_pixels_the_prompt_and_the_workflow(server: Server, bundle: Path, form: str) -> None:
    nodes = graph(bundle, {"format": form, "filename_prefix": f"sub/{form}_%width%"})
    for number in (1, 2):
        entry = server.run(nodes | {"9": load(bundle)} if number == 2 else nodes)
        if entry["status"]["status_str"] != "success":
            raise AssertionError(entry["status"])
        nodes["3"]["inputs"]["scale"] = 2.0 + number * 1e-9  # ComfyUI runs only what has changed
    path = server.output / f"sub/{form}_192_00001_.{'tif' if form == 'tiff' else form}"
    texts = carried(path)
    assert json.loads(texts["workflow"]) == WORKFLOW
    assert json.loads(texts["prompt"])["3"]["class_type"] == "InfGenSave"
    assert (server.output / f"sub/{form}_192_00002_{path.suffix}").is_file()
    (shown,) = entry["outputs"]["3"]["images"]
    assert shown["type"] == ("output" if form == "png" else "temp")
    query = "&".join(f"{key}={value}" for key, value in shown.items())
    with urllib.request.urlopen(f"{server.address}/view?{query}") as answer:
        assert answer.read(4) == b"\x89PNG"
    if form != "dzi":
        with Image.open(path) as image:
            assert np.array_equal(np.asarray(image), direct(bundle))


@pytest.mark.parametrize(
    ("save", "changed", "text"),
    [
        ({"filename_prefix": "../outside"}, {}, "leaves"),
        ({"filename_prefix": "/tmp/outside"}, {}, "leaves"),
        ({"size": "enormous"}, {}, "size 'enormous' is not understood"),
        ({"format": "dzi", "bits": "16"}, {}, "Deep Zoom does not hold 16 bits"),
        ({}, {"bundle": "/nowhere"}, "/nowhere does not exist: expected a bundle"),
        ({}, {"space": "SDXL"}, "has no model for sdxl latents"),
        ({}, {"memory": "1 banana"}, "1 banana"),
    ],
)
def test_errors_are_comfyuis_with_one_line(
    server: Server, bundle: Path, save: dict[str, Any], changed: dict[str, Any], text: str
) -> None:
    before = sorted(server.folder.rglob("*outside*"))
    entry = server.run(graph(bundle, save, changed))
    error = messages(entry)["execution_error"]
    assert text in error["exception_message"] and error["exception_message"].strip().count("\n") == 0
    assert sorted(server.folder.rglob("*outside*")) == before == []


def test_an_interrupt_leaves_nothing_and_the_next_run_works(server: Server, bundle: Path) -> None:
    save = {"filename_prefix": "big", "size": "12288x8192"}
    identity = server.start(graph(bundle, save))
    for _ in range(300):
        if list(server.output.glob(".big*")):
            break
        time.sleep(0.02)
    server.call("/interrupt", {})
    entry = server.wait(identity)
    assert "execution_interrupted" in messages(entry) and "execution_error" not in messages(entry)
    assert not [path for path in server.output.iterdir() if "big" in path.name]
    assert server.run(graph(bundle, {"filename_prefix": "after"}))["status"]["status_str"] == "success"


def test_an_empty_latent_is_decoded(server: Server, bundle: Path) -> None:
    nodes = graph(bundle)
    nodes["2"] = {"class_type": "EmptyFlux2LatentImage", "inputs": {"width": 64, "height": 32, "batch_size": 2}}
    if "EmptyFlux2LatentImage" not in server.call("/object_info"):
        pytest.skip("this ComfyUI is older than FLUX.2")
    entry = server.run(nodes)
    assert len(entry["outputs"]["4"]["images"]) == 2, entry["status"]


def test_sampling_shows_previews_and_is_otherwise_the_same(server: Server, bundle: Path) -> None:
    """A small model of the kind of FLUX.2 samples with and without the previewer."""
    if "EmptyFlux2LatentImage" not in server.call("/object_info"):
        pytest.skip("this ComfyUI is older than FLUX.2")
    sampled = []
    for name in ("plain", "shown"):
        settings = {"seed": 1, "steps": 2, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}
        model = ["4" if name == "shown" else "2", 0]
        joined = {"model": model, "positive": ["2", 1], "negative": ["2", 1], "latent_image": ["3", 0]}
        nodes = {
            "1": load(bundle),
            "2": {"class_type": "TinyFlux", "inputs": {}},
            "3": {"class_type": "EmptyFlux2LatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
            "4": {
                "class_type": "InfGenPreview",
                "inputs": {"model": ["2", 0], "infgen": ["1", 0], "longest": 64, "every": 1},
            },
            "5": {"class_type": "KSampler", "inputs": settings | joined},
            "6": {"class_type": "SaveLatent", "inputs": {"samples": ["5", 0], "filename_prefix": name}},
        }
        entry = server.run(nodes)
        assert entry["status"]["status_str"] == "success", entry["status"]
        sampled.append((server.output / f"{name}_00001_.latent").read_bytes()[-512:])
    assert sampled[0] == sampled[1] and any(sampled[0])
    assert "shows nothing" not in (server.folder / "log").read_text()
