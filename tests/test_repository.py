"""What several files of the repository say alike."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_pre_commit_has_the_ruff_that_the_constraints_pin() -> None:
    pinned = re.search(r"^ruff==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    hook = re.search(r"ruff-pre-commit\n(?:\s*#.*\n)*\s*rev: v(.+)", (ROOT / ".pre-commit-config.yaml").read_text())
    assert pinned and hook and hook[1] == pinned[1]
