"""Fixtures for all tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest

import infgen_rt

from .rt import tiny


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model; not to be changed."""
    return tiny.write_bundle(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def decoder(bundle: Path) -> Iterator[infgen_rt.Decoder]:
    with infgen_rt.open(bundle) as decoder:
        yield decoder
