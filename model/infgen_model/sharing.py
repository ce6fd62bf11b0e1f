"""Shares weights between models of several latent spaces. Weights that belong to one space are not shared."""

from __future__ import annotations

from infgen_model.config import OF_SPACE
from infgen_model.infgen import InfGen


def share(guide: InfGen, model: InfGen) -> None:
    """Copies the weights that do not belong to a latent space from one model into another, in place.

    Args:
        guide: The model whose weights are copied.
        model: The model that is changed.
    """
    shared = {name: value for name, value in guide.state_dict().items() if not name.startswith(OF_SPACE)}
    model.load_state_dict(model.state_dict() | shared)


def tie(guide: InfGen, model: InfGen) -> None:
    """Replaces parameters of a model by those of another, so that training one of the models trains both.

    Parameters that belong to a latent space are not replaced.

    Args:
        guide: The model whose parameters are used.
        model: The model that is changed.
    """
    for name, value in guide.named_parameters():
        if not name.startswith(OF_SPACE):
            place, _, last = name.rpartition(".")
            setattr(model.get_submodule(place), last, value)


def shares(guide: InfGen, model: InfGen) -> bool:
    """Whether the weights that do not belong to a latent space are equal in two models, after rounding to float16."""
    theirs = guide.state_dict()
    return all(
        name in theirs and value.half().cpu().equal(theirs[name].half().cpu())  # they may be on different devices
        for name, value in model.state_dict().items()
        if not name.startswith(OF_SPACE)
    )
