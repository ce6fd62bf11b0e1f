"""Makes the trunk of another latent space from a finished model and the tiny autoencoder of that space.

The finished model is called the guide. The parts after the trunk are shared by all latent spaces. They expect the
features of the guide's trunk, so the new trunk has to produce these features.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from tqdm import tqdm

from infgen_model import InfGen
from infgen_model.sharing import share
from infgen_rt.common.files import whole
from infgen_rt.errors import InputError
from infgen_training.config import TrainConfig
from infgen_training.leastsquares import LeastSquares
from infgen_training.teacher import Teacher
from infgen_training.views import View, to_tensor
from infgen_training.warmstart import copy_encoder, copy_trunk, encoder_config

LATENTS = "latents.safetensors"
"""Name of the file, in a run's folder, with the latents of the views in the new space."""
_OF_VIEWS = "views"
"""Key in that file's metadata. Its value is a hash of the views to which the latents belong."""
_ROUNDING = 0.02
"""Largest mean difference of one teacher's latents on two devices, relative to their mean magnitude."""
_FITTED = 48
"""Maximum number of views that layers are fitted to."""


def in_space(views: Sequence[View], teacher: Teacher, file: Path, device: torch.device) -> list[View]:
    """Encodes views in the teacher's space.

    Args:
        views: Views of the finished model's latent space.
        teacher: The autoencoder of the new space.
        file: A file from ``save_latents``, which may be missing. If it holds latents of these views, they are used and
            only the first view is encoded, to check that they are of the same teacher.
        device: Device to encode on. The teacher is moved to it.

    Returns:
        The same views. Their attribute ``latent`` is in the teacher's space, and ``guide`` is the latent that they had.
    """
    teacher = teacher.to(device)

    def encode(view: View) -> Tensor:
        return teacher.encode(to_tensor(view.small)[None].to(device))[0].half().cpu()

    latents = _load_latents(file, views)
    if latents is None or (views and not _are_alike(latents[0], encode(views[0]))):
        latents = [encode(view) for view in tqdm(views, desc="latents", disable=None)]
    return [
        dataclasses.replace(view, latent=latent, guide=view.latent) for view, latent in zip(views, latents, strict=True)
    ]


def save_latents(file: Path, views: Sequence[View]) -> None:
    """Writes the latents of views to a file atomically. A run that is continued need not encode the views again."""
    tensors = {f"{index:06d}": view.latent.contiguous() for index, view in enumerate(views)}
    with whole(file) as partial:
        partial.write_bytes(save(tensors, {_OF_VIEWS: _digest(views)}))


def _load_latents(file: Path, views: Sequence[View]) -> list[Tensor] | None:
    """The latents in a file, or None if the file is missing, damaged or belongs to other views."""
    try:
        with safe_open(file, "pt") as found:
            if (found.metadata() or {}).get(_OF_VIEWS) != _digest(views):
                return None
            return [found.get_tensor(name) for name in sorted(found.keys())]
    except (OSError, SafetensorError):
        return None


def _are_alike(stored: Tensor, made: Tensor) -> bool:
    """Whether two latents of a picture are of the same teacher. Devices round differently."""
    if stored.shape != made.shape:
        return False
    return bool((stored.float() - made.float()).abs().mean() <= _ROUNDING * made.float().abs().mean())


def _digest(views: Sequence[View]) -> str:
    digest = hashlib.sha256()
    for view in views:
        digest.update(view.small.tobytes())
    return digest.hexdigest()


def new_trunk(config: TrainConfig, guide: InfGen, teacher: Teacher, views: Sequence[View]) -> InfGen:
    """Makes a model of another latent space that shares all but its trunk and encoder with a finished model.

    The trunk starts with the weights of the teacher's decoder, including the layer that makes a picture. A layer after
    the trunk is fitted to the features that the guide's trunk has for the same pictures.

    If the teacher's encoder is that of a tiny autoencoder, it is copied exactly. Otherwise, the encoder starts with the
    weights of the guide's encoder, and its last layer is fitted to the teacher's latents.

    Args:
        config: Config of the run.
        guide: The finished model.
        teacher: The new space's tiny autoencoder.
        views: Views with latents of both spaces, from ``in_space``.

    Returns:
        The model, in evaluation mode.

    Raises:
        InputError: The guide has no trunk, or the structure of the teacher's decoder differs from that of the trunk.
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
        adapted=True,
    )
    copied = encoder_config(teacher.encoder, own)
    model = InfGen(copied or own).eval()
    share(guide, model)
    copy_trunk(teacher.decoder, model)
    fit_features(model, guide, views)
    if copied:
        copy_encoder(teacher.encoder, model)
    else:
        body = {name: value for name, value in guide.encode.state_dict().items() if not name.startswith("leave.")}
        model.encode.load_state_dict(body, strict=False)
        fit_encoder(model, views)
    return model


@torch.no_grad()
def fit_features(model: InfGen, guide: InfGen, views: Sequence[View]) -> None:
    """Fits the layer after a trunk, in place, so that its output is as close as possible to the guide's features.

    Args:
        model: The model with the trunk. It must have a layer after the trunk (``adapted`` in its config).
        guide: The finished model.
        views: Views with latents of both spaces.
    """
    assert model.refine is not None and guide.refine is not None
    trunk, width = model.refine, model.config.trunk[-1].width
    assert trunk.adapt is not None
    fit, seen = LeastSquares(), list[Tensor]()
    hook = trunk.adapt.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    try:
        for view in _some(views):
            assert view.guide is not None
            trunk.grown(model.prefill(view.latent[None].float()))
            theirs = guide.refine.grown(guide.prefill(view.guide[None].float()))[0, :width]
            fit.add(seen.pop()[0].flatten(1), theirs.flatten(1))
    finally:
        hook.remove()
    fit.set(trunk.adapt)


@torch.no_grad()
def fit_encoder(model: InfGen, views: Sequence[View]) -> None:
    """Fits the last convolution of a model's encoder, in place, so that its output is close to the views' latents.

    Args:
        model: The model with the encoder.
        views: Views with latents of the model's space.
    """
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
    """At most ``_FITTED`` views, spread evenly over the sequence."""
    return views[:: max(1, len(views) // _FITTED)][:_FITTED]
