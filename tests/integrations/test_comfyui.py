"""The nodes for ComfyUI, against stand-ins for its published interfaces (`comfyui.py`), because CI has no ComfyUI.

`test_comfyui_server.py` tests the same nodes in a real one where there is one.
"""

import asyncio
import gc
import json
import math
import threading
import tomllib
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import infgen_rt
from infgen_rt.errors import BackendError, BundleError, LatentError, OutputError, PlanError
from infgen_rt.spaces import latent_space, latent_spaces

from ..rt import tiny
from ..rt.test_metadata import carried
from .comfyui import FOLDER, Host, InterruptProcessingException, Sampled, installed

PROMPT, WORKFLOW = {"3": {"class_type": "InfGenSave"}}, {"nodes": [], "links": []}
PLAIN = tiny.random_latent(8, 12)


def patchified(latent: np.ndarray) -> torch.Tensor:
    """As ComfyUI has FLUX.2's latents: [128, h/2, w/2] for [32, h, w]."""
    channels, height, width = latent.shape
    squares = latent.reshape(channels, height // 2, 2, width // 2, 2).transpose(0, 2, 4, 1, 3)
    return torch.from_numpy(squares.reshape(4 * channels, height // 2, width // 2).copy())


LATENT = {"samples": patchified(PLAIN)[None]}


@pytest.fixture
def host(tmp_path: Path) -> Host:
    for name in ("output", "temp"):
        (tmp_path / name).mkdir()
    return Host(tmp_path)


@pytest.fixture
def comfyui(host: Host) -> Iterator[ModuleType]:
    with installed(host) as module:
        yield module


@pytest.fixture
def model(comfyui: ModuleType, bundle: Path) -> Any:
    return load(comfyui, bundle)


def load(comfyui: ModuleType, bundle: Path | str, **changed: str) -> Any:
    options = {"space": "auto", "backend": "onnxruntime", "precision": "exact", "device": "", "memory": ""}
    (model,) = comfyui.nodes.InfGenLoad.execute(bundle=str(bundle), **options | changed).args
    return model


def decode(
    comfyui: ModuleType, model: Any, latent: Any = LATENT, scale: float = 2.0, size: str = "", **options: Any
) -> torch.Tensor:
    (image,) = comfyui.nodes.InfGenDecode.execute(infgen=model, samples=latent, scale=scale, size=size, **options).args
    return image


def save(comfyui: ModuleType, model: Any, latent: Any = LATENT, **changed: Any) -> Any:
    node = comfyui.nodes.InfGenSave
    node.hidden = SimpleNamespace(prompt=PROMPT, extra_pnginfo={"workflow": WORKFLOW})
    options = {"filename_prefix": "sub/saved", "scale": 2.0, "size": "", "format": "png", "bits": "8"}
    return node.execute(infgen=model, samples=latent, **options | changed)


def direct(bundle: Path, latent: np.ndarray = PLAIN, size: Any = "2x", dtype: Any = np.uint8) -> np.ndarray:
    with infgen_rt.open(bundle, "onnxruntime", precision="exact") as decoder:
        return decoder.picture(latent, size, normalisation="model").read(dtype=dtype)


def test_the_extension_has_the_nodes_and_each_input_is_an_argument(comfyui: ModuleType) -> None:
    nodes = asyncio.run(asyncio.run(comfyui.comfy_entrypoint()).get_node_list())
    schemas = [node.define_schema() for node in nodes]
    assert [schema.display_name for schema in schemas] == [
        "InfGen Load",
        "InfGen Decode",
        "InfGen Save",
        "InfGen Preview",
    ]
    for node, schema in zip(nodes, schemas, strict=True):
        names = node.execute.__func__.__code__.co_varnames[1 : node.execute.__func__.__code__.co_argcount]
        assert [each.id for each in schema.inputs] == list(names)


@pytest.mark.parametrize("node", ["decode", "save"])
def test_pictures_of_a_batch_that_are_done_do_not_stay_in_memory(
    comfyui: ModuleType, model: Any, host: Host, monkeypatch: pytest.MonkeyPatch, node: str
) -> None:
    alive = list[int]()
    pictures = list[weakref.ref[infgen_rt.Picture]]()
    plan = infgen_rt.Decoder.pictures

    def planned(*arguments: Any, **options: Any) -> list[infgen_rt.Picture]:
        made = plan(*arguments, **options)
        pictures.extend(map(weakref.ref, made))
        return made

    def counted(real: Any) -> Any:
        def called(*arguments: Any, **options: Any) -> Any:
            gc.collect()
            alive.append(sum(each() is not None for each in pictures))
            return real(*arguments, **options)

        return called

    monkeypatch.setattr(infgen_rt.Decoder, "pictures", planned)
    for name in ("read", "save"):
        monkeypatch.setattr(infgen_rt.Picture, name, counted(getattr(infgen_rt.Picture, name)))
    latent = {"samples": torch.stack([patchified(tiny.random_latent(8, 12, seed)) for seed in range(3)])}
    (decode if node == "decode" else save)(comfyui, model, latent)
    assert alive[0] == 3 and alive[-1] == 1


def test_one_stage_is_chosen_by_an_input(comfyui: ModuleType, model: Any, bundle: Path, host: Host) -> None:
    with infgen_rt.open(bundle, "onnxruntime", precision="exact") as decoder:
        for stages, largest in (("auto", None), ("one", math.inf)):
            (image,) = decode(comfyui, model, scale=6.0, stages=stages)
            expected = decoder.picture(PLAIN, "6x", max_scale=largest, normalisation="model").read(dtype=np.float32)
            assert np.abs(image.numpy() - expected).max() < 1e-4


def test_decode_gives_comfyuis_image_with_the_pixels_of_the_package(
    comfyui: ModuleType, model: Any, bundle: Path, host: Host
) -> None:
    other = tiny.random_latent(8, 12, seed=1)
    image = decode(comfyui, model, {"samples": torch.stack([patchified(PLAIN), patchified(other)])})
    assert image.shape == (2, 128, 192, 3) and image.dtype == torch.float32
    for found, latent in zip(image, (PLAIN, other), strict=True):
        assert np.array_equal(found.numpy(), direct(bundle, latent, dtype=np.float32))
    done, totals = [step[0] for step in host.steps], {step[1] for step in host.steps}
    assert done == sorted(done) and totals == {done[-1]}


@pytest.mark.parametrize(("scale", "size", "expected"), [(1.0, "", (64, 96)), (1.0, " x160 ", (160, 240))])
def test_a_size_replaces_the_scale(
    comfyui: ModuleType, model: Any, scale: float, size: str, expected: tuple[int, int]
) -> None:
    assert decode(comfyui, model, scale=scale, size=size).shape[1:3] == expected


def test_latents_of_other_spaces_are_the_vaes_own(comfyui: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """ComfyUI's numbers are unscaled, except for FLUX.2. Inside of samplers they are always the model's."""
    given: dict[str, Any] = {}

    class Decoder:
        def pictures(self, samples: Any, size: Any, **options: Any) -> list[Any]:
            given.update(options)
            return []

    for name, space in comfyui.decoders.SPACES.items():
        model = comfyui.decoders.Model(space=space)
        model._opened[space] = Decoder()
        samples = {"samples": torch.zeros(1, latent_space(space).channels, 8, 8)}
        model.pictures(samples, 1.0)
        assert given["normalisation"] == ("model" if name == "Flux2" else "vae"), name
        model.pictures(samples, 1.0, scaled=True)
        assert given["normalisation"] == "model", name
    assert set(comfyui.decoders.SPACES.values()) == set(latent_spaces())


def test_the_space_is_told_by_the_channels_or_asked_for(comfyui: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    spaces = ("sd15", "sdxl", "flux1", "flux2")
    monkeypatch.setattr(comfyui.decoders.Model, "spaces", property(lambda self: spaces))
    model = comfyui.decoders.Model()
    assert model._space_of(torch.zeros(1, 16, 8, 8)) == "flux1"
    assert model._space_of(torch.zeros(1, 128, 4, 4)) == "flux2"
    with pytest.raises(
        LatentError, match="may be of sd15 or sdxl.*choose it in the input 'space' of the node InfGen Load$"
    ):
        model._space_of(torch.zeros(1, 4, 8, 8))


@pytest.mark.parametrize(("form", "bits"), [("png", "8"), ("png", "16"), ("tiff", "8"), ("tiff", "16"), ("dzi", "8")])
def test_save_writes_the_pixels_the_prompt_and_the_workflow(
    comfyui: ModuleType, model: Any, bundle: Path, host: Host, form: str, bits: str
) -> None:
    result = save(comfyui, model, filename_prefix="sub/%width%", format=form, bits=bits)
    path = host.output / f"sub/192_00001_.{'tif' if form == 'tiff' else form}"
    assert result.args == (str(path),)
    assert {key: json.loads(text) for key, text in carried(path).items()} == {"prompt": PROMPT, "workflow": WORKFLOW}
    (shown,) = result.ui["images"]
    assert shown["type"] == ("output" if form == "png" else "temp")
    with Image.open(host.folder / shown["type"] / shown["subfolder"] / shown["filename"]) as image:
        assert image.size == (192, 128) and image.format == "PNG"
    if (form, bits) in (("png", "8"), ("tiff", "8")):
        with Image.open(path) as image:
            assert np.array_equal(np.asarray(image), direct(bundle))
    assert save(comfyui, model, filename_prefix="sub/%width%", format=form).args[0].endswith(f"_00002_{path.suffix}")


def test_a_batch_is_numbered(comfyui: ModuleType, model: Any, host: Host) -> None:
    latents = {"samples": torch.cat([LATENT["samples"]] * 2)}
    (paths,) = save(comfyui, model, latents, filename_prefix="%batch_num%").args
    assert [Path(path).name for path in paths.split("\n")] == ["0_00001_.png", "1_00002_.png"]
    assert all(Path(path).is_file() for path in paths.split("\n"))
    # The numbers go on, although ComfyUI does not find these files.
    (paths,) = save(comfyui, model, latents, filename_prefix="%batch_num%").args
    assert [Path(path).name for path in paths.split("\n")] == ["0_00003_.png", "1_00004_.png"]


@pytest.mark.parametrize("prefix", ["photos/", "a//b/", "", "./plain"])
def test_every_prefix_is_numbered_on(comfyui: ModuleType, model: Any, host: Host, prefix: str) -> None:
    paths = [save(comfyui, model, filename_prefix=prefix).args[0] for _ in range(2)]
    assert [path[-11:] for path in paths] == ["_00001_.png", "_00002_.png"]


def test_no_metadata_is_written_if_comfyui_is_told_so(comfyui: ModuleType, model: Any, host: Host) -> None:
    host.args.disable_metadata = True
    (path,) = save(comfyui, model).args
    assert carried(Path(path)) == {}


def test_metadata_that_cannot_be_written_is_left_out(comfyui: ModuleType, caplog: pytest.LogCaptureFixture) -> None:
    extra = {"workflow": WORKFLOW, "日本": 1, "huge": "x" * 5_000_000}
    texts = comfyui.outputs.metadata_of(PROMPT, extra)
    assert list(texts) == ["prompt", "workflow"] and caplog.text.count("leaves out a part") == 2


@pytest.mark.parametrize("prefix", ["../outside", "/outside", "a/../../outside", "sub/../../output2/a"])
def test_save_refuses_to_leave_the_output_folder(comfyui: ModuleType, model: Any, host: Host, prefix: str) -> None:
    with pytest.raises(OutputError, match="^filename_prefix .* leaves .*output"):
        save(comfyui, model, filename_prefix=prefix)
    assert sorted(path.name for path in host.folder.iterdir()) == ["output", "temp"] and not list(host.output.iterdir())


def test_bad_input_is_one_line_before_anything_is_decoded(comfyui: ModuleType, model: Any, host: Host) -> None:
    for error, text, wrong in [
        (BundleError, "does not exist", lambda: load(comfyui, "/nowhere")),
        (BackendError, "backend 'none' is unknown", lambda: load(comfyui, model.path, backend="none")),
        (BundleError, "has no model for sdxl latents", lambda: load(comfyui, model.path, space="SDXL")),
        (PlanError, "size 'huge' is not understood", lambda: decode(comfyui, model, size="huge")),
        (LatentError, r"shape \[1, 4, 8, 8\]", lambda: decode(comfyui, model, {"samples": torch.zeros(1, 4, 8, 8)})),
        (LatentError, "several tensors", lambda: decode(comfyui, model, {"samples": SimpleNamespace(is_nested=True)})),
        (OutputError, "Deep Zoom does not hold 16 bits", lambda: save(comfyui, model, format="dzi", bits="16")),
        (OutputError, "cannot be a file's name", lambda: save(comfyui, model, filename_prefix="a\0b")),
    ]:
        with pytest.raises(error, match=text) as raised:
            wrong()
        assert "\n" not in str(raised.value)
    assert not host.steps and not [path for path in host.output.rglob("*") if path.is_file()]


@pytest.mark.parametrize("form", ["png", "dzi"])
def test_comfyuis_interrupt_stops_the_work_and_leaves_nothing(
    comfyui: ModuleType, model: Any, host: Host, form: str
) -> None:
    host.interrupt_at = 3
    with pytest.raises(InterruptProcessingException):
        save(comfyui, model, format=form, size="1536x1024", filename_prefix="stopped")
    assert not list(host.output.iterdir())
    host.interrupt_at = len(host.steps) + 2
    with pytest.raises(InterruptProcessingException):
        decode(comfyui, model, scale=16.0)
    assert save(comfyui, model).args  # the next run works


def test_the_model_is_opened_once_for_all_threads(comfyui: ModuleType, model: Any) -> None:
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(model.decoder("flux2"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(decoder) for decoder in found}) == 1


def test_samplers_show_previews_and_return_what_they_returned(
    comfyui: ModuleType, model: Any, bundle: Path, host: Host, caplog: pytest.LogCaptureFixture
) -> None:
    diffusion = Sampled("Flux2")
    (wrapped,) = comfyui.nodes.InfGenPreview.execute(model=diffusion, infgen=model, longest=48, every=2).args
    assert not diffusion.wrappers and [kind for kind, _ in wrapped.wrappers] == ["outer_sample"]
    latents, told = [LATENT["samples"] * scale for scale in (9.0, 1.0, 1.0, 0.9)], []
    assert wrapped.sample(latents, lambda step, *rest: told.append(step)) is latents[-1]
    assert told == [0, 1, 2, 3]
    # The first step's numbers are no latent's, so only the third and the last are shown.
    assert [step[:2] for step in host.steps] == [(3, 4), (4, 4)]
    assert "shows nothing for step 1" in caplog.text
    kind, image, longest = host.steps[0][2]
    assert (kind, image.size, longest) == ("JPEG", (48, 32), 48)
    with infgen_rt.open(bundle, "onnxruntime", precision="exact") as decoder:
        expected = decoder.picture(PLAIN, "1x", normalisation="model").preview(48)
    assert np.array_equal(np.asarray(image), expected)


def test_the_folder_has_what_the_registry_needs() -> None:
    project = tomllib.loads((FOLDER / "pyproject.toml").read_text(encoding="utf-8"))
    comfy = project["tool"]["comfy"]
    assert comfy["PublisherId"] == ""  # who publishes fills it in
    assert comfy["DisplayName"] and len(project["project"]["version"].split(".")) == 3
    assert "comfyui" not in project["project"]["name"].lower()
    requirements = (FOLDER / "requirements.txt").read_text(encoding="utf-8").split()
    assert project["project"]["dependencies"] == requirements
    license_file = FOLDER / project["project"]["license"]["file"]
    assert license_file.read_bytes() == (FOLDER.parents[1] / "LICENSE").read_bytes()
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert all(f"`{field}`" in readme for field in ("PublisherId", "Repository", "Icon", "version", "name"))


def test_the_example_workflow_uses_the_nodes_as_they_are(comfyui: ModuleType) -> None:
    nodes = asyncio.run(asyncio.run(comfyui.comfy_entrypoint()).get_node_list())
    schemas = {schema.node_id: schema for schema in (node.define_schema() for node in nodes)}
    (path,) = (FOLDER / "example_workflows").glob("*.json")
    workflow = json.loads(path.read_text(encoding="utf-8"))
    own = [node for node in workflow["nodes"] if node["type"].startswith("InfGen")]
    assert {node["type"] for node in own} == {"InfGenLoad", "InfGenDecode", "InfGenSave"}
    for node in own:
        widgets = [each for each in schemas[node["type"]].inputs if "default" in each.options]
        assert len(node["widgets_values"]) == len(widgets)
        for value, each in zip(node["widgets_values"], widgets, strict=True):
            assert value in each.options.get("options", [value]) and type(value) is type(each.options["default"])
