"""The examples in docstrings run as they are written, and give what they show."""

import doctest
import importlib
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import infgen_rt
from infgen_rt.bundle import folder


def examples() -> Iterator[doctest.DocTest]:
    """The examples of all modules of the package. They see the names that `infgen_rt` exports."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    names = [each.name for each in pkgutil.walk_packages(infgen_rt.__path__, "infgen_rt.")]
    for name in sorted(name for name in names if "__" not in name and "-" not in name):
        try:
            module: ModuleType = importlib.import_module(name)
        except ImportError:  # a library that is not installed here
            continue
        for found in finder.find(module, name, extraglobs={"infgen_rt": infgen_rt}):
            if found.examples:
                yield found


@pytest.mark.parametrize("example", examples(), ids=lambda example: example.name)
def test_an_example_gives_what_it_shows(
    example: doctest.DocTest, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(folder, "DEFAULT_BUNDLE", bundle)  # the model in the package takes much longer
    lines: list[str] = []
    doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(example, out=lines.append)
    assert not lines, "".join(lines)
