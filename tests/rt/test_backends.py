from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

import infgen_rt
from infgen_rt import backends
from infgen_rt.errors import BackendError

from . import tiny


class Other:
    """A third party's backend for graphs that no bundle here has."""

    name, device, target = "other", "abacus", "beads"


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> dict[str, EntryPoint]:
    """The table of backends, open to change."""
    table: dict[str, EntryPoint] = {}
    monkeypatch.setattr(backends, "installed_backends", lambda: table)
    return table


def entry(name: str, value: str) -> EntryPoint:
    return EntryPoint(name, value, backends.GROUP)


def test_the_cpu_backend_announces_itself(decoder: infgen_rt.Decoder) -> None:
    assert "onnxruntime" in backends.installed_backends()
    assert (decoder.backend, decoder.device) == ("onnxruntime", "CPU")


def test_unknown_and_absent_backends_are_refused_and_not_replaced(bundle: Path) -> None:
    with pytest.raises(BackendError, match="'abacus' is unknown: available here are auto, "):
        infgen_rt.open(bundle, "abacus")
    with pytest.raises(BackendError, match="'cuda' is not in this installation: available here are"):
        infgen_rt.open(bundle, "cuda")


@pytest.mark.parametrize("name", ["onnxruntime", "auto"])
def test_a_backend_whose_library_is_missing_says_what_to_install(bundle: Path, installed: dict, name: str) -> None:
    installed["onnxruntime"] = entry("onnxruntime", "no_such_library:Backend")
    with pytest.raises(BackendError, match=r"not installed .*pip install 'infgen-rt\[cpu\]'"):
        infgen_rt.open(bundle, name)


def test_a_bundle_without_the_backends_graphs_is_refused(bundle: Path, installed: dict) -> None:
    installed["other"] = entry("other", f"{__name__}:Other")
    with pytest.raises(BackendError, match="needs graphs for 'beads', the bundle 'tiny' has onnx"):
        infgen_rt.open(bundle, "other")


def test_auto_takes_the_first_that_can_run_the_bundle(bundle: Path, installed: dict) -> None:
    installed["other"] = entry("other", f"{__name__}:Other")
    installed["onnxruntime"] = entry("onnxruntime", "infgen_runtimes.onnxruntime:Backend")
    with infgen_rt.open(bundle) as decoder:
        assert decoder.backend == "onnxruntime"


def test_an_installation_without_backends_says_what_to_install(bundle: Path, installed: dict) -> None:
    assert not installed
    with pytest.raises(BackendError, match="no backend is installed: pip install"):
        infgen_rt.open(bundle)


def test_threads_must_be_a_number_above_zero(bundle: Path) -> None:
    with pytest.raises(BackendError, match="0 threads"):
        infgen_rt.open(bundle, threads=0)
    with infgen_rt.open(bundle, threads=1) as decoder:
        assert decoder.picture(tiny.random_latent(4, 4)).read().shape == (32, 32, 3)


def test_a_graph_that_is_none_is_refused(tmp_path: Path, bundle: Path) -> None:
    from infgen_runtimes.onnxruntime import Backend

    with pytest.raises(BackendError, match="cannot load the graph") as caught:
        Backend().load({"graph.onnx": b"rubbish"}, backends.Options())
    assert "\n" not in str(caught.value)


def test_a_run_that_fails_is_one_line(bundle: Path) -> None:
    from infgen_runtimes.onnxruntime import Backend

    session = Backend().load({"graph.onnx": tiny.prefill_graph()}, backends.Options())
    with pytest.raises(infgen_rt.DecodeError, match="could not run the graph") as caught:
        session.run({"latent": tiny.random_latent(4, 4)})
    assert "\n" not in str(caught.value)
    session.close()
    with pytest.raises(infgen_rt.DecodeError, match="closed"):
        session.run({"latent": tiny.random_latent(4, 4)[None]})
