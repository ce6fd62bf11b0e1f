"""What is the same to the last bit, and what differs by how much, as `docs/reproducibility.md` says."""

from typing import Any

import numpy as np
import pytest

import infgen_rt

LATENT = np.random.default_rng(0).normal(0, 0.8, (32, 24, 24)).astype(np.float32)


def read(backend: str = "onnxruntime", tile: int = 256, **options: Any) -> np.ndarray:
    """Levels of the picture at twice the latent's own size."""
    pytest.importorskip(backend)
    with infgen_rt.open(backend=backend, **options) as decoder:
        return decoder.picture(LATENT, "2x", tile=tile).read().astype(int)


@pytest.fixture(scope="module")
def reference() -> np.ndarray:
    return read(precision="exact", threads=2)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_change_no_bit(reference: np.ndarray, threads: int) -> None:
    assert np.array_equal(read(precision="exact", threads=threads), reference)


@pytest.mark.parametrize(
    ("options", "most", "share"),
    [
        ({"tile": 128, "precision": "exact"}, 1, 0.001),
        ({"backend": "openvino", "precision": "exact"}, 1, 0.03),
        ({"backend": "openvino", "precision": "fast"}, 12, 0.6),
    ],
    ids=["tile size", "backend", "precision"],
)
def test_what_differs_does_so_by_no_more_than_is_told(
    reference: np.ndarray, options: dict[str, Any], most: int, share: float
) -> None:
    difference = np.abs(read(**options) - reference)
    assert difference.max() <= most and (difference > 0).mean() <= share
