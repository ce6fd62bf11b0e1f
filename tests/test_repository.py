"""What several files of the repository say alike."""

import itertools
import re
import shutil
import subprocess
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_pre_commit_has_the_ruff_that_the_constraints_pin() -> None:
    pinned = re.search(r"^ruff==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    hook = re.search(r"ruff-pre-commit\n(?:\s*#.*\n)*\s*rev: v(.+)", (ROOT / ".pre-commit-config.yaml").read_text())
    assert pinned and hook and hook[1] == pinned[1]


@pytest.mark.parametrize(("module", "page"), [("infgen_rt", "runtime"), ("infgen_export", "export")])
def test_the_documentation_has_every_public_name(module: str, page: str) -> None:
    text = (ROOT / "docs" / "api" / f"{page}.md").read_text(encoding="utf-8")
    names = re.findall(rf"^::: {module}\.(\w+)$", text, re.MULTILINE)
    assert sorted(names) == sorted(set(import_module(module).__all__) - {"__version__"})


def test_a_librarys_lowest_version_is_the_same_wherever_a_backend_needs_it() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    # The exporter may need a newer PyTorch than the backend.
    needed = [requirement for requirement in itertools.chain(*extras.values()) if not requirement.startswith("torch>")]
    found = [re.match(r"([\w-]+)>=([\d.]+)", requirement) for requirement in needed]
    lowest: dict[str, set[str]] = {}
    for name, version in (match.groups() for match in found if match):
        lowest.setdefault(name.removesuffix("-gpu"), set()).add(version)
    assert {"onnxruntime", "coremltools"} <= lowest.keys()
    assert all(len(versions) == 1 for versions in lowest.values()), lowest


@pytest.mark.parametrize("page", ["robustness", "reproducibility"])
def test_a_page_of_promises_names_tests_that_exist(page: str) -> None:
    text = (ROOT / f"docs/{page}.md").read_text(encoding="utf-8")
    files = [ROOT / name for name in re.findall(r"`(tests/[\w/]+\.py)`", text)]
    assert files and all(file.is_file() for file in files)
    sources = "\n".join(file.read_text(encoding="utf-8") for file in (ROOT / "tests").rglob("*.py"))
    named = set(re.findall(r"`(test_\w+)`", text)) - {file.stem for file in files}
    assert named <= set(re.findall(r"^def (test_\w+)", sources, re.MULTILINE))


def test_there_is_one_core_of_openvino_in_a_process() -> None:
    """With several, a signal crashes the process (`infgen_runtimes.openvino.shared_core`)."""
    folders = ("infgen_rt", "model", "runtimes", "export", "training", "benchmarks", "examples", "tests")
    files = [file for folder in folders for file in (ROOT / folder).rglob("*.py")]
    makers = [file for file in files if re.search(r"\b(ov|openvino)\.Core\(", file.read_text(encoding="utf-8"))]
    assert makers == [ROOT / "runtimes" / "infgen_runtimes" / "openvino.py"]


def test_git_does_not_change_the_line_ends_of_the_bundle() -> None:
    if not shutil.which("git") or not (ROOT / ".git").exists():
        pytest.skip("no checkout of Git")
    files = ["infgen_rt/model/manifest.json", "infgen_rt/model/openvino-fp16.decode1.xml"]
    done = subprocess.run(
        ["git", "check-attr", "text", "--", *files], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert [line.rpartition(": ")[2] for line in done.stdout.splitlines()] == ["unset"] * len(files)
