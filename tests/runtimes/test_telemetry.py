"""What a decode writes and sends: watched by strace where there is one."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from infgen_runtimes import telemetry

DECODE = """
import sys, infgen_rt
latent = infgen_rt.load_sample("osprey").latent[:, 20:28, 20:28]
with infgen_rt.open(backend=sys.argv[1]) as decoder:
    decoder.picture(latent, "1x", normalisation="model").save(sys.argv[2])
"""
# Memory and devices, which are no files.
NO_FILES = ("/dev/", "/proc/", "/sys/")


def can_trace() -> bool:
    return shutil.which("strace") is not None and subprocess.run(["strace", "-qq", "true"]).returncode == 0


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino", "torch"])
def test_a_decode_writes_in_its_cache_alone_and_opens_no_socket(tmp_path: Path, backend: str) -> None:
    home, work, trace = (tmp_path / name for name in ("home", "work", "trace"))
    home.mkdir()
    work.mkdir()
    left_out = ("INFGEN_RT_CACHE", "XDG_CACHE_HOME", telemetry.ONNXRUNTIME)
    environment = {name: value for name, value in os.environ.items() if name not in left_out}
    environment |= {"HOME": str(home), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", DECODE, backend, str(work / "out.png")]
    if traced := can_trace():
        calls = "trace=%network,open,openat,creat,mkdir,mkdirat,rename,renameat,renameat2"
        command = ["strace", "-f", "-qq", "-y", "-s", "300", "-e", calls, "-o", str(trace), *command]
    subprocess.run(command, env=environment, cwd=work, check=True)
    assert [path.name for path in work.iterdir()] == ["out.png"]
    files = {path.relative_to(home).parts[:2] for path in home.rglob("*") if path.is_file()}
    assert files <= {(".cache", "infgen-rt")}
    if not traced:
        pytest.skip("the rest needs strace")
    lines = trace.read_text(encoding="utf-8", errors="replace").splitlines()
    assert [line for line in lines if re.search(r"\b(socket|connect|sendto|sendmsg|bind)\(", line)] == []
    writing = (line for line in lines if re.search(r"O_WRONLY|O_RDWR|O_CREAT|\bmkdir|\brename", line))
    paths = [match[1] for line in writing if (match := re.search(r'"(/[^"]*)"', line))]
    assert paths
    ours = (str(home / ".cache"), str(work), *NO_FILES)
    assert [path for path in paths if not path.startswith(ours)] == []


def test_what_the_user_has_set_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(telemetry.ONNXRUNTIME, "0")
    telemetry.silence_onnxruntime()
    assert os.environ[telemetry.ONNXRUNTIME] == "0"
    monkeypatch.delitem(sys.modules, "openvino_telemetry", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path))
    answer = tmp_path / ("Intel Corporation" if sys.platform == "win32" else "intel") / "openvino_telemetry"
    answer.parent.mkdir()
    for text, silent in (("1", False), ("0", True), ("", True)):
        answer.write_text(text)
        with telemetry.without_openvino_telemetry():
            assert ("openvino_telemetry" in sys.modules) == silent
        assert "openvino_telemetry" not in sys.modules


def test_the_exporters_libraries_are_silent_too() -> None:
    script = "import infgen_export.targets.openvino, sys; sys.exit('openvino_telemetry' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0
