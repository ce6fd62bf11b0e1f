"""Checkpoints: what is saved comes back, and nothing else is believed."""

import dataclasses
import json
import os
import pickle
import stat
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from infgen_model import InfGen, checkpoint
from infgen_model.checkpoint import CONFIG, WEIGHTS, CheckpointError, load_checkpoint, save_checkpoint
from infgen_model.config import OF_SPACE
from infgen_model.sharing import share
from tests.rt.test_fuzz import edits, fuzz, mutations, only_own_errors

from . import tiny


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint of the tiny edge model."""
    save_checkpoint(tmp_path / "checkpoint", tiny.model(tiny.EDGE))
    return tmp_path / "checkpoint"


@pytest.mark.parametrize("kind", tiny.CONFIGS)
def test_a_model_survives_being_saved(tmp_path: Path, kind: str) -> None:
    model = tiny.model(tiny.CONFIGS[kind])
    save_checkpoint(tmp_path / "a" / "b", model.train())
    loaded = load_checkpoint(tmp_path / "a" / "b")
    assert loaded.config == model.config and not loaded.training
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())
    latent = tiny.latent(5, 6)
    assert torch.equal(loaded(latent, (50, 70)), model.eval()(latent, (50, 70)))
    assert sorted(os.listdir(tmp_path / "a" / "b")) == [CONFIG, WEIGHTS]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such permissions")
def test_whoever_may_read_the_config_may_read_the_weights(folder: Path) -> None:
    assert len({stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()}) == 1


def test_float16_halves_the_file_and_loads_as_float32(folder: Path, tmp_path: Path) -> None:
    model = load_checkpoint(folder)
    save_checkpoint(tmp_path / "half", model, torch.float16)
    assert {value.dtype for value in load_file(tmp_path / "half" / WEIGHTS).values()} == {torch.float16}
    assert (tmp_path / "half" / WEIGHTS).stat().st_size < 0.6 * (folder / WEIGHTS).stat().st_size
    loaded = load_checkpoint(tmp_path / "half")
    assert {value.dtype for value in loaded.state_dict().values()} == {torch.float32}
    latent = tiny.latent(5, 6)
    assert torch.allclose(loaded(latent, (50, 70)), model(latent, (50, 70)), atol=0.05)


def missing(state: dict[str, Tensor]) -> None:
    del state["decode.inpe.mlp.0.weight"], state["prefill.enter.bias"]


def unknown(state: dict[str, Tensor]) -> None:
    state["decode.magic"] = torch.zeros(3)


def reshaped(state: dict[str, Tensor]) -> None:
    state["prefill.enter.bias"] = torch.zeros(9)


def not_a_number(state: dict[str, Tensor]) -> None:
    state["decode.upsampler.to_pixels.bias"][3] = torch.nan


def infinite(state: dict[str, Tensor]) -> None:
    state["encode.enter.weight"][0, 0, 0, 0] = torch.inf


BAD_TENSORS = [
    (missing, "2 tensors missing, first decode.inpe.mlp.0.weight"),
    (unknown, "1 tensors unknown, first decode.magic"),
    (reshaped, r"prefill.enter.bias has shape \[9\], expected \[8\]"),
    (not_a_number, "1 tensors hold NaN or infinity, first decode.upsampler.to_pixels.bias"),
    (infinite, "1 tensors hold NaN or infinity, first encode.enter.weight"),
]


@pytest.mark.parametrize(("change", "text"), BAD_TENSORS)
def test_tensors_that_do_not_fit_are_named(
    folder: Path, change: Callable[[dict[str, Tensor]], None], text: str
) -> None:
    state = load_file(folder / WEIGHTS)
    change(state)
    save_file(state, folder / WEIGHTS)
    with pytest.raises(CheckpointError, match=text):
        load_checkpoint(folder)


def test_all_that_is_wrong_is_told_at_once(folder: Path) -> None:
    state = load_file(folder / WEIGHTS)
    for change, _ in (BAD_TENSORS[1], BAD_TENSORS[2], BAD_TENSORS[3]):
        change(state)
    save_file(state, folder / WEIGHTS)
    with pytest.raises(CheckpointError, match=r"decode\.magic.*prefill\.enter\.bias.*to_pixels\.bias"):
        load_checkpoint(folder)


@pytest.mark.parametrize("damage", [lambda content: content[: len(content) // 2], lambda _: b"", lambda _: b"x" * 99])
def test_corrupt_weights_are_refused(folder: Path, damage: Callable[[bytes], bytes]) -> None:
    (folder / WEIGHTS).write_bytes(damage((folder / WEIGHTS).read_bytes()))
    with pytest.raises(CheckpointError, match=f"{WEIGHTS} cannot be read"):
        load_checkpoint(folder)


BAD_FIELDS = {
    "unknown": ({"depth": 3}, "unknown fields in the model config: depth"),
    "text": ({"width": "16"}, "config.width is str, expected int"),
    "fraction": ({"heads": 2.5}, "config.heads is float, expected int"),
    "null": ({"encoder": None}, "config.encoder is NoneType, expected list"),
    "level": ({"levels": [{"width": 8}]}, r"config.levels\[0\] lacks 'blocks'"),
    "pair": ({"rotary": [1.0]}, "config.rotary has 1 items, expected 2"),
    "number": ({"scale_range": ["low", 4]}, r"config.scale_range\[0\] is str, expected float"),
    "impossible": ({"heads": 0}, "heads must be 1 to 4096, not 0"),
    "infinite": ({"radius": float("inf")}, "config.radius is not finite, expected a number"),
    "not a number": ({"inpe_sigma": float("nan")}, "config.inpe_sigma is not finite, expected a number"),
    "one pooled channel": (
        {"trunk": [{"width": 1, "blocks": 1}, *[{"width": 8, "blocks": 0}] * 3], "pooled": True},
        "pooled blocks need a trunk that starts with 2 channels or more",
    ),
    "out of all bounds": ({"scale_range": [1e-320, 4.0]}, "scale_range must be two rising numbers of 0.001 to 1000"),
    "choice": ({"frame": "window"}, "frame must be one of image, cell, not 'window'"),
}


@pytest.mark.parametrize("name", BAD_FIELDS)
def test_bad_fields_of_the_config_are_named(folder: Path, name: str) -> None:
    changes, text = BAD_FIELDS[name]
    values = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(values | changes))
    with pytest.raises(CheckpointError, match=f"{CONFIG} cannot be read: .*{text}"):
        load_checkpoint(folder)


def test_a_missing_field_is_named(folder: Path) -> None:
    values = json.loads((folder / CONFIG).read_text())
    del values["blocks"]
    (folder / CONFIG).write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match="config lacks 'blocks'"):
        load_checkpoint(folder)


@pytest.mark.parametrize("content", ["", "{", "null", "5", "[1]", '"config"', "[" * 100_000])
def test_a_config_that_is_none_is_refused(folder: Path, content: str) -> None:
    (folder / CONFIG).write_text(content)
    with pytest.raises(CheckpointError, match=f"{CONFIG} cannot be read"):
        load_checkpoint(folder)


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_a_missing_or_unreadable_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=f"lacks {name}"):
        load_checkpoint(folder)
    (folder / name).mkdir()
    with pytest.raises(CheckpointError, match=f"{name} cannot be read"):
        load_checkpoint(folder)


class Bomb:
    """A pickle that leaves a mark when it is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt", ".bin"])
def test_pickles_are_refused_unopened(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"model{suffix}"
    file.write_bytes(pickle.dumps(Bomb(tmp_path / "mark")))
    with pytest.raises(CheckpointError, match=r"not a checkpoint folder .*pickles are refused"):
        load_checkpoint(file)
    assert not (tmp_path / "mark").exists()


def test_a_pickle_in_the_place_of_the_weights_is_not_opened(folder: Path, tmp_path: Path) -> None:
    (folder / WEIGHTS).write_bytes(pickle.dumps(Bomb(tmp_path / "mark")))
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_checkpoint(folder)
    assert not (tmp_path / "mark").exists()


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="none is not a checkpoint folder with config.json"):
        load_checkpoint(tmp_path / "none")


def test_a_failed_save_leaves_the_old_weights(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (folder / WEIGHTS).read_bytes()

    def full(file: Path, content: bytes) -> None:
        with file.open("wb") as opened:
            opened.write(content[:100])
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(CheckpointError, match="cannot be written: No space"):
        save_checkpoint(folder, tiny.model(tiny.EDGE, seed=1))
    assert (folder / WEIGHTS).read_bytes() == before


def test_changed_checkpoints_are_read_or_refused(folder: Path) -> None:
    """Fuzzing, as in `tests/rt/test_fuzz.py`: of the config, and of the header and the numbers of the weights."""
    config, weights = (folder / CONFIG).read_text(), (folder / WEIGHTS).read_bytes()
    length = int.from_bytes(weights[:8], "little")
    header, numbers = weights[8 : 8 + length].decode(), weights[8 + length :]

    def body(parts: tuple[Any, Any], changed: bytes | None) -> None:
        described, tensors = parts
        text = json.dumps(tensors).encode()
        (folder / CONFIG).write_text(json.dumps(described))
        whole = struct.pack("<Q", len(text)) + text + numbers
        (folder / WEIGHTS).write_bytes(whole if changed is None else changed)
        with only_own_errors():
            load_checkpoint(folder)

    kept = st.just(json.loads(config)), st.just(json.loads(header))
    fuzz(
        body,
        15,
        parts=st.tuples(edits([config]), kept[1]) | st.tuples(kept[0], edits([header])),
        changed=st.none() | mutations({"weights": weights}),
    )


# A checkpoint with a base.


@pytest.fixture
def with_base(tmp_path: Path) -> InfGen:
    """A model of another latent space, saved beside its base."""
    base = tiny.model(tiny.EDGE)
    own = dataclasses.replace(tiny.EDGE, name="tiny-sdxl", latent_space="sdxl", latent_channels=4, pooled=False)
    model = tiny.model(own, seed=1)
    share(base, model)
    save_checkpoint(tmp_path / "flux2", base)
    save_checkpoint(tmp_path / "runs" / "sdxl", model, base=tmp_path / "flux2")
    return model


def test_a_checkpoint_with_a_base_is_small_and_the_whole_model(with_base: InfGen, tmp_path: Path) -> None:
    found = load_checkpoint(tmp_path / "runs" / "sdxl")
    assert found.config == with_base.config
    assert all(value.equal(with_base.state_dict()[name]) for name, value in found.state_dict().items())
    stored = load_file(tmp_path / "runs" / "sdxl" / "model.safetensors")
    assert stored.keys() == {name for name in found.state_dict() if name.startswith(OF_SPACE)}
    # Both may be moved together.
    (tmp_path / "runs" / "sdxl").rename(tmp_path / "runs" / "moved")
    (tmp_path / "other").mkdir()
    for folder in ("flux2", "runs"):
        (tmp_path / folder).rename(tmp_path / "other" / folder)
    load_checkpoint(tmp_path / "other" / "runs" / "moved")


def test_a_base_that_cannot_be_one_is_refused(with_base: InfGen, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "stranger", tiny.model(tiny.EDGE, seed=5))
    with pytest.raises(CheckpointError, match="stranger is no base of this model"):
        save_checkpoint(tmp_path / "new", with_base, base=tmp_path / "stranger")
    assert not (tmp_path / "new").exists()
    # Written over its base, a model would take away what all others have of it.
    before = (tmp_path / "flux2" / "model.safetensors").read_bytes()
    with pytest.raises(CheckpointError, match="flux2 is the base itself"):
        save_checkpoint(tmp_path / "runs" / ".." / "flux2", with_base, base=tmp_path / "flux2")
    assert (tmp_path / "flux2" / "model.safetensors").read_bytes() == before
    config = tmp_path / "runs" / "sdxl" / "config.json"
    for base, text in {
        ".": "has a base itself",
        "../missing": "missing is not a checkpoint folder",
        3: "base must be a path, not 3",
    }.items():
        config.write_text(json.dumps(json.loads(config.read_text()) | {"base": base}))
        with pytest.raises(CheckpointError, match=text):
            load_checkpoint(config.parent)


def test_weights_that_cannot_be_written_leave_the_old_checkpoint(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also its config, which would not fit the old weights."""
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    model = load_checkpoint(folder)
    other = InfGen(dataclasses.replace(model.config, name="another"))

    def full(*_: object) -> None:
        raise SafetensorError("I/O error: File too large")

    monkeypatch.setattr(checkpoint, "save", full)
    with pytest.raises(CheckpointError, match="cannot be written: I/O error: File too large"):
        save_checkpoint(folder, other)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_weights_that_are_not_finite_are_not_written(folder: Path, tmp_path: Path) -> None:
    model = load_checkpoint(folder)
    with torch.no_grad():
        next(model.parameters()).fill_(torch.inf)
    with pytest.raises(CheckpointError, match="is not written: 1 tensors hold NaN or infinity, first "):
        save_checkpoint(tmp_path / "made", model)
    assert not (tmp_path / "made").exists()
