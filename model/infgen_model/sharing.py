"""What models of several latent spaces can share: all parameters but those of one space."""

from __future__ import annotations

from infgen_model.config import OF_SPACE
from infgen_model.infgen import InfGen


def share(guide: InfGen, model: InfGen) -> None:
    """Copies all that does not belong to a latent space from one model into another, in place."""
    shared = {name: value for name, value in guide.state_dict().items() if not name.startswith(OF_SPACE)}
    model.load_state_dict(model.state_dict() | shared)


def tie(guide: InfGen, model: InfGen) -> None:
    """Gives a model the guide's own parameters where both can share them, so that training one trains the other."""
    for name, value in guide.named_parameters():
        if not name.startswith(OF_SPACE):
            place, _, last = name.rpartition(".")
            setattr(model.get_submodule(place), last, value)


def shares(guide: InfGen, model: InfGen) -> bool:
    """Whether all that does not belong to a latent space is the same in two models, stored in float16."""
    theirs = guide.state_dict()
    return all(
        name in theirs and value.half().equal(theirs[name].half())
        for name, value in model.state_dict().items()
        if not name.startswith(OF_SPACE)
    )
