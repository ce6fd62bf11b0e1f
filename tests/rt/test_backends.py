"""How a backend is found and chosen, and what is said of one that cannot be used."""

import dataclasses
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import EntryPoint
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

import numpy as np
import pytest

import infgen_rt
from infgen_rt.backend import candidates, measuring, others, protocol
from infgen_rt.backend.candidates import Candidate, Survey
from infgen_rt.backend.choice import choose
from infgen_rt.backend.engine import IDLE
from infgen_rt.backend.measuring import Speed
from infgen_rt.backend.protocol import Device, Options, Session, require_version
from infgen_rt.backend.report import describe_devices
from infgen_rt.bundle.folder import Bundle
from infgen_rt.bundle.manifest import Enlargement, Manifest, Recipe
from infgen_rt.cli.main import main
from infgen_rt.common.folders import cache_folder
from infgen_rt.errors import BackendError, InfGenWarning

from . import tiny


class Beads:
    """A third party's backend for graphs that no bundle here has."""

    name, target, version = "beads", "beads", "1"

    def devices(self) -> Sequence[Device]:
        return [Device("abacus", "Abacus")]

    def arithmetics(self, device: str, recipe: Recipe) -> Sequence[str]:
        return ["fp32"]


class Other(Beads):
    """A third party's backend for ONNX graphs, with two devices, one of which is broken, and a low precision."""

    name, target = "other", "onnx"

    def devices(self) -> Sequence[Device]:
        return [Device("cpu", "Other CPU"), Device("gpu:0", "Other GPU", "no driver: install one")]

    def arithmetics(self, device: str, recipe: Recipe) -> Sequence[str]:
        return ["fp32", "bf16"]

    def load(self, graph: str, files: Mapping[str, bytes], options: Options) -> Session:
        from infgen_runtimes.onnxruntime import Backend

        return Backend().load(graph, files, Options())


class Apple(Beads):
    """Core ML on a system that does not have it."""

    name, target = "coreml", "coreml"

    def devices(self) -> Sequence[Device]:
        return [Device("ane", "Neural Engine", "Core ML exists on macOS only")]


class Broken(Other):
    """One that loads nothing."""

    name = "broken"

    def load(self, graph: str, files: Mapping[str, bytes], options: Options) -> Session:
        raise BackendError("the driver is of another planet")


class Exploding(Other):
    """A library that is half installed."""

    def __init__(self) -> None:
        raise RuntimeError("libother.so: undefined symbol\nand more")


PARTS = ("choice", "report")


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, EntryPoint]:
    """The table of backends, open to change, and an empty cache folder."""
    table: dict[str, EntryPoint] = {}
    for module in (protocol, candidates, others, *(sys.modules[f"infgen_rt.backend.{name}"] for name in PARTS)):
        monkeypatch.setattr(module, "installed_backends", lambda: table)
    monkeypatch.setenv("INFGEN_RT_CACHE", str(tmp_path / "cache"))
    return table


@pytest.fixture
def several(installed: dict[str, EntryPoint]) -> dict[str, EntryPoint]:
    """ONNX Runtime and another."""
    installed["onnxruntime"] = entry("onnxruntime", "infgen_runtimes.onnxruntime:Backend")
    installed["other"] = entry("other", f"{__name__}:Other")
    return installed


Timed = Callable[..., list[str]]


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> Timed:
    """Decides what every candidate's measurement gives, and lists which were measured."""

    def set_up(
        seconds: dict[str, float], wrong: tuple[str, ...] = (), contexts: Mapping[str, float] = MappingProxyType({})
    ) -> list[str]:
        asked: list[str] = []

        def run(bundle: Bundle, candidate: Candidate, threads: int | None) -> tuple[np.ndarray, Speed]:
            name = f"{candidate.backend.name} {candidate.arithmetic}"
            asked.append(name)
            if name not in seconds:
                raise BackendError(f"{name} does not start")
            speed = Speed(seconds[name], contexts.get(name, 1.0), 2.0)
            return np.full((3, 8, 8), 0.9 if name in wrong else 0.5, np.float32), speed

        monkeypatch.setattr(measuring, "_run", run)
        return asked

    return set_up


def entry(name: str, value: str) -> EntryPoint:
    return EntryPoint(name, value, protocol.GROUP)


# Found or not.


def test_this_projects_backends_announce_themselves(decoder: infgen_rt.Decoder) -> None:
    assert list(protocol.installed_backends())[:4] == ["onnxruntime", "openvino", "coreml", "torch"]
    found = decoder.backend
    assert (found.name, found.device, found.recipe, found.arithmetic) == ("onnxruntime", "cpu", "onnx-fp32", "fp32")
    assert found.reason == "the only one that suits"


def test_unknown_backends_are_refused_and_not_replaced(bundle: Path) -> None:
    with pytest.raises(BackendError, match="'abacus' is unknown: known are auto, cuda, onnxruntime, "):
        infgen_rt.open(bundle, "abacus")


def test_cuda_never_falls_back(bundle: Path) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has CUDA")
    for options in ({"backend": "cuda"}, {"backend": "onnxruntime", "device": "cuda"}):
        with pytest.raises(BackendError, match=r'cannot use cuda:0: .*pip install "infgen-rt\[cuda\]"'):
            infgen_rt.open(bundle, **options)


def test_both_builds_of_onnx_runtime_are_diagnosed(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from infgen_runtimes import onnxruntime

    monkeypatch.setattr(onnxruntime, "installed", lambda names: names[:2])
    monkeypatch.setattr(onnxruntime.ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(BackendError, match="both installed and overwrite each other: pip uninstall"):
        infgen_rt.open(bundle, "cuda")


def test_a_provider_that_cannot_start_is_an_error(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime drops such a provider with a line on the terminal, and goes on on the CPU."""
    from infgen_runtimes import onnxruntime

    monkeypatch.setattr(
        onnxruntime.ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    )
    with pytest.raises(BackendError, match="cuda:0"), pytest.warns(UserWarning, match="CUDAExecutionProvider"):
        infgen_rt.open(bundle, "cuda")


@pytest.mark.parametrize("name", ["onnxruntime", "auto"])
def test_a_backend_whose_library_is_missing_says_what_to_install(bundle: Path, installed: dict, name: str) -> None:
    installed["onnxruntime"] = entry("onnxruntime", "no_such_library:Backend")
    with pytest.raises(BackendError, match=r'not installed .*pip install "infgen-rt\[cpu\]"'):
        infgen_rt.open(bundle, name)


def test_a_half_installed_backend_is_one_line_and_auto_goes_on(bundle: Path, several: dict) -> None:
    several["other"] = entry("other", f"{__name__}:Exploding")
    with pytest.raises(BackendError, match=r"'other' is broken \(libother.so: undefined symbol and more\)"):
        infgen_rt.open(bundle, "other")
    with pytest.warns(InfGenWarning, match="'other' is broken"), infgen_rt.open(bundle) as decoder:
        assert decoder.backend.name == "onnxruntime"


def test_libraries_that_are_older_than_the_metadata_say_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    requirements = [
        "numpy>=1",
        "thing-gpu>=9",
        "thing>=1.100; extra == 'export'",
        "thing>=1.20; extra == 'cpu'",
        "whole >=9.0",
    ]
    monkeypatch.setattr("importlib.metadata.requires", lambda name: requirements)
    for version in ("1.20", "1.20.0rc1", "1.100.3+cpu", "2", "2.0.0-21000-abc.9"):
        require_version("thing", version)
    require_version("whole", "9.1")
    require_version("unlisted", "0")
    with pytest.raises(BackendError, match="thing 1.19.2 is too old: expected 1.20 or newer"):
        require_version("thing", "1.19.2")


@pytest.mark.parametrize("name", ["onnxruntime", "openvino", "coremltools", "torch"])
def test_every_backends_library_has_a_lowest_version(name: str) -> None:
    with pytest.raises(BackendError, match=f"{name} 0.1 is too old"):
        require_version(name, "0.1")


def test_a_bundle_without_the_backends_graphs_says_what_makes_them(bundle: Path, installed: dict) -> None:
    installed["beads"] = entry("beads", f"{__name__}:Beads")
    with pytest.raises(
        BackendError, match="needs graphs for 'beads', the bundle 'tiny' has onnx: .*infgen-export .*beads"
    ):
        infgen_rt.open(bundle, "beads")


def test_an_installation_without_backends_says_what_to_install(bundle: Path, installed: dict) -> None:
    assert not installed
    with pytest.raises(BackendError, match=r'no backend here runs .*pip install "infgen-rt\[cpu\]"'):
        infgen_rt.open(bundle)


def test_another_backend_is_only_advised_if_the_bundle_has_graphs_for_one(
    bundle: Path, several: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    several["coreml"] = entry("coreml", f"{__name__}:Apple")
    monkeypatch.setattr(sys, "platform", "linux")
    only = "cannot use ane: Core ML exists on macOS only"
    with pytest.raises(BackendError, match=f"{only}: pass another backend \\(--backend\\): onnxruntime, other$"):
        infgen_rt.open(bundle, "coreml")
    assert "Core ML exists on macOS only" in [fact.problem for fact in describe_devices(Bundle.open(bundle))]
    manifest = Bundle.open(bundle).manifest
    recipes = tuple(dataclasses.replace(recipe, target="coreml") for recipe in manifest.recipes)
    del several["other"]  # it may run anything, because nothing is known about it
    with pytest.raises(BackendError, match=f"{only}: pass a bundle with graphs for another backend"):
        Survey.of(dataclasses.replace(manifest, recipes=recipes), "coreml")


def test_a_third_partys_backend_is_used(bundle: Path, several: dict) -> None:
    with infgen_rt.open(bundle, "other", precision="exact") as decoder:
        assert decoder.backend.device_name == "Other CPU"
        assert decoder.picture(tiny.random_latent(4, 4)).read().shape == (32, 32, 3)


def test_a_named_device_is_used_or_refused(bundle: Path, several: dict) -> None:
    with pytest.raises(BackendError, match="cannot use gpu:0: no driver: install one"):
        infgen_rt.open(bundle, "other", device="gpu")
    with pytest.raises(BackendError, match="knows no device 'gpu:1': here it has cpu, gpu:0"):
        infgen_rt.open(bundle, "other", device="gpu:1")
    with infgen_rt.open(bundle, "other", device="CPU", precision="exact") as decoder:
        assert decoder.backend.device == "cpu"


# Chosen.


def test_auto_takes_the_fastest_and_says_why(bundle: Path, several: dict, timed: Timed) -> None:
    asked = timed({"onnxruntime fp32": 0.5, "other fp32": 0.4, "other bf16": 0.3})
    opened = Bundle.open(bundle)
    candidate, chosen = choose(opened)
    assert (candidate.backend.name, candidate.arithmetic) == ("other", "bf16")
    assert (chosen.speed, chosen.reason) == (Speed(0.3, 1.0, 2.0), "fastest of 3 measured")
    assert str(chosen) == "other on Other CPU, bf16, 200 dB against float32 (fastest of 3 measured)"
    assert choose(opened, precision="exact")[1].speed == Speed(0.4, 1.0, 2.0)
    assert choose(opened, "other", precision="fast")[0].arithmetic == "bf16"
    assert asked.count("onnxruntime fp32") == 1


def test_the_fastest_is_who_has_a_picture_of_twice_the_size_first(bundle: Path, several: dict, timed: Timed) -> None:
    """Most of the work may be in the context rather than in the tiles."""
    slow = {"onnxruntime fp32": 0.9, "other fp32": 0.95}
    timed({"onnxruntime fp32": 0.5, "other fp32": 0.4, "other bf16": 0.6}, contexts=slow | {"other bf16": 0.8})
    opened = Bundle.open(bundle)
    assert choose(opened)[0].arithmetic == "bf16"
    # 0.9 + 0.5 / 4 against 0.95 + 0.4 / 4.
    assert choose(opened, precision="exact")[0].backend.name == "onnxruntime"
    facts = [(fact.backend, fact.arithmetic) for fact in describe_devices(opened) if fact.speed]
    assert facts == [("other", "bf16"), ("onnxruntime", "fp32"), ("other", "fp32")]


def test_what_was_measured_is_remembered_until_something_changes(
    bundle: Path, several: dict, timed: Timed, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Bundle.open(bundle)
    asked = timed({"onnxruntime fp32": 0.5, "other fp32": 0.4, "other bf16": 0.3})
    choose(opened)
    assert len(asked) == 3
    choose(opened)
    choose(opened, precision="exact")
    assert len(asked) == 3
    choose(opened, threads=1)
    assert len(asked) == 6
    monkeypatch.setattr(measuring.metadata, "version", lambda name: "9.9")
    choose(opened)
    assert len(asked) == 9


def test_a_device_that_went_away_is_measured_anew(bundle: Path, several: dict, timed: Timed) -> None:
    timed({"onnxruntime fp32": 0.5, "other fp32": 0.4, "other bf16": 0.3})
    opened = Bundle.open(bundle)
    choose(opened)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Other, "devices", lambda self: [Device("cpu", "Other CPU", "unplugged")])
        assert choose(opened)[0].backend.name == "onnxruntime"
    with pytest.raises(BackendError, match="cannot use cpu: unplugged"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(Other, "devices", lambda self: [Device("cpu", "Other CPU", "unplugged")])
        choose(opened, "other")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"a": 1}', "null"])
def test_damaged_measurements_are_made_anew(
    bundle: Path, several: dict, timed: Timed, tmp_path: Path, content: str
) -> None:
    file = tmp_path / "cache" / "infgen-rt" / measuring.FILE
    file.parent.mkdir(parents=True)
    opened = Bundle.open(bundle)
    key = measuring.key(opened, None)
    file.write_text(content.replace('"a"', json.dumps(key)))
    asked = timed({"onnxruntime fp32": 0.1, "other fp32": 0.4, "other bf16": 0.3})
    for _ in range(2):
        assert choose(opened)[0].backend.name == "onnxruntime"
    assert len(asked) == 3 and key in json.loads(file.read_text())


def test_a_folder_that_cannot_be_written_in_is_a_warning(
    bundle: Path, several: dict, timed: Timed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("INFGEN_RT_CACHE", str(tmp_path / "file" / "cache"))
    timed({"onnxruntime fp32": 0.1, "other fp32": 0.4, "other bf16": 0.3})
    with pytest.warns(InfGenWarning, match="measurements cannot be kept"):
        assert choose(Bundle.open(bundle))[0].backend.name == "onnxruntime"
    with infgen_rt.open(bundle, "onnxruntime") as decoder:
        assert decoder.picture(tiny.random_latent(4, 4)).read().shape == (32, 32, 3)


def test_what_does_not_start_or_is_wrong_is_left_out_with_a_line(bundle: Path, several: dict, timed: Timed) -> None:
    timed({"onnxruntime fp32": 0.5, "other fp32": 0.1}, wrong=("other fp32",))
    with pytest.warns(InfGenWarning) as caught:
        assert choose(Bundle.open(bundle))[0].backend.name == "onnxruntime"
    lines = [str(each.message) for each in caught]
    assert any("other on cpu, onnx-fp32 in bf16 is left out: other bf16 does not start" in line for line in lines)
    assert any("in fp32 is left out: its picture has 8 dB, 60 are needed" in line for line in lines)


def test_what_did_not_start_is_told_again_when_the_measurements_are_used(
    bundle: Path, several: dict, timed: Timed
) -> None:
    timed({"onnxruntime fp32": 0.5, "other fp32": 0.1}, wrong=("other fp32",))
    opened = Bundle.open(bundle)
    with pytest.warns(InfGenWarning):
        choose(opened)
    with pytest.warns(InfGenWarning) as caught:
        choose(opened)
    (line,) = (str(each.message) for each in caught)  # and not that the picture of the other way is not good enough
    assert line.endswith("other bf16 does not start; infgen-rt devices --measure tries it again")


def test_a_backend_that_auto_left_out_is_measured_when_it_takes_part(
    bundle: Path, several: dict, timed: Timed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As PyTorch does in a process that has imported it already."""
    asked, opened = timed({"onnxruntime fp32": 0.5, "other fp32": 0.4, "other bf16": 0.3}), Bundle.open(bundle)
    with monkeypatch.context() as patch:
        for module in (candidates, sys.modules["infgen_rt.backend.choice"]):
            patch.setattr(module, "worth_importing", lambda name, _: name != "other")
        assert choose(opened)[0].backend.name == "onnxruntime" and asked == []
    assert choose(opened)[0].backend.name == "other" and len(asked) == 3
    with monkeypatch.context() as patch:
        for module in (candidates, sys.modules["infgen_rt.backend.choice"]):
            patch.setattr(module, "worth_importing", lambda name, _: name != "other")
        assert choose(opened)[0].backend.name == "onnxruntime"
    assert choose(opened, "other")[0].arithmetic == "bf16" and len(asked) == 3


def test_what_the_exporter_found_too_inexact_is_not_chosen_however_fast_it_is(
    bundle: Path, several: dict, timed: Timed, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = timed({"onnxruntime fp32": 0.5, "other fp32": 0.4, "other bf16": 0.1})
    monkeypatch.setattr(
        Manifest, "psnr", lambda self, recipe, arithmetic, _=False: 30.0 if arithmetic == "bf16" else 90.0
    )
    for _ in range(2):  # measured, and remembered
        assert str(choose(Bundle.open(bundle))[0]) == "other on Other CPU, onnx-fp32 in fp32"
    assert len(asked) == 3


def test_a_device_that_has_gone_since_it_was_measured_is_measured_again(
    bundle: Path, several: dict, timed: Timed, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed({"onnxruntime fp32": 0.5, "other fp32": 0.4, "other bf16": 0.3})
    with infgen_rt.open(bundle) as decoder:
        assert decoder.backend.name == "other"

    def gone(self: object, graph: str, files: Mapping[str, bytes], options: Options) -> Session:
        raise BackendError("the device is gone")

    monkeypatch.setattr(Other, "load", gone)
    timed({"onnxruntime fp32": 0.5})
    with pytest.warns(InfGenWarning, match="other fp32 does not start"), infgen_rt.open(bundle) as decoder:
        assert decoder.backend.name == "onnxruntime"
    with pytest.raises(BackendError, match="other fp32 does not start"), pytest.warns(InfGenWarning):
        infgen_rt.open(bundle, "other")


def test_a_driver_that_fails_while_devices_are_listed_leaves_the_others(
    bundle: Path, several: dict, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> NoReturn:
        raise RuntimeError("clGetDeviceIDs\nfailed")

    for method in ("devices", "arithmetics"):
        with monkeypatch.context() as patch:
            patch.setattr(Other, method, fail)
            with pytest.warns(InfGenWarning, match="'other' cannot tell its devices: clGetDeviceIDs failed"):
                assert choose(Bundle.open(bundle))[0].backend.name == "onnxruntime"
            assert main(["devices", "--model", str(bundle)]) == 0
            assert "- other: backend 'other' cannot tell its devices" in capsys.readouterr().out


def test_cuda_takes_the_number_of_a_gpu(bundle: Path) -> None:
    with pytest.raises(BackendError, match="cpu is no device of 'cuda': leave the device out, or pass one such as"):
        infgen_rt.open(bundle, "cuda", device="cpu")
    with pytest.raises(BackendError, match="cuda:7"):
        infgen_rt.open(bundle, "cuda", device="cuda:7")


def test_when_nothing_runs_every_reason_is_told(bundle: Path, several: dict, timed: Timed) -> None:
    timed({})
    with (
        pytest.warns(InfGenWarning),
        pytest.raises(BackendError, match="nothing that was tried runs the bundle, and .*does not start"),
    ):
        choose(Bundle.open(bundle))


def test_a_named_backend_that_fails_is_an_error(bundle: Path, several: dict) -> None:
    several["broken"] = entry("broken", f"{__name__}:Broken")
    with pytest.raises(BackendError, match="another planet"):
        infgen_rt.open(bundle, "broken", precision="exact")


def test_what_is_compared_does_not_depend_on_how_tiles_are_decoded(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Bundle.open(bundle)
    (candidate,) = Survey.of(opened.manifest, "onnxruntime", "cpu").candidates
    images = []
    for parallel in ((), ("cpu",)):
        monkeypatch.setattr(type(candidate.backend), "parallel_on", parallel)
        images.append(measuring._run(opened, candidate, 2)[0])
    assert images[0].shape != images[1].shape  # the tiles differ
    assert measuring._psnr(images[0], images[1]) > 100


@pytest.mark.parametrize("enlargements", [(), tiny.ENLARGEMENTS], ids=["one context", "enlargements"])
def test_measuring_runs_the_graphs(several: dict, tmp_path: Path, enlargements: tuple[Enlargement, ...]) -> None:
    opened = Bundle.open(tiny.write_bundle(tmp_path / "bundle", enlargements))
    results = measuring.measure(opened, Survey.of(opened.manifest).candidates, 1)
    assert [(result.way.backend, result.way.arithmetic) for result in results] == [
        *(("onnxruntime", "fp32"), ("other", "fp32"), ("other", "bf16"))
    ]
    assert all(result.speed and min(asdict(result.speed).values()) > 0 and result.error is None for result in results)
    assert results[0].psnr is None and all(result.psnr == 200 for result in results[1:])


def test_exact_leaves_out_what_is_not_float32(bundle: Path, installed: dict) -> None:
    class Half(Other):
        def arithmetics(self, device: str, recipe: Recipe) -> Sequence[str]:
            return ["bf16"]

    installed["other"] = entry("other", "unused")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(candidates, "load_backend", lambda name: Half())
        with pytest.raises(BackendError, match="in 'exact' precision on 'other': .*infgen-export .*onnx-fp32"):
            choose(Bundle.open(bundle), precision="exact")


def test_precision_threads_and_options_are_checked(bundle: Path) -> None:
    with pytest.raises(BackendError, match="precision 'best' is unknown: expected one of fast, exact"):
        infgen_rt.open(bundle, precision="best")  # type: ignore[arg-type]
    with pytest.raises(BackendError, match="0 threads"):
        infgen_rt.open(bundle, threads=0)


# Told.


def test_devices_tells_what_is_usable_and_what_to_do_for_the_rest(bundle: Path, several: dict, timed: Timed) -> None:
    several["broken"] = entry("broken", f"{__name__}:Exploding")
    opened = Bundle.open(bundle)
    assert not any(fact.speed or fact.auto for fact in describe_devices(opened))
    asked = timed({"onnxruntime fp32": 0.5, "other fp32": 0.4})
    facts = describe_devices(opened, fresh=True)
    assert [(fact.backend, fact.arithmetic, fact.speed and fact.speed.decode) for fact in facts[:2]] == [
        *(("other", "fp32", 0.4), ("onnxruntime", "fp32", 0.5))
    ]
    problems = {(fact.backend, fact.device): fact.problem for fact in facts[2:]}
    assert problems["other", "gpu:0"] == "no driver: install one"
    assert problems["other", "cpu"] == "other bf16 does not start"
    assert "undefined symbol" in str(problems["broken", None])
    assert "'openvino' is unknown" in str(problems["openvino", None])
    assert describe_devices(opened)[0].speed == Speed(0.4, 1.0, 2.0)
    assert [fact.backend for fact in describe_devices(opened) if fact.auto] == ["other"]
    assert choose(opened)[0].backend.name == "other" and len(asked) == 3


def test_the_commands(bundle: Path, several: dict, timed: Timed, capsys: pytest.CaptureFixture[str]) -> None:
    timed({"onnxruntime fp32": 0.5, "other fp32": 0.4, "other bf16": 0.3})
    assert main(["devices", "--model", str(bundle), "--measure"]) == 0
    output = capsys.readouterr().out
    assert output.startswith("* other cpu (Other CPU): onnx-fp32 in bf16, 0.300 s per megapixel")
    assert output.count("\n* ") == 0 and output.endswith(
        "* is taken (--precision fast). The order is by the time of a small picture, fastest first.\n"
    )
    assert main(["devices", "--model", str(bundle), "--json"]) == 0
    facts: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    assert facts[0]["speed"]["decode"] == 0.3
    assert main(["cache"]) == 0 and measuring.FILE in capsys.readouterr().out
    assert main(["cache", "--clear"]) == 0 and "(cleared)" in capsys.readouterr().out
    assert main(["cache", "--json"]) == 0 and json.loads(capsys.readouterr().out)["bytes"] == {}


def test_clearing_the_cache_leaves_what_is_somebody_elses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shared, home = tmp_path / "home" / "scratch", tmp_path / "home"
    real = shared / "infgen-rt"
    (real / "openvino" / "0").mkdir(parents=True)
    for other in ("torch", "openvino"):  # other programs use the names of backends too
        (shared / other).mkdir()
        (shared / other / "weights.pth").write_text("precious")
    (real / "onnxruntime").symlink_to(shared / "torch")
    (real / "openvino" / "0" / "a.blob").write_bytes(b"12345")
    (real / measuring.FILE).write_text("{}")
    (real / ".a.blob.0123abcd.partial").write_text("left by a crash")
    (real / "sub").mkdir()
    (real / "sub" / "photo.raw").write_text("precious")
    (home / "link").symlink_to(shared)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("INFGEN_RT_CACHE", "~/link")
    assert main(["cache", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (
        told["folder"] == str(home / "link" / "infgen-rt")
        and told["bytes"]["openvino"] == 5
        and "sub" not in told["bytes"]
    )
    assert main(["cache", "--clear"]) == 0
    assert sorted(path.name for path in real.iterdir()) == ["onnxruntime", "sub"]
    assert (real / "sub" / "photo.raw").exists()
    assert all((shared / other / "weights.pth").exists() for other in ("torch", "openvino"))


def test_the_cache_folder_is_absolute_and_a_file_in_its_place_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("INFGEN_RT_CACHE", " here ")
    assert cache_folder() == tmp_path / "here" / "infgen-rt"
    monkeypatch.setenv("INFGEN_RT_CACHE", "   ")
    assert cache_folder() not in (None, tmp_path)
    Path("file").touch()
    monkeypatch.setenv("INFGEN_RT_CACHE", "file")
    assert main(["cache", "--clear"]) == 2
    assert f"{tmp_path / 'file'} is a file, so that nothing is cached" in capsys.readouterr().err
    assert Path("file").exists()


# ONNX Runtime itself.


def test_a_graph_that_is_none_is_refused() -> None:
    from infgen_runtimes.onnxruntime import Backend

    with pytest.raises(BackendError, match="cannot load the graph") as caught:
        Backend().load("decode", {"graph.onnx": b"rubbish"}, Options())
    assert "\n" not in str(caught.value)


def test_a_run_that_fails_is_one_line() -> None:
    from infgen_runtimes.onnxruntime import Backend

    session = Backend().load("prefill", {"graph.onnx": tiny.prefill_graph()}, Options())
    with pytest.raises(infgen_rt.DecodeError, match="could not run the graph") as caught:
        session.run({"latent": tiny.random_latent(4, 4)})
    assert "\n" not in str(caught.value)
    session.close()
    with pytest.raises(infgen_rt.DecodeError, match="closed"):
        session.run({"latent": tiny.random_latent(4, 4)[None]})


def test_work_that_lands_on_the_cpu_is_reported() -> None:
    from infgen_runtimes import onnxruntime

    settings = onnxruntime.ort.SessionOptions()
    settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    session = onnxruntime.ort.InferenceSession(tiny.prefill_graph(), settings, providers=["CPUExecutionProvider"])
    with pytest.warns(InfGenWarning, match="of prefill on the CPU instead of cuda:0, which is slower: .*2 Conv"):
        onnxruntime._report_fallbacks(session, "prefill", "cuda:0")


def test_a_plugin_of_onnxruntime_is_found_and_a_broken_one_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from infgen_runtimes import onnxruntime, ort_plugins

    (tmp_path / "onnxruntime_ep_toy-1.0.dist-info").mkdir()
    (tmp_path / "onnxruntime_ep_toy.py").write_text("def get_library_path(): return 'nowhere.so'\n")
    monkeypatch.syspath_prepend(tmp_path)
    ort_plugins._found.cache_clear()
    try:
        with pytest.warns(InfGenWarning, match="onnxruntime-ep-toy cannot be used: .*nowhere"):
            found = {device.id: device.problem for device in onnxruntime.Backend().devices()}
    finally:
        ort_plugins._found.cache_clear()
    assert (
        found["toy"] == "onnxruntime-ep-toy finds no device that it can use here: install its driver"
        and found["cpu"] is None
    )


# OpenVINO's compiled graphs.


def test_compiled_graphs_are_kept_and_a_damaged_one_is_made_anew(tmp_path: Path) -> None:
    default = Bundle.open()
    recipe = next(each for each in default.manifest.recipes if each.name == "openvino-fp16")
    files = default.read_graph(recipe, default.manifest.contexts[0].graph("decode"))
    from infgen_runtimes.openvino import Backend

    options = Options(cache=tmp_path / "cache")
    Backend().load("decode", files, options).close()
    kept = [file for file in (tmp_path / "cache").rglob("*") if file.is_file()]
    assert kept
    for file in kept:
        file.write_bytes(file.read_bytes()[:1000] + b"damage")
    Backend().load("decode", files, options).close()


def test_a_package_that_announces_a_backend_is_found(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As pip would have installed it: no table is patched here."""
    (tmp_path / "abacus_backend.py").write_text(
        "from infgen_rt.backend.protocol import Device\n"
        "from infgen_runtimes.onnxruntime import Backend as Onnx\n\n\n"
        "class Backend(Onnx):\n"
        "    name = 'abacus'\n\n"
        "    def devices(self):\n"
        "        return [Device('cpu', 'Abacus')]\n"
    )
    info = tmp_path / "abacus_backend-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: abacus-backend\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{protocol.GROUP}]\nabacus = abacus_backend:Backend\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert "abacus" in protocol.installed_backends()
    with infgen_rt.open(bundle, "abacus") as decoder:
        assert decoder.backend.device_name == "Abacus"
        assert decoder.picture(tiny.random_latent(4, 4)).read().shape == (32, 32, 3)


def test_a_driver_that_fails_in_the_middle_leaves_no_file(bundle: Path, several: dict, tmp_path: Path) -> None:
    class Flaky(Other):
        def load(self, graph: str, files: Mapping[str, bytes], options: Options) -> Session:
            session, runs = super().load(graph, files, options), []
            run = session.run

            def failing(inputs: Mapping[str, Any]) -> dict[str, Any]:
                runs.append(graph)
                if len(runs) == 5:
                    raise infgen_rt.DecodeError("the device was lost")
                return run(inputs)

            session.run = failing  # type: ignore[method-assign]
            return session

    folder = tmp_path / "out"
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(candidates, "load_backend", lambda name: Flaky())
        with infgen_rt.open(bundle, "other", precision="exact") as decoder:
            picture = decoder.picture(tiny.random_latent(12, 12), "2x", tile=64)
            with pytest.raises(infgen_rt.DecodeError, match="the tile .* could not be decoded: the device was lost"):
                picture.save(folder / "out.png")
    assert list(folder.iterdir()) == []


def test_a_driver_that_also_fails_to_list_its_devices_hides_no_cause(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Gone(Other):
        lost = False

        def devices(self) -> Sequence[Device]:
            if self.lost:
                raise RuntimeError("no driver")
            return super().devices()

        def load(self, graph: str, files: Mapping[str, bytes], options: Options) -> Session:
            self.lost = True
            raise infgen_rt.BackendError("the device was lost")

    monkeypatch.setattr(candidates, "load_backend", lambda name: Gone())
    with pytest.raises(infgen_rt.BackendError, match="the device was lost"):
        infgen_rt.open(bundle, "other", device="cpu", precision="exact")


@pytest.mark.parametrize("found, expected", [(None, "fp32"), (35.0, "fp32"), (48.0, "bf16")])
def test_an_encoder_is_computed_in_a_low_precision_only_if_it_was_found_to_be_close(
    several: dict, timed: Timed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, found: float | None, expected: str
) -> None:
    class Noting(Other):
        def load(self, graph: str, files: Mapping[str, bytes], options: Options) -> Session:
            arithmetics[graph] = options.arithmetic
            return super().load(graph, files, options)

    arithmetics: dict[str, str] = {}
    timed({"onnxruntime fp32": 0.5, "other fp32": 0.4, "other bf16": 0.3})
    folder = tiny.write_bundle(tmp_path / "bundle")
    if found is not None:
        described = json.loads((folder / "manifest.json").read_text())
        checks = {"checks": [{"psnr": 90.0}], "native": {"bf16": found}}
        described["verification"] = [{"recipe": "onnx-fp32", "graph": "encode", **checks}]
        (folder / "manifest.json").write_text(json.dumps(described))
    monkeypatch.setattr(candidates, "load_backend", lambda name: Noting())
    with infgen_rt.open(folder, "other") as decoder:
        assert decoder.backend.arithmetic == "bf16"
        decoder.encode(np.zeros((64, 64, 3), np.uint8))
    assert arithmetics["encode"] == expected and arithmetics["prefill"] == "bf16"


class Overflowing(Other):
    """One whose low precision gives NaN in some graphs."""

    graphs: tuple[str, ...] = ("decode",)
    exact = True

    def arithmetics(self, device: str, recipe: Recipe) -> Sequence[str]:
        return ["fp32", "bf16"] if self.exact else ["bf16"]

    def load(self, graph: str, files: Mapping[str, bytes], options: Options) -> Session:
        session = super().load(graph, files, options)
        if options.arithmetic == "bf16" and graph in self.graphs:
            run = session.run
            session.run = lambda inputs: {  # type: ignore[method-assign]
                name: np.where(value > np.median(value), np.nan, value).astype(np.float32)
                for name, value in run(inputs).items()
            }
        return session


@pytest.mark.parametrize("graphs", [("decode",), ("prefill",), ("prefill", "decode", "encode")])
def test_what_overflows_is_computed_again_in_float32(
    bundle: Path, several: dict, timed: Timed, monkeypatch: pytest.MonkeyPatch, graphs: tuple[str, ...]
) -> None:
    several["other"] = entry("other", f"{__name__}:Overflowing")
    monkeypatch.setattr(Overflowing, "graphs", graphs)
    timed({"onnxruntime fp32": 0.5, "other fp32": 0.4, "other bf16": 0.3})
    latent = tiny.random_latent(6, 7)
    with infgen_rt.open(bundle, "other") as decoder, infgen_rt.open(bundle, "onnxruntime") as reference:
        assert decoder.backend.arithmetic == "bf16"
        with pytest.warns(InfGenWarning, match="other on Other CPU.* gave NaN .* again in float32") as caught:
            pixels = decoder.picture(latent, "4x", stages=(2, 2), tile=64).read()
        assert len([each for each in caught if "again in float32" in str(each.message)]) == 1
        expected = reference.picture(latent, "4x", stages=(2, 2), tile=64).read()
        assert np.abs(pixels - expected.astype(int)).max() <= 1
        exact = decoder._engine._exact
        decoder.encode(np.zeros((64, 64, 3), np.uint8))
        assert exact is not None and exact._purpose == IDLE, "it gives back the memory for encoding"
    with pytest.raises(infgen_rt.DecodeError, match="closed"):
        decoder.picture(latent).read()


@pytest.mark.parametrize(
    "graphs", [("decode4",), ("refine4",), ("prefill", "refine4", "decode4"), ("decode1", "decode4")]
)
def test_what_overflows_of_an_enlargement_is_computed_again_by_its_own_graphs(
    several: dict, timed: Timed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, graphs: tuple[str, ...]
) -> None:
    bundle = tiny.write_bundle(tmp_path / "bundle", tiny.ENLARGEMENTS)
    several["other"] = entry("other", f"{__name__}:Overflowing")
    monkeypatch.setattr(Overflowing, "graphs", graphs)
    timed({"onnxruntime fp32": 0.5, "other fp32": 0.4, "other bf16": 0.3})
    latent = tiny.random_latent(6, 7)
    with infgen_rt.open(bundle, "other") as decoder:
        assert decoder.backend.arithmetic == "bf16"
        with pytest.warns(InfGenWarning, match="again in float32"):
            picture = decoder.picture(latent, "2x", tile=64)
            pixels = picture.read(dtype=np.float32)
            smaller = picture.at("1x").read(dtype=np.float32)
        assert np.abs(pixels - tiny.decode_whole(latent, (112, 96), tiny.ENLARGEMENTS[1])).max() < 1e-5
        assert np.abs(smaller - tiny.decode_whole(latent, (56, 48), tiny.ENLARGEMENTS[0])).max() < 1e-5
        exact = decoder._engine._exact
        # No more of the other model than was needed.
        assert exact is not None and ("decode1" in exact._sessions) == ("decode1" in graphs)


def test_what_overflows_everywhere_names_the_tile(
    bundle: Path, several: dict, timed: Timed, monkeypatch: pytest.MonkeyPatch
) -> None:
    several["other"] = entry("other", f"{__name__}:Overflowing")
    monkeypatch.setattr(Overflowing, "exact", False)
    with infgen_rt.open(bundle, "other") as decoder:
        picture = decoder.picture(tiny.random_latent(6, 7), "2x", tile=64)
        with pytest.raises(infgen_rt.DecodeError, match="NaN or infinite pixels in 0,0,64,48"):
            picture.read()


@pytest.mark.parametrize("graph", tiny.GRAPHS)
@pytest.mark.parametrize("ends", [True, False])
def test_the_run_in_which_onnx_runtime_gives_memory_back_succeeds(graph: str, ends: bool) -> None:
    """Whatever keeps it from running is passed over."""
    from infgen_runtimes.onnxruntime import Backend

    content = {name: getattr(tiny, f"{name}_graph")() for name in tiny.GRAPHS}[graph]
    session = Backend().load(graph, {"graph.onnx": content}, Options())
    loaded, results = session._session, []

    class Watched:
        get_inputs, get_outputs = staticmethod(loaded.get_inputs), staticmethod(loaded.get_outputs)

        def run(self, *arguments: Any) -> None:
            results.extend(loaded.run(*arguments))

    session._session = Watched()
    session.close() if ends else session.release()
    assert len(results) == 1 and np.isfinite(results[0]).all()
