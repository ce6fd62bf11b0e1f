"""Fixtures for all tests."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

import infgen_rt

from .rt import tiny

LONG = (
    "export/test_export.py",
    "export/test_coreml.py",
    "export/test_recipes.py",
    "runtimes/test_contract.py",
    "rt/test_default_model.py",
    "export/test_model.py",
    "test_benchmarks.py",
)
"""The files whose tests take longest. They run first, so that no process works on one of them after all others ended.

The first of them traces the graphs that the third and the fourth need too.
"""

# Timing never decides a test.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


def pytest_configure(config: pytest.Config) -> None:
    """Give each of several test processes (pytest-xdist) a processor of its own.

    The libraries start as many threads as there are processors that they may use. With more threads than processors,
    waiting threads take the time of those that work.
    """
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if worker is not None and hasattr(os, "sched_setaffinity"):
        available = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {available[int(worker.removeprefix("gw")) % len(available)]})


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first. The others stay in their order."""
    root = Path(__file__).parent
    places = {root / name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.path, len(LONG)))


@pytest.fixture(autouse=True)
def seed() -> None:
    """The same random numbers for a test, whichever tests ran before it in the same process.

    Some tests draw weights, and a few draws in a thousand hide what a test looks for.
    """
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache folder of the tests' own, for their child processes too."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("INFGEN_RT_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model; not to be changed."""
    return tiny.write_bundle(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def decoder(bundle: Path) -> Iterator[infgen_rt.Decoder]:
    with infgen_rt.open(bundle) as decoder:
        yield decoder
