"""The examples in the docstrings of the model and the exporter run as they are written, and give what they show."""

import doctest
import importlib
import pkgutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import infgen_model

# The targets need the converters, which take seconds to import, and have no examples.
MODULES = [each.name for each in pkgutil.iter_modules(infgen_model.__path__, "infgen_model.")]
MODULES += ["infgen_model", *(f"infgen_export.{name}" for name in ("recipes", "report", "work"))]


def examples() -> Iterator[doctest.DocTest]:
    """The examples of the modules. They see the names of their module."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    for name in MODULES:
        yield from (found for found in finder.find(importlib.import_module(name), name) if found.examples)


@pytest.mark.parametrize("example", list(examples()), ids=lambda example: example.name)
def test_an_example_gives_what_it_shows(
    example: doctest.DocTest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    lines: list[str] = []
    doctest.DocTestRunner().run(example, out=lines.append)
    assert not lines, "".join(lines)
