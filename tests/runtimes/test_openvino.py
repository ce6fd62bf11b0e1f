"""What OpenVINO's backend does in less than float32, on any processor: one without bfloat16 computes in float32."""

import numpy as np
import pytest

import infgen_rt
from infgen_runtimes.openvino import Backend


def test_a_model_that_is_cut_in_two_gives_the_same_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shipped one, each of whose graphs has inputs of its own."""
    latent = infgen_rt.load_sample("osprey").latent[:, 20:36, 20:40]
    with infgen_rt.open(backend="openvino", precision="exact") as decoder:
        whole = decoder.picture(latent, "2x", stages=(1, 2)).read()
    monkeypatch.setattr(Backend, "arithmetics", lambda self, device, recipe: ("bf16",))
    with infgen_rt.open(backend="openvino", device="cpu") as decoder:
        assert decoder.backend.arithmetic == "bf16"
        halves = decoder.picture(latent, "2x", stages=(1, 2)).read()
    error = np.square(whole.astype(float) - halves).mean()
    assert 10 * np.log10(255**2 / max(error, 1e-9)) >= 45
