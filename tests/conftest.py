"""Fixtures for all tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest

import infgen_rt

from .rt import tiny


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
