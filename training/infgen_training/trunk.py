"""Starts the trunk of another latent space from a finished model and the tiny autoencoder of that space.

All that follows the trunk is shared by all spaces, and expects the features of the finished model's trunk, which is
called the guide here.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from infgen_model import InfGen
from infgen_model.config import OF_SPACE
from infgen_model.layers import TripleBlock
from infgen_rt.common.files import whole
from infgen_rt.errors import InputError
from infgen_training.config import TrainConfig
from infgen_training.leastsquares import LeastSquares
from infgen_training.teacher import Teacher
from infgen_training.views import View, to_tensor
from infgen_training.warmstart import copy_trunk

LATENTS = "latents.safetensors"
"""The file in a run's folder with the latents of the views in the new space."""
_OF_VIEWS = "views"
"""The entry of that file's metadata that says which views the latents are of."""
_FITTED = 48
"""Number of views that layers are fitted to."""
_DAMPING = 0.03
"""What a change of basis is undone with at least, as a share of its largest singular value. Without it, the directions
that the change nearly removes would be amplified several hundred times."""


def in_space(views: Sequence[View], teacher: Teacher, file: Path, device: torch.device) -> list[View]:
    """The same views with latents of the teacher's space. Their own latents become the guide's.

    Args:
        views: Views of the finished model's latent space.
        teacher: The autoencoder of the new space.
        file: A file from ``save_latents``. If it holds the latents of these views, nothing is encoded.
        device: Device to encode on.
    """
    latents = _load_latents(file, views)
    if latents is None:
        teacher = teacher.to(device)
        pictures = (to_tensor(view.small)[None].to(device) for view in tqdm(views, desc="latents", disable=None))
        latents = [teacher.encode(picture)[0].half().cpu() for picture in pictures]
    return [
        dataclasses.replace(view, latent=latent, guide=view.latent) for view, latent in zip(views, latents, strict=True)
    ]


def save_latents(file: Path, views: Sequence[View]) -> None:
    """Writes the latents of views, atomically, so that a continued run does not encode them again."""
    tensors = {f"{index:06d}": view.latent.contiguous() for index, view in enumerate(views)}
    with whole(file) as partial:
        save_file(tensors, partial, {_OF_VIEWS: _digest(views)})


def _load_latents(file: Path, views: Sequence[View]) -> list[Tensor] | None:
    """The latents in a file, or None if it is missing, damaged or of other views."""
    try:
        with safe_open(file, "pt") as found:
            if (found.metadata() or {}).get(_OF_VIEWS) != _digest(views):
                return None
            return [found.get_tensor(name) for name in sorted(found.keys())]
    except (OSError, SafetensorError):
        return None


def _digest(views: Sequence[View]) -> str:
    digest = hashlib.sha256()
    for view in views:
        digest.update(view.small.tobytes())
    return digest.hexdigest()


def new_trunk(config: TrainConfig, guide: InfGen, teacher: Teacher, views: Sequence[View]) -> InfGen:
    """Makes a model of another latent space that shares all but its trunk with a finished one.

    The trunk starts as the teacher's decoder, in the guide's basis. The encoder's last layer, the only other one that
    depends on the space, is fitted to the teacher's latents.

    Args:
        config: Config of the run.
        guide: The finished model.
        teacher: The new space's tiny autoencoder.
        views: Views in both spaces, from ``in_space``.

    Raises:
        InputError: The guide has no trunk, or the teacher's decoder has another structure than the trunk.
    """
    if guide.refine is None:
        raise InputError(f"{guide.config.name} has no trunk that another latent space could have for its own")
    before = guide.config
    own = dataclasses.replace(
        before,
        name=before.name.removesuffix(f"-{before.latent_space}") + f"-{config.latent_space}",
        latent_space=config.latent_space,
        latent_channels=config.latent_channels,
        pooled=any(".pool." in name for name in teacher.decoder.state_dict()),
    )
    model = InfGen(own).eval()
    share(guide, model)
    copy_trunk(teacher.decoder, model, picture=False)
    change_basis(model, guide, views)
    fit_encoder(model, views)
    return model


def share(guide: InfGen, model: InfGen) -> None:
    """Copies all that does not belong to a latent space from one model into another, in place."""
    shared = {name: value for name, value in guide.state_dict().items() if not name.startswith(OF_SPACE)}
    model.load_state_dict(model.state_dict() | shared)


def shares(guide: InfGen, model: InfGen) -> bool:
    """Whether all that does not belong to a latent space is the same in two models, stored in float16."""
    theirs = guide.state_dict()
    return all(
        name in theirs and value.half().equal(theirs[name].half())
        for name, value in model.state_dict().items()
        if not name.startswith(OF_SPACE)
    )


@torch.no_grad()
def change_basis(model: InfGen, guide: InfGen, views: Sequence[View]) -> None:
    """Maps a trunk's last features, in place, to those of the guide, as far as a linear function can.

    A trunk that ends with a linear layer and one block can take the function in without a further layer: the linear
    layer and the block's last convolution apply it, and the block's first convolution undoes it. The block's ReLU comes
    after that. Other trunks stay as they are.
    """
    assert model.refine is not None and guide.refine is not None
    ends = [refine.levels[-1] if len(refine.levels) else nn.Sequential() for refine in (model.refine, guide.refine)]
    if any(len(list(end.children())) != 1 for end in ends):
        return
    (block,), grow = ends[0].children(), model.refine.grow[-1]
    assert isinstance(block, TripleBlock) and isinstance(grow, nn.Conv2d)
    fit = LeastSquares()
    for view in _some(views):
        assert view.guide is not None
        pair = [_before_relu(each, latent) for each, latent in ((model, view.latent), (guide, view.guide))]
        fit.add(*(values[0].flatten(1) for values in pair))
    change, shift = fit.solve()
    first, last = block.convolve[0], block.convolve[-1]
    assert isinstance(first, nn.Conv2d) and isinstance(last, nn.Conv2d) and last.bias is not None
    for layer in (grow, last):
        layer.weight.copy_(torch.einsum("ab,bcij->acij", change, layer.weight.double()))
    last.bias.copy_(change @ last.bias.double() + shift)
    square = change.T @ change
    damping = (_DAMPING * torch.linalg.matrix_norm(change, 2)) ** 2 * torch.eye(len(square), dtype=square.dtype)
    undo = torch.linalg.solve(square + damping, change.T)
    first.weight.copy_(torch.einsum("abij,bc->acij", first.weight.double(), undo))


def _before_relu(model: InfGen, latent: Tensor) -> Tensor:
    """The features of a trunk's last block before its last ReLU."""
    assert model.refine is not None
    (block,) = model.refine.levels[-1].children()
    seen: list[Tensor] = []
    assert isinstance(block, TripleBlock)
    hook = block.convolve.register_forward_hook(lambda _, given, made: seen.append(given[0] + made))
    try:
        model.refine.grown(model.prefill(latent[None].float()))
    finally:
        hook.remove()
    return seen[0]


@torch.no_grad()
def fit_encoder(model: InfGen, views: Sequence[View]) -> None:
    """Sets an encoder's last convolution, in place, to the best linear readout of the views' latents."""
    fit, seen = LeastSquares(), list[Tensor]()
    hook = model.encode.leave.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    try:
        for view in _some(views):
            model.encode(to_tensor(view.small)[None])
            fit.add(F.unfold(seen.pop(), 3, padding=1)[0], view.latent.float().flatten(1))
    finally:
        hook.remove()
    fit.set(model.encode.leave)


def _some(views: Sequence[View]) -> Sequence[View]:
    """Views from all over the sequence, as many as layers are fitted to."""
    return views[:: max(1, len(views) // _FITTED)][:_FITTED]
