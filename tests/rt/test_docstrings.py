"""The examples in docstrings run as they are written, and give what they show."""

import doctest
import importlib
import inspect
from pathlib import Path

import pytest

import infgen_rt
from infgen_rt.bundle import folder

ROOT = Path(infgen_rt.__file__).parent
MODULES = sorted(path for path in ROOT.rglob("*.py") if ">>> " in path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_the_examples_of_a_module_give_what_they_show(
    path: Path, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(folder, "DEFAULT_BUNDLE", bundle)  # a tiny model, instead of the one in the package
    module = importlib.import_module(".".join(path.relative_to(ROOT.parent).with_suffix("").parts))
    lines: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    for example in doctest.DocTestFinder(exclude_empty=True).find(module, globs={}):
        runner.run(example, out=lines.append)
    assert runner.tries > 0 and not lines, "".join(lines)


def test_every_exported_function_and_class_has_an_example() -> None:
    exported = [getattr(infgen_rt, name) for name in infgen_rt.__all__]
    documented = [each for each in exported if inspect.isfunction(each) or inspect.isclass(each)]
    errors = (infgen_rt.InfGenError, infgen_rt.InfGenWarning)
    missing = [each.__name__ for each in documented if ">>> " not in (each.__doc__ or "")]
    assert missing == [each.__name__ for each in documented if inspect.isclass(each) and issubclass(each, errors)]
