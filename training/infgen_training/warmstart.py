"""Starts a model from the weights of a tiny autoencoder and of an enlarger.

Tiny autoencoders (github.com/madebyollin/taesd) exist for many latent spaces: TAESD, TAESDXL, TAESD3, TAEF1, TAEF2.
Their decoders have the same task as the trunk of a model, and their encoders the same as its encoder. Training that
starts from their weights therefore starts with useful features.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from infgen_model import DecoderConfig, InfGen, Level
from infgen_model.config import OF_TRUNK
from infgen_model.enlarger import smooth
from infgen_rt.errors import InputError
from infgen_training.config import FACTOR, PATCH
from infgen_training.leastsquares import LeastSquares
from infgen_training.teacher import Teacher, load_function
from infgen_training.views import View, to_tensor

COPIED = (
    *OF_TRUNK,
    *("encode.levels.", "encode.shrink.", "encode.pooled.", "encode.leave."),
)
"""Prefixes of the parameters that are copied from a tiny autoencoder."""
_PARTS = {"convolve": "conv", "pool": "pool"}
"""Maps the names of a block's branches in the model to their names in a tiny autoencoder."""


def warm_start(model: InfGen, teacher: Path | None, enlarger: Path | None, views: Sequence[View]) -> None:
    """Copies weights of other networks into a new model, in place, where they fit.

    Args:
        model: The model, with random weights.
        teacher: Python file or weights of a tiny autoencoder, for the trunk and the encoder. None to leave both
            unchanged.
        enlarger: Python file with ``load_animevideo()``, for the enlarger. None to leave it unchanged.
        views: The views that the enlarger is fitted to.

    Raises:
        FileNotFoundError: A file does not exist.
        InputError: A file does not define its function, weights cannot be read, or a network has another structure.
    """
    if teacher is not None:
        origin = Teacher.load(teacher)
        copy_trunk(origin.decoder, model)
        copy_encoder(origin.encoder, model)
    if enlarger is not None:
        copy_enlarger(load_function(enlarger, "load_animevideo")(), model)
        rescale_enlarger(model, views)
        fit_readout(model, views)


def copy_trunk(decoder: nn.Module, model: InfGen) -> None:
    """Copies the first layers of a tiny autoencoder's decoder into a model's trunk, in place.

    Among the tiny autoencoders, only TAEF2's decoder has branches with global statistics. If the trunk has such
    branches and the decoder does not, the output of these branches starts at zero.

    Args:
        decoder: A sequence of modules. It starts with a soft clamp, a convolution and a ReLU. Blocks, an upsampling and
            a convolution follow for every resolution. A convolution to the picture is the last module.
        model: A model whose trunk, in ``prefill`` and ``refine``, has the same widths. Nothing is copied to a model
            without a trunk.

    Raises:
        InputError: The decoder has another structure or other widths.
    """
    if model.prefill.enter is None:
        return
    names = {f"prefill.enter.{name}": f"1.{name}" for name in model.prefill.enter.state_dict()}  # after the soft clamp
    place = 3  # after the ReLU
    names.update(_names(model.prefill.blocks, "prefill.blocks", place))
    place += len(model.prefill.blocks)
    for index, level in enumerate(model.refine.levels if model.refine is not None else ()):
        names[f"refine.grow.{index}.weight"] = f"{place + 1}.weight"  # after the upsampling
        place += 2
        names.update(_names(level, f"refine.levels.{index}", place))
        place += len(list(level.children()))
    if model.refine is not None:
        for name in ("weight", "bias"):
            names[f"refine.enlarger.to_picture.{name}"] = f"{place}.{name}"
    if not any(".pool." in name for name in decoder.state_dict()):
        names = {ours: theirs for ours, theirs in names.items() if ".pool." not in ours}
    silent = {
        name: 0 * value
        for name, value in model.prefill.state_dict(prefix="prefill.").items()
        if name not in names and name.endswith(".pool.3.weight")
    }
    _copy(decoder, model, names, silent)


def copy_encoder(encoder: nn.Module, model: InfGen) -> None:
    """Copies the layers of a tiny autoencoder's encoder into a model's encoder, in place, from the last one backwards.

    If the model's encoder has fewer resolutions, the first layers are not copied. If it lacks global statistics that
    the tiny autoencoder has, these branches are not copied either, and the model has to learn to work without them.

    If the model's encoder has the same resolutions and the same statistics (``encoder_config``), the copy is exact.

    Args:
        encoder: A sequence of modules. For every resolution, it has a convolution and blocks. All of these convolutions
            except the first halve the resolution. One more convolution is the last module.
        model: A model whose ``encode`` has the same widths.

    Raises:
        InputError: The encoder has another structure or other widths.
    """
    place = len(encoder) - 1 if isinstance(encoder, nn.Sequential) else 0
    names = {f"leave.{name}": f"{place}.{name}" for name in model.encode.leave.state_dict()}
    place -= len(model.encode.pooled)
    names.update(_names(model.encode.pooled, "pooled", place))
    for index, level in reversed(list(enumerate(model.encode.levels))):
        place -= len(list(level.children()))
        names.update(_names(level, f"levels.{index}", place))
        if index:
            place -= 1
            names[f"shrink.{index - 1}.weight"] = f"{place}.weight"
    if place == 1:  # if only the first convolution is left, the resolutions are the same
        names |= {f"enter.{name}": f"0.{name}" for name in model.encode.enter.state_dict()}
    _copy(encoder, model.encode, names, {})


def encoder_config(encoder: nn.Module, config: DecoderConfig) -> DecoderConfig | None:
    """Makes the config of a model that can have a tiny autoencoder's encoder.

    Args:
        encoder: Any module. The encoder of a tiny autoencoder has a convolution and blocks for every resolution, from
            that of the picture to that of the latent, and then one more convolution. Only the last blocks may use
            global statistics.
        config: The model's config.

    Returns:
        The config with the encoder's resolutions and statistics. None if the encoder cannot be copied exactly, because
        it has another structure.
    """
    modules = list(encoder) if isinstance(encoder, nn.Sequential) else []
    convolutions = [(index, each) for index, each in enumerate(modules) if isinstance(each, nn.Conv2d)]
    places = [index for index, _ in convolutions]
    if len(places) < 2 or (places[0], places[-1]) != (0, len(modules) - 1):
        return None
    pairs = zip(convolutions, places[1:], strict=False)
    levels = tuple(Level(each.out_channels, following - place - 1) for (place, each), following in pairs)
    pooled = {int(name.partition(".")[0]) for name in encoder.state_dict() if ".pool." in name}
    if pooled != set(range(places[-1] - len(pooled), places[-1])) or len(pooled) > levels[-1].blocks:
        return None
    return dataclasses.replace(config, encoder=levels, encoder_pooled=len(pooled))


def copy_enlarger(network: nn.Module, model: InfGen) -> None:
    """Copies Real-ESRGAN's smallest network into a model's enlarger, in place, where it fits.

    The last convolution is not copied, because the model's enlarger is shorter. It learns its own last convolution in a
    few hundred steps.

    Args:
        network: An ``SRVGGNetCompact``, whose ``body`` has convolutions of 64 channels with PReLUs between them.
        model: A model whose enlarger has the same width and at most as many convolutions.

    Raises:
        InputError: The network has another structure. Nothing is copied.
    """
    if model.refine is None or not model.refine.enlarger.leave:
        return
    enlarger = model.refine.enlarger
    body = getattr(network, "body", None)
    ours = [enlarger.enter, enlarger.activate, *(layer for block in enlarger.blocks for layer in block.children())]
    if not isinstance(body, nn.Sequential) or len(body) < len(ours):
        raise InputError(
            f"the enlarger's network is not SRVGGNetCompact: expected {1 + len(enlarger.blocks)} convolutions or more, "
            "with PReLUs between them, in `body`"
        )
    states = [theirs.state_dict() for theirs in list(body)[: len(ours)]]
    for place, (layer, state) in enumerate(zip(ours, states, strict=True)):
        expected, found = (
            {name: list(value.shape) for name, value in each.items()} for each in (layer.state_dict(), state)
        )
        if found != expected:
            raise InputError(f"the enlarger's network does not fit: body.{place} should have {expected}, not {found}")
    for layer, state in zip(ours, states, strict=True):
        layer.load_state_dict(state)
    with torch.no_grad():
        # At first, the enlarger sees only the picture, as in the original network.
        for parameter in enlarger.mix.parameters():
            parameter.zero_()


@torch.no_grad()
def rescale_enlarger(model: InfGen, views: Sequence[View], count: int = 8) -> None:
    """Scales the layers of a model's enlarger, in place, so that the output of each PReLU has a root mean square of 1.

    Without this, the layers differ so much in scale that no learning rate suits them all. The result of the enlarger
    does not change. If the input of a PReLU doubles, its output doubles too, so the weights of the next layer can undo
    the scaling.

    Args:
        model: A model whose trunk and enlarger already have useful weights.
        views: The views. Only the first ``count`` are used.
        count: Maximum number of views to use.
    """
    if model.refine is None or not model.refine.enlarger.leave:
        return
    enlarger = model.refine.enlarger
    blocks = [list(block.children()) for block in enlarger.blocks]
    activations = [enlarger.activate, *(block[-1] for block in blocks)]
    sums = [torch.zeros(()) for _ in activations]

    def watch(index: int) -> Callable[..., None]:
        def hook(_: nn.Module, __: object, output: Tensor) -> None:
            sums[index] += output.square().mean()

        return hook

    hooks = [layer.register_forward_hook(watch(index)) for index, layer in enumerate(activations)]
    deepest = max(model.config.enlargements, key=lambda each: each.blocks)
    try:
        for view in views[:count]:
            model.context(view.latent[None].float(), deepest)
    finally:
        for hook in hooks:
            hook.remove()
    lengths = [(each / max(1, min(count, len(views)))).sqrt().clamp(min=1e-6) for each in sums]
    for layer in (enlarger.enter, enlarger.mix):
        for parameter in layer.parameters():
            parameter.div_(lengths[0])
    for (convolve, _), before, after in zip(blocks, lengths, lengths[1:], strict=False):
        assert isinstance(convolve, nn.Conv2d) and convolve.bias is not None
        convolve.weight.mul_(before / after)
        convolve.bias.div_(after)
    for each in model.config.enlargements:
        if each.factor > 1:
            leave = enlarger.leave[str(each.factor)]
            assert isinstance(leave, nn.Conv2d)
            leave.weight.mul_(lengths[each.blocks])


@torch.no_grad()
def fit_readout(model: InfGen, views: Sequence[View], count: int = 24, cells: int = 16) -> None:
    """Fits the last convolutions of a model's enlarger, in place, by linear least squares.

    They get the weights with the smallest squared error between the enlarged picture and its target. The targets are
    the sharp pictures of some views, or photographs if no view has a sharp picture.

    Args:
        model: A model whose trunk and enlarger, except for its last convolutions, already have useful weights.
        views: The views to fit to. If none has a sharp picture or a photograph, nothing changes.
        count: Number of random squares to use.
        cells: Side of the squares in cells. It is reduced for a view that is smaller.
    """
    pool = [view for view in views if view.sharp is not None] or [view for view in views if view.photo is not None]
    if model.refine is None or not pool:
        return
    refine, rng = model.refine, np.random.default_rng(0)
    seen: dict[str, Tensor] = {}
    hooks = [refine.enlarger.to_picture.register_forward_hook(lambda *given: seen.update(picture=given[2]))]
    # What a last convolution gets. With a finish, it is not called itself, and the finish gets the same.
    for name, leave in refine.enlarger.leave.items():
        first = next(refine.enlarger.finish[name].children()) if name in refine.enlarger.finish else leave
        hooks.append(first.register_forward_pre_hook(lambda _, given: seen.update(reached=given[0])))
    larger = [each for each in model.config.enlargements if each.factor > 1]
    fits = {each.factor: LeastSquares() for each in larger}
    try:
        for _ in range(count):
            view = pool[int(rng.integers(len(pool)))]
            pixels = view.sharp if view.sharp is not None else view.photo
            assert pixels is not None
            side, most = min(cells, view.cells), PATCH * FACTOR
            top, left = (int(rng.integers(view.cells - side + 1)) for _ in range(2))
            features = model.prefill(view.latent[None].float())[:, :, top : top + side, left : left + side]
            rows, columns = (slice(most * first, most * (first + side)) for first in (top, left))
            truth = to_tensor(pixels[rows, columns])[None]
            edge = refine.fold if side > 2 else 0  # the border is wrong, since the latent around the square is missing
            inner = (..., *(slice(edge, refine.fold * side - edge),) * 2)
            for each in larger:
                refine(features, each)
                picture, reached = seen["picture"], seen["reached"]
                size = each.factor * picture.shape[-1]
                wanted = F.interpolate(truth, size=(size, size), mode="bicubic", antialias=True)
                missing = F.pixel_unshuffle(wanted, each.factor) - smooth(picture, each.factor)
                near = F.unfold(reached, 3, padding=1).unflatten(2, picture.shape[-2:])
                fits[each.factor].add(*(value[inner][0].flatten(1) for value in (near, missing)))
    finally:
        for hook in hooks:
            hook.remove()
    for factor, fit in fits.items():
        fit.set(refine.enlarger.leave[str(factor)])


def _names(level: nn.Module, prefix: str, place: int) -> Iterator[tuple[str, str]]:
    """Pairs of names of the tensors of a level's blocks: in the model, and in the teacher.

    Args:
        level: The blocks.
        prefix: Start of the names in the model.
        place: Number of the first of these blocks in the teacher.
    """
    for index, block in enumerate(level.children()):
        for name in block.state_dict():
            part, _, rest = name.partition(".")
            yield f"{prefix}.{index}.{name}", f"{place + index}.{_PARTS[part]}.{rest}"


def _copy(teacher: nn.Module, module: nn.Module, names: dict[str, str], other: dict[str, Tensor]) -> None:
    state, expected = teacher.state_dict(), module.state_dict()
    for ours, theirs in names.items():
        found = state.get(theirs)
        if found is None or found.shape != expected[ours].shape:
            shape = "lacks it" if found is None else f"has shape {list(found.shape)}"
            raise InputError(
                f"the teacher is not one that this model can start from: {theirs} should have shape "
                f"{list(expected[ours].shape)}, the teacher {shape}; leave it out to start at random"
            )
    module.load_state_dict(expected | other | {ours: state[theirs] for ours, theirs in names.items()})
